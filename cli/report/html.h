// Text for the page: escaping, numbers as people read them, tables, legends.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace minipuzzle::report {

// Safe as element content and inside a quoted attribute; control characters become spaces.
std::string escape(std::string_view text);

// "31.70 GiB", "33.02 MiB", "12.50 KiB", "2155 bytes": two decimals of the largest unit that fits.
std::string memory_text(int64_t bytes);
// "34,037,615,820 bytes".
std::string exact_bytes(int64_t bytes);
// Parameters or tokens: "46.77 B", "17.31 M", "8,192".
std::string count_text(int64_t count);
// 34037615820 -> "34,037,615,820".
std::string grouped(int64_t count);
// `digits` significant digits without needless zeros, a true minus sign, "not a number" spelled "nan".
std::string value_text(double value, int digits = 4);
// As many decimals as four significant digits of the largest of `values` take: columns of equal decimals.
int decimals_for(const std::vector<double>& values);
// Exactly `decimals` decimals.
std::string fixed_text(double value, int decimals);
// The number, or a dash where it is unknown.
std::string fixed_or_dash(const std::optional<double>& value, int decimals);

enum class CellKind { text, number };
struct Column {
    std::string heading;  // plain text
    CellKind kind = CellKind::number;
};
struct Row {
    std::vector<std::string> cells;  // markup
    std::string css_class;
};
std::string table(const std::vector<Column>& columns, const std::vector<Row>& rows);

// Swatches with words, in the order given: {class of the swatch, plain text}.
struct LegendEntry {
    std::string css_class, text;
};
std::string legend(const std::vector<LegendEntry>& entries);

}  // namespace minipuzzle::report
