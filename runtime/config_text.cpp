// config.json as Python's json module writes it: with bare Infinity, -Infinity and NaN.
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle {
namespace {

struct BareToken {
    const char* text;
    double value;
};
constexpr BareToken kBareTokens[] = {{"-Infinity", -std::numeric_limits<double>::infinity()},
                                     {"Infinity", std::numeric_limits<double>::infinity()},
                                     {"NaN", std::numeric_limits<double>::quiet_NaN()}};

// A string no configuration uses stands for a bare token while the text is strict JSON: a code point from the
// private use area, then the token.
const std::string kStandIn = "\xee\x80\x80";

bool continues_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// A name before a colon is a key, which no bare token may be.
bool is_key(const std::string& text, std::size_t end) {
    const std::size_t next = text.find_first_not_of(" \t\r\n", end);
    return next != std::string::npos && text[next] == ':';
}

// The bare token that starts at `at`, or null.
const BareToken* token_at(const std::string& text, std::size_t at) {
    if (at > 0 && (continues_word(text[at - 1]) || text[at - 1] == '-')) return nullptr;
    for (const BareToken& token : kBareTokens) {
        const std::size_t end = at + std::string_view(token.text).size();
        const bool whole = end >= text.size() || !continues_word(text[end]);
        if (text.compare(at, end - at, token.text) == 0 && whole && !is_key(text, end)) return &token;
    }
    return nullptr;
}

// The text with every bare token outside strings replaced by its stand-in string.
std::string without_bare_tokens(const std::string& text) {
    std::string strict;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            strict += c;
            if (c == '\\' && i + 1 < text.size())
                strict += text[++i];
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (const BareToken* token = token_at(text, i)) {
            strict += '"' + kStandIn + token->text + '"';
            i += std::string_view(token->text).size() - 1;
            continue;
        }
        in_string = c == '"';
        strict += c;
    }
    return strict;
}

void restore_numbers(Json& value) {
    if (value.is_structured()) {
        for (Json& element : value) restore_numbers(element);
        return;
    }
    if (!value.is_string()) return;
    for (const BareToken& token : kBareTokens)
        if (value.get_ref<const std::string&>() == kStandIn + token.text) {
            value = token.value;
            return;
        }
}

void stand_in_for_numbers(Json& value) {
    if (value.is_structured()) {
        for (Json& element : value) stand_in_for_numbers(element);
        return;
    }
    if (!value.is_number_float() || std::isfinite(value.get<double>())) return;
    const double number = value.get<double>();
    value = kStandIn + (std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity");
}

}  // namespace

Json parse_config_text(const std::string& text, const std::string& where) {
    Json config = parse_json(without_bare_tokens(text), where);
    restore_numbers(config);
    return config;
}

std::string config_text(const Json& config) {
    Json strict = config;
    stand_in_for_numbers(strict);
    std::string text = strict.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
    for (const BareToken& token : kBareTokens) {
        const std::string stand_in = '"' + kStandIn + token.text + '"';
        for (std::size_t at = 0; (at = text.find(stand_in, at)) != std::string::npos;)
            text.replace(at, stand_in.size(), token.text);
    }
    return text;
}

}  // namespace minipuzzle
