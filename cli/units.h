// Numbers as people type them: sizes, counts, shares of the teacher, ranges.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace minipuzzle::cli {

// A count: "512", "120k", "1.5M", "2B" (decimal), "4Ki", "2Mi" (binary). Error usage where it is none, is not
// whole, or does not fit 63 bits.
int64_t parse_count(const std::string& text);

// A size in bytes: "24GB" (decimal), "31.7GiB" (binary), a bare number is bytes. A fraction of a byte is cut
// off, so that a budget is never exceeded. Error usage.
int64_t parse_bytes(const std::string& text);

// A time in seconds: "25ms", "800us", "1.5s"; Error usage where it has no unit or is not above 0.
double parse_seconds(const std::string& text);

// "0.001", "1e-3"; Error usage where it is no finite number.
double parse_number(const std::string& text);

// Counts or widths to choose from: "45", "40..48" (both ends), "24576..32768:1024", "44,45,46".
std::vector<int64_t> parse_choices(const std::string& text);

// What an Amount counts, for parsing and for echoing.
enum class AmountOf { bytes, parameters };

// A budget: absolute, or a share of the teacher's total ("84%", "62.5%").
class Amount {
  public:
    static Amount parse(const std::string& text, AmountOf unit);
    // The budget given the teacher's total, rounded down.
    int64_t of(int64_t teacher_total) const;
    const std::string& text() const { return text_; }

  private:
    std::string text_;
    int64_t absolute_ = 0;
    // percent = mantissa / 10^decimals; exact, so that 84% of a total is the same everywhere.
    std::optional<int64_t> percent_mantissa_;
    int decimals_ = 0;
};

// "31.70 GiB", "412 bytes": for people; exact numbers are printed beside it.
std::string format_bytes(int64_t bytes);
// "2.87 M", "8.10 B".
std::string format_count(int64_t count);
// "budget 31.7GiB = 34037615820 bytes", "budget 84% of the teacher's 5785216 bytes = 4859581 bytes".
std::string describe_budget(const std::string& what, const Amount& amount, AmountOf unit,
                            int64_t teacher_total);

}  // namespace minipuzzle::cli
