#include "cli/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string_view>

#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

constexpr int kMaxDigits = 18;  // what int64_t holds for certain

struct Decimal {
    int64_t mantissa = 0;
    int decimals = 0;  // value = mantissa / 10^decimals
    std::string suffix;
};

// Leading decimal number and what follows it; nullopt where there is no number or too many digits.
std::optional<Decimal> split_decimal(const std::string& text) {
    Decimal result;
    std::size_t at = 0;
    int digits = 0;
    bool point = false;
    for (; at < text.size(); ++at) {
        if (text[at] == '.' && !point && at + 1 < text.size() && std::isdigit(text[at + 1])) {
            point = true;
        } else if (text[at] >= '0' && text[at] <= '9') {
            if (++digits > kMaxDigits) return std::nullopt;
            result.mantissa = result.mantissa * 10 + (text[at] - '0');
            if (point) ++result.decimals;
        } else {
            break;
        }
    }
    if (digits == 0) return std::nullopt;
    while (at < text.size() && text[at] == ' ') ++at;
    result.suffix = text.substr(at);
    return result;
}

__int128 power_of_ten(int exponent) {
    __int128 power = 1;
    for (int i = 0; i < exponent; ++i) power *= 10;
    return power;
}

struct Unit {
    std::string_view suffix;
    int64_t factor;
};
constexpr Unit kByteUnits[] = {{"", 1},
                               {"B", 1},
                               {"kB", 1'000},
                               {"MB", 1'000'000},
                               {"GB", 1'000'000'000},
                               {"TB", 1'000'000'000'000},
                               {"KiB", int64_t{1} << 10},
                               {"MiB", int64_t{1} << 20},
                               {"GiB", int64_t{1} << 30},
                               {"TiB", int64_t{1} << 40}};
constexpr Unit kCountUnits[] = {{"", 1},
                                {"k", 1'000},
                                {"M", 1'000'000},
                                {"B", 1'000'000'000},
                                {"Ki", int64_t{1} << 10},
                                {"Mi", int64_t{1} << 20}};

enum class Rounding { down, refuse };

template <std::size_t N>
int64_t parse_with_units(const std::string& text, const Unit (&units)[N], Rounding rounding,
                         const std::string& expected) {
    const auto decimal = split_decimal(text);
    if (!decimal) fail_usage(fmt::format("'{}' is not {}", text, expected));
    for (const Unit& unit : units) {
        if (unit.suffix != decimal->suffix) continue;
        const __int128 scaled = static_cast<__int128>(decimal->mantissa) * unit.factor;
        const __int128 divisor = power_of_ten(decimal->decimals);
        if (rounding == Rounding::refuse && scaled % divisor != 0)
            fail_usage(fmt::format("'{}' is not a whole number", text));
        const __int128 value = scaled / divisor;
        if (value > std::numeric_limits<int64_t>::max()) fail_usage(fmt::format("'{}' is too large", text));
        return static_cast<int64_t>(value);
    }
    fail_usage(fmt::format("'{}' is not {}", text, expected));
}

constexpr const char* kCountForm = "a count (a number, with k, M, B or Ki, Mi)";
constexpr const char* kBytesForm = "a size (a number with kB, MB, GB, TB or KiB, MiB, GiB, TiB)";

}  // namespace

int64_t parse_count(const std::string& text) {
    return parse_with_units(text, kCountUnits, Rounding::refuse, kCountForm);
}

int64_t parse_bytes(const std::string& text) {
    return parse_with_units(text, kByteUnits, Rounding::down, kBytesForm);
}

double parse_number(const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
        fail_usage(fmt::format("'{}' is not a number", text));
    return value;
}

double parse_seconds(const std::string& text) {
    double value = 0;
    const char* const end = text.data() + text.size();
    const auto [unit, error] = std::from_chars(text.data(), end, value);
    const std::string_view suffix(unit, static_cast<std::size_t>(end - unit));
    const double scale = suffix == "s" ? 1 : suffix == "ms" ? 1e-3 : suffix == "us" ? 1e-6 : 0;
    if (error != std::errc() || scale == 0 || !std::isfinite(value))
        fail_usage(fmt::format("'{}' is not a time (a number with s, ms or us)", text));
    if (!(value > 0)) fail_usage(fmt::format("'{}' is not above 0", text));
    return value * scale;
}

namespace {

// Appends what "45", "40..48" or "24576..32768:1024" names; `text` is all that was given, for messages.
void append_range(const std::string& piece, const std::string& text, std::vector<int64_t>& values) {
    constexpr int64_t kMostChoices = 65536;
    const auto dots = piece.find("..");
    if (dots == std::string::npos) {
        values.push_back(parse_count(piece));
        return;
    }
    const auto colon = piece.find(':', dots);
    const int64_t first = parse_count(piece.substr(0, dots));
    const int64_t last = parse_count(
        piece.substr(dots + 2, colon == std::string::npos ? std::string::npos : colon - dots - 2));
    const int64_t step = colon == std::string::npos ? 1 : parse_count(piece.substr(colon + 1));
    if (step < 1 || last < first) fail_usage(fmt::format("'{}' is an empty range", text));
    if ((last - first) / step >= kMostChoices)
        fail_usage(fmt::format("'{}' has more than {} values: give a step (A..B:STEP)", text, kMostChoices));
    for (int64_t value = first; value <= last; value += step) values.push_back(value);
}

}  // namespace

std::vector<int64_t> parse_choices(const std::string& text) {
    std::vector<int64_t> values;
    for (std::size_t begin = 0; begin <= text.size();) {
        const auto comma = std::min(text.find(',', begin), text.size());
        append_range(text.substr(begin, comma - begin), text, values);
        begin = comma + 1;
    }
    return values;
}

Amount Amount::parse(const std::string& text, AmountOf unit) {
    Amount amount;
    amount.text_ = text;
    const auto decimal = split_decimal(text);
    if (decimal && decimal->suffix == "%") {
        amount.percent_mantissa_ = decimal->mantissa;
        amount.decimals_ = decimal->decimals;
        return amount;
    }
    const std::string share = ", or a share of the teacher's total like 84%";
    if (unit == AmountOf::bytes)
        amount.absolute_ = parse_with_units(text, kByteUnits, Rounding::down, kBytesForm + share);
    else
        amount.absolute_ = parse_with_units(text, kCountUnits, Rounding::down, kCountForm + share);
    return amount;
}

int64_t Amount::of(int64_t teacher_total) const {
    if (!percent_mantissa_) return absolute_;
    const __int128 scaled = static_cast<__int128>(*percent_mantissa_) * teacher_total;
    const __int128 share = scaled / (power_of_ten(decimals_) * 100);
    return static_cast<int64_t>(std::min<__int128>(share, std::numeric_limits<int64_t>::max()));
}

std::string format_bytes(int64_t bytes) {
    constexpr std::pair<int64_t, const char*> kScales[] = {
        {int64_t{1} << 30, "GiB"}, {int64_t{1} << 20, "MiB"}, {int64_t{1} << 10, "KiB"}};
    for (const auto& [scale, name] : kScales)
        if (bytes >= scale)
            return fmt::format("{:.2f} {}", static_cast<double>(bytes) / static_cast<double>(scale), name);
    return fmt::format("{} bytes", bytes);
}

std::string format_count(int64_t count) {
    constexpr std::pair<int64_t, const char*> kScales[] = {
        {1'000'000'000, "B"}, {1'000'000, "M"}, {1'000, "k"}};
    for (const auto& [scale, name] : kScales)
        if (count >= scale)
            return fmt::format("{:.2f} {}", static_cast<double>(count) / static_cast<double>(scale), name);
    return std::to_string(count);
}

std::string describe_budget(const std::string& what, const Amount& amount, AmountOf unit,
                            int64_t teacher_total) {
    const std::string noun = unit == AmountOf::bytes ? "bytes" : "parameters";
    const int64_t value = amount.of(teacher_total);
    if (amount.text().back() == '%')
        return fmt::format("{} {} of the teacher's {} {} = {} {}", what, amount.text(), teacher_total, noun,
                           value, noun);
    return fmt::format("{} {} = {} {}", what, amount.text(), value, noun);
}

}  // namespace minipuzzle::cli
