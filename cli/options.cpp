#include "cli/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

using Words = std::vector<std::string>;

const std::string& only(const Words& words) {
    if (words.size() != 1) fail_usage(fmt::format("takes one value, found {}", words.size()));
    return words[0];
}

bool parse_bool(const Words& words) {
    if (words.empty() || words[0] == "true") return true;
    if (words[0] == "false") return false;
    fail_usage(fmt::format("'{}' is not true or false", words[0]));
}

// A scalar of a YAML file as the word that would stand on the command line.
std::string word_of(const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number() || value.is_boolean()) return value.dump();
    fail_usage(fmt::format("found {}, expected a value or a list of values", value.type_name()));
}

Words words_of(const Option& option, const Json& value) {
    if (value.is_array()) {
        Words words;
        for (const Json& item : value) words.push_back(word_of(item));
        if (option.arity != Arity::many) words = {fmt::format("{}", fmt::join(words, ","))};
        return words;
    }
    if (option.arity == Arity::optional_one && value.is_boolean() && value.get<bool>()) return {};
    return {word_of(value)};
}

}  // namespace

Option& OptionTable::add(Option option) {
    MP_ASSERT(!find(option.name));
    options_.push_back(std::move(option));
    return options_.back();
}

void OptionTable::flag(const std::string& name, bool& field, const std::string& help,
                       const std::string& short_names) {
    add({.name = name,
         .short_names = short_names,
         .metavar = "",
         .help = help,
         .arity = Arity::flag,
         .set = [&field](const Words& words) { field = parse_bool(words); },
         .value = [&field] { return Json(field); }});
}

void OptionTable::text(const std::string& name, const std::string& metavar, std::string& field,
                       const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = metavar,
         .help = help,
         .set = [&field](const Words& words) { field = only(words); },
         .value = [&field] { return field.empty() ? Json() : Json(field); }});
}

void OptionTable::texts(const std::string& name, const std::string& metavar, std::vector<std::string>& field,
                        const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = metavar,
         .help = help,
         .arity = Arity::many,
         .set = [&field](const Words& words) { field = words; },
         .value = [&field] { return field.empty() ? Json() : Json(field); }});
}

void OptionTable::word(const std::string& name, const std::vector<std::string>& words, std::string& field,
                       const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = fmt::format("{}", fmt::join(words, "|")),
         .help = help,
         .set =
             [&field, words](const Words& given) {
                 const std::string& word = only(given);
                 if (std::find(words.begin(), words.end(), word) == words.end())
                     fail_usage(fmt::format("'{}' is not one of {}", word, fmt::join(words, ", ")));
                 field = word;
             },
         .value = [&field] { return field.empty() ? Json() : Json(field); }});
}

void OptionTable::count(const std::string& name, int64_t& field, const std::string& help, int64_t least) {
    add({.name = name,
         .short_names = "",
         .metavar = "N",
         .help = help,
         .set =
             [&field, least](const Words& words) {
                 const int64_t value = parse_count(only(words));
                 if (value < least) fail_usage(fmt::format("{} is below {}", value, least));
                 field = value;
             },
         .value = [&field] { return Json(field); }});
}

void OptionTable::count(const std::string& name, std::optional<uint64_t>& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "N",
         .help = help,
         .set = [&field](const Words& words) { field = static_cast<uint64_t>(parse_count(only(words))); },
         .value = [&field] { return field ? Json(*field) : Json(); }});
}

void OptionTable::count(const std::string& name, std::optional<int64_t>& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "N",
         .help = help,
         .set = [&field](const Words& words) { field = parse_count(only(words)); },
         .value = [&field] { return field ? Json(*field) : Json(); }});
}

void OptionTable::bytes(const std::string& name, int64_t& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "SIZE",
         .help = help,
         .set = [&field](const Words& words) { field = parse_bytes(only(words)); },
         .value = [&field] { return Json(field); }});
}

void OptionTable::number(const std::string& name, double& field, const std::string& help, double least) {
    add({.name = name,
         .short_names = "",
         .metavar = "X",
         .help = help,
         .set =
             [&field, least](const Words& words) {
                 const double value = parse_number(only(words));
                 if (value < least) fail_usage(fmt::format("{} is below {}", value, least));
                 field = value;
             },
         .value = [&field] { return Json(field); }});
}

void OptionTable::number(const std::string& name, std::optional<double>& field, const std::string& help,
                         double least) {
    add({.name = name,
         .short_names = "",
         .metavar = "X",
         .help = help,
         .set =
             [&field, least](const Words& words) {
                 const double value = parse_number(only(words));
                 if (value < least) fail_usage(fmt::format("{} is below {}", value, least));
                 field = value;
             },
         .value = [&field] { return field ? Json(*field) : Json(); }});
}

void OptionTable::seconds(const std::string& name, std::optional<double>& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "TIME",
         .help = help,
         .set = [&field](const Words& words) { field = parse_seconds(only(words)); },
         .value = [&field] { return field ? Json(fmt::format("{}s", *field)) : Json(); }});
}

void OptionTable::amount(const std::string& name, AmountOf unit, std::optional<Amount>& field,
                         const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = unit == AmountOf::bytes ? "SIZE|N%" : "N|N%",
         .help = help,
         .set = [&field, unit](const Words& words) { field = Amount::parse(only(words), unit); },
         .value = [&field] { return field ? Json(field->text()) : Json(); }});
}

void OptionTable::choices(const std::string& name, std::vector<int64_t>& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "N|A..B|N,N",
         .help = help,
         .set = [&field](const Words& words) { field = parse_choices(only(words)); },
         .value = [&field] { return field.empty() ? Json() : Json(field); }});
}

void OptionTable::optional_choices(const std::string& name, std::optional<std::vector<int64_t>>& field,
                                   const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = "[W,W]",
         .help = help,
         .arity = Arity::optional_one,
         .set =
             [&field](const Words& words) {
                 if (words.empty())
                     field.emplace();
                 else if (only(words) == "false")
                     field.reset();
                 else
                     field = parse_choices(words[0]);
             },
         .value =
             [&field] {
                 if (!field) return Json(false);
                 return field->empty() ? Json(true) : Json(*field);
             }});
}

void OptionTable::optional_text(const std::string& name, const std::string& metavar,
                                std::optional<std::string>& field, const std::string& help) {
    add({.name = name,
         .short_names = "",
         .metavar = metavar,
         .help = help,
         .arity = Arity::optional_one,
         .set =
             [&field](const Words& words) {
                 if (words.empty())
                     field.emplace();
                 else if (only(words) == "false")
                     field.reset();
                 else
                     field = words[0];
             },
         .value =
             [&field] {
                 if (!field) return Json(false);
                 return field->empty() ? Json(true) : Json(*field);
             }});
}

void OptionTable::positional(const std::string& name, std::string& field, const std::string& help) {
    text(name, "", field, help);
    options_.back().positional = true;
}

void OptionTable::positionals(const std::string& name, std::vector<std::string>& field,
                              const std::string& help) {
    texts(name, "", field, help);
    options_.back().positional = true;
}

const Option* OptionTable::find(const std::string& name) const {
    for (const Option& option : options_)
        if (option.name == name) return &option;
    return nullptr;
}

void OptionTable::set(const Option& option, const Words& words) const {
    try {
        option.set(words);
    } catch (const Error& error) {
        fail_usage(fmt::format("{}{}: {}", option.positional ? "" : "--", option.name, error.what()));
    }
}

void OptionTable::apply(const Json& section, const std::string& where, const Words& reserved) const {
    if (!section.is_object())
        fail_input(fmt::format("{}: found {}, expected keys and values", where, section.type_name()));
    for (const auto& [key, value] : section.items()) {
        if (key == "notes") continue;
        const Option* option = find(key);
        if (std::find(reserved.begin(), reserved.end(), key) != reserved.end()) option = nullptr;
        if (!option) {
            Words known;
            for (const Option& each : options_)
                if (std::find(reserved.begin(), reserved.end(), each.name) == reserved.end())
                    known.push_back(each.name);
            fail_input(
                fmt::format("{}: unknown key '{}', expected one of {}", where, key, fmt::join(known, ", ")));
        }
        if (value.is_null()) continue;
        try {
            option->set(words_of(*option, value));
        } catch (const Error& error) {
            fail_input(fmt::format("{}: {}: {}", where, key, error.what()));
        }
    }
}

Json OptionTable::to_json() const {
    Json json = Json::object();
    for (const Option& option : options_) json[option.name] = option.value();
    return json;
}

}  // namespace minipuzzle::cli
