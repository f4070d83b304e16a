// Text tables for people.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace minipuzzle::cli {

// Columns as wide as their widest cell, two spaces apart; columns of numbers stand right-aligned.
class Table {
  public:
    explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
    // As many cells as the header has.
    void add(std::vector<std::string> row);
    // Of the longest line that text() can have.
    std::size_t width() const;
    // One line a row, the header first, each ended by a newline.
    std::string text() const;

  private:
    std::vector<std::size_t> widths() const;
    std::vector<std::string> header_;
    std::vector<std::vector<std::string>> rows_;
};

// At most `most` of n indexes, evenly spread, first and last among them, and `also` (-1: none).
std::vector<std::size_t> spread_indexes(std::size_t n, std::size_t most, int64_t also = -1);

// "0.1783", "-" where there is no value.
std::string cell(const std::optional<double>& value, int decimals = 4);

// Lines of at most `columns`, broken at blanks, those after the first two to the right; each ended by a
// newline.
std::string wrapped(const std::string& text, std::size_t columns = 100);

}  // namespace minipuzzle::cli
