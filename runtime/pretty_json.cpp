// Readable JSON: what fits on a line stays on one.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/artefact.h"

namespace minipuzzle {
namespace {

constexpr std::size_t kLine = 110;  // columns of an ordinary line
constexpr std::size_t kRowLine =
    300;  // an element of an array is a table row: one line, however many columns

std::string scalar(const Json& value) {
    if (value.is_number_float()) {
        const double number = value.get<double>();
        if (!std::isfinite(number)) return "null";  // unknown, in our files
        const std::string text = fmt::format("{}", number);
        return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
    }
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string quoted(const std::string& key) { return scalar(Json(key)); }

std::string on_one_line(const Json& value) {
    if (!value.is_structured()) return scalar(value);
    const bool object = value.is_object();
    std::string text = object ? "{" : "[";
    for (const auto& [key, element] : value.items()) {
        if (text.size() > 1) text += ", ";
        if (object) text += quoted(key) + ": ";
        text += on_one_line(element);
    }
    return text + (object ? "}" : "]");
}

bool holds_structured(const Json& value) {
    return std::any_of(value.begin(), value.end(),
                       [](const Json& element) { return element.is_structured(); });
}

// Scalars, or containers of scalars: what a line can hold and still be read.
bool is_shallow(const Json& value) {
    return std::none_of(value.begin(), value.end(), [](const Json& element) {
        return element.is_structured() && holds_structured(element);
    });
}

// A long array of scalars as lines filled to the right margin.
std::string filled(const Json& array, const std::string& indent) {
    std::string text = "[\n", line = indent + "  ";
    for (std::size_t i = 0; i < array.size(); ++i) {
        const std::string element = scalar(array[i]) + (i + 1 < array.size() ? "," : "");
        if (line.size() > indent.size() + 2 && line.size() + 1 + element.size() > kLine) {
            text += line + "\n";
            line = indent + "  ";
        }
        line += (line.size() > indent.size() + 2 ? " " : "") + element;
    }
    return text + line + "\n" + indent + "]";
}

std::string laid_out(const Json& value, const std::string& indent, std::size_t limit) {
    if (!value.is_structured() || value.empty()) return on_one_line(value);
    if (is_shallow(value)) {
        std::string line = on_one_line(value);
        if (indent.size() + line.size() <= limit) return line;
    }
    const bool object = value.is_object();
    if (!object && !holds_structured(value)) return filled(value, indent);
    std::string text = object ? "{" : "[";
    for (const auto& [key, element] : value.items()) {
        text += (text.size() > 1 ? ",\n" : "\n") + indent + "  ";
        if (object) text += quoted(key) + ": ";
        text += laid_out(element, indent + "  ", object ? kLine : kRowLine);
    }
    return text + "\n" + indent + (object ? "}" : "]");
}

}  // namespace

std::string pretty(const Json& json) { return laid_out(json, "", 0) + "\n"; }

}  // namespace minipuzzle
