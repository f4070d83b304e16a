#include "cli/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace minipuzzle::report {

std::string escape(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (const char c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\'':
                out += "&#39;";
                break;
            default:
                out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
        }
    }
    return out;
}

std::string grouped(int64_t count) {
    std::string digits = fmt::format("{}", count);
    const std::size_t first = digits[0] == '-' ? 1 : 0;
    for (std::size_t i = digits.size(); i > first + 3; i -= 3) digits.insert(i - 3, ",");
    return digits;
}

std::string memory_text(int64_t bytes) {
    constexpr struct {
        int shift;
        const char* name;
    } kUnits[] = {{30, "GiB"}, {20, "MiB"}, {10, "KiB"}};
    for (const auto& unit : kUnits)
        if (std::llabs(bytes) >= (int64_t{1} << unit.shift))
            return fmt::format("{:.2f} {}", std::ldexp(static_cast<double>(bytes), -unit.shift), unit.name);
    return fmt::format("{} bytes", bytes);
}

std::string exact_bytes(int64_t bytes) { return grouped(bytes) + " bytes"; }

std::string count_text(int64_t count) {
    const auto value = static_cast<double>(count);
    if (count >= 1'000'000'000) return fmt::format("{:.2f} B", value / 1e9);
    if (count >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
    return grouped(count);
}

std::string value_text(double value, int digits) {
    const std::string text = fmt::format("{:.{}g}", std::fabs(value), digits);
    return value < 0 ? "\u2212" + text : text;
}

int decimals_for(const std::vector<double>& values) {
    double most = 0;
    for (const double value : values)
        if (std::isfinite(value)) most = std::max(most, std::fabs(value));
    return most > 0 ? std::clamp(3 - static_cast<int>(std::floor(std::log10(most))), 0, 9) : 0;
}

std::string fixed_text(double value, int decimals) {
    const std::string text = fmt::format("{:.{}f}", std::fabs(value), decimals);
    return value < 0 ? "\u2212" + text : text;
}

std::string fixed_or_dash(const std::optional<double>& value, int decimals) {
    return value ? fixed_text(*value, decimals) : "\u2013";
}

std::string table(const std::vector<Column>& columns, const std::vector<Row>& rows) {
    const auto css = [&](std::size_t i) {
        return columns[i].kind == CellKind::number ? " class=\"number\"" : "";
    };
    std::string out = "<div class=\"scroll\"><table><thead><tr>";
    for (std::size_t i = 0; i < columns.size(); ++i)
        out += fmt::format("<th scope=\"col\"{}>{}</th>", css(i), escape(columns[i].heading));
    out += "</tr></thead><tbody>\n";
    for (const Row& row : rows) {
        out += row.css_class.empty() ? "<tr>" : fmt::format("<tr class=\"{}\">", row.css_class);
        for (std::size_t i = 0; i < row.cells.size(); ++i)
            out += fmt::format("<td{}>{}</td>", css(i), row.cells[i]);
        out += "</tr>\n";
    }
    return out + "</tbody></table></div>\n";
}

std::string legend(const std::vector<LegendEntry>& entries) {
    std::string out = "<p class=\"legend\">";
    for (const LegendEntry& entry : entries)
        out += fmt::format("<span><i class=\"swatch {}\"></i>{}</span>", entry.css_class, escape(entry.text));
    return out + "</p>\n";
}

}  // namespace minipuzzle::report
