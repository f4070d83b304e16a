#include "cli/table.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

// A cell that does not spoil a right-aligned column: a number, with or without a unit, or a missing value.
bool numeric(const std::string& text) {
    return text.empty() || text == "-" || std::isdigit(static_cast<unsigned char>(text[0])) ||
           (text.size() > 1 && (text[0] == '-' || text[0] == '+') &&
            std::isdigit(static_cast<unsigned char>(text[1])));
}

}  // namespace

void Table::add(std::vector<std::string> row) {
    MP_ASSERT(row.size() == header_.size());
    rows_.push_back(std::move(row));
}

std::vector<std::size_t> Table::widths() const {
    std::vector<std::size_t> widths;
    for (std::size_t c = 0; c < header_.size(); ++c) {
        widths.push_back(header_[c].size());
        for (const auto& row : rows_) widths[c] = std::max(widths[c], row[c].size());
    }
    return widths;
}

std::size_t Table::width() const {
    std::size_t width = 2 * (header_.size() - 1);
    for (const std::size_t column : widths()) width += column;
    return width;
}

std::string Table::text() const {
    const std::size_t columns = header_.size();
    const std::vector<std::size_t> widths = this->widths();
    std::vector<bool> right(columns, !rows_.empty());
    for (std::size_t c = 0; c < columns; ++c)
        for (const auto& row : rows_) right[c] = right[c] && numeric(row[c]);
    const auto line = [&](const std::vector<std::string>& cells) {
        std::string text;
        for (std::size_t c = 0; c < columns; ++c) {
            if (c > 0) text += "  ";
            text += right[c] ? fmt::format("{:>{}}", cells[c], widths[c])
                             : fmt::format("{:<{}}", cells[c], widths[c]);
        }
        text.erase(text.find_last_not_of(' ') + 1);
        return text + "\n";
    };
    std::string text = line(header_);
    for (const auto& row : rows_) text += line(row);
    return text;
}

std::vector<std::size_t> spread_indexes(std::size_t n, std::size_t most, int64_t also) {
    std::vector<std::size_t> chosen;
    for (std::size_t i = 0; i < std::min(n, most); ++i)
        chosen.push_back(n <= most ? i : i * (n - 1) / (most - 1));
    if (also >= 0) chosen.push_back(static_cast<std::size_t>(also));
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    return chosen;
}

std::string wrapped(const std::string& text, std::size_t columns) {
    std::string out;
    std::size_t line = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(' ', at), text.size());
        if (line > 0 && line + 1 + (end - at) > columns) {
            out += "\n ";
            line = 1;
        }
        if (line > 0) out += ' ';
        out += text.substr(at, end - at);
        line += (line > 0) + (end - at);
        at = end + 1;
    }
    return out + "\n";
}

std::string cell(const std::optional<double>& value, int decimals) {
    return value ? fmt::format("{:.{}f}", *value, decimals) : "-";
}

}  // namespace minipuzzle::cli
