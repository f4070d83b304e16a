#include "runtime/artefact.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle {
namespace {

constexpr int kDeepest = 100;

// nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without its bracket.
std::string plain_reason(const std::string& what) {
    const std::size_t bracket = what.find("] ");
    std::string reason = bracket == std::string::npos ? what : what.substr(bracket + 2);
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    return reason;
}

template <class Value>
Value parse_strict(const std::string& text, const std::string& where) {
    std::vector<std::set<std::string>> keys;
    const auto check = [&](int depth, typename Value::parse_event_t event, Value& parsed) {
        using Event = typename Value::parse_event_t;
        if (depth > kDeepest) fail_input(fmt::format("{}: nested deeper than {} levels", where, kDeepest));
        if (event == Event::object_start) keys.emplace_back();
        if (event == Event::object_end) keys.pop_back();
        if (event == Event::key && !keys.back().insert(parsed.template get<std::string>()).second)
            fail_input(
                fmt::format("{}: the key \"{}\" appears twice", where, parsed.template get<std::string>()));
        return true;
    };
    try {
        return Value::parse(text, check);
    } catch (const typename Value::exception& error) {
        fail_input(fmt::format("{}: is not valid JSON: {}", where, plain_reason(error.what())));
    }
}

// "FILE" -> "FILE: ", "FILE: layers[3]" -> "FILE: layers[3].".
std::string as_prefix(const std::string& where) {
    if (where.empty() || where.ends_with(": ") || where.ends_with('.')) return where;
    return where + (where.find(": ") == std::string::npos ? ": " : ".");
}

bool is_whole(const Json& value) {
    if (value.is_number_integer())
        return !value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    // 1e6 is a whole number too; beyond 2^53 a double no longer says which.
    return value.is_number_float() && std::abs(value.get<double>()) <= 9007199254740992.0 &&
           std::trunc(value.get<double>()) == value.get<double>();
}

int64_t as_integer(const Json& value) {
    return value.is_number_float() ? static_cast<int64_t>(value.get<double>()) : value.get<int64_t>();
}

}  // namespace

const char* version() { return MINIPUZZLE_VERSION; }

Json artefact_header(const std::string& format, const Provenance& provenance) {
    return {{"format", format},
            {"version", version()},
            {"command", provenance.command},
            {"seed", provenance.seed}};
}

Json to_json(const ModelIdentity& model) {
    Json json = {{"path", model.path}};
    if (!model.pattern.empty()) json["pattern"] = model.pattern;
    json["arch_hash"] = model.arch_hash;
    json["weights_hash"] = model.weights_hash;
    return json;
}

Json parse_json(const std::string& text, const std::string& where) { return parse_strict<Json>(text, where); }

nlohmann::json parse_sorted_json(const std::string& text, const std::string& where) {
    return parse_strict<nlohmann::json>(text, where);
}

std::string kind_of(const Json& value) {
    if (value.is_null()) return "null";
    if (value.is_boolean()) return value.get<bool>() ? "true" : "false";
    if (value.is_number()) return "the number " + value.dump();
    if (value.is_string()) {
        const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
        return text.size() <= 60 ? text : "a string";
    }
    return value.is_array() ? "an array" : "an object";
}

Json read_json(const std::filesystem::path& path) { return parse_json(read_file(path), path.string()); }

ObjectReader::ObjectReader(const Json& object, std::string where)
    : object_(object), where_(as_prefix(where)) {
    if (object.is_object()) return;
    fail_here(fmt::format("found {}, expected an object", kind_of(object)));
}

void ObjectReader::fail(const std::string& what) const { fail_input(where_ + what); }

void ObjectReader::fail_here(const std::string& what) const {
    std::string here = where_;
    while (here.ends_with(' ') || here.ends_with(':') || here.ends_with('.')) here.pop_back();
    fail_input(here + ": " + what);
}

void ObjectReader::expect(bool ok, const std::string& key, const char* expected) const {
    if (!ok) fail(fmt::format("{}: found {}, expected {}", key, kind_of(object_.at(key)), expected));
}

bool ObjectReader::has(const std::string& key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
}

const Json& ObjectReader::required(const std::string& key) {
    asked_.push_back(key);
    const auto found = object_.find(key);
    if (found == object_.end()) fail_here(fmt::format("the key \"{}\" is missing", key));
    return *found;
}

const Json* ObjectReader::optional(const std::string& key) {
    asked_.push_back(key);
    return has(key) ? &object_.at(key) : nullptr;
}

std::string ObjectReader::text(const std::string& key) {
    const Json& value = required(key);
    expect(value.is_string(), key, "a string");
    return value.get<std::string>();
}

std::string ObjectReader::text(const std::string& key, const std::string& fallback) {
    return optional(key) ? text(key) : fallback;
}

int64_t ObjectReader::integer(const std::string& key) {
    const Json& value = required(key);
    expect(is_whole(value), key, "a whole number");
    return as_integer(value);
}

int64_t ObjectReader::integer(const std::string& key, int64_t fallback) {
    return optional(key) ? integer(key) : fallback;
}

double ObjectReader::number(const std::string& key) {
    const Json& value = required(key);
    expect(value.is_number(), key, "a number");
    return value.get<double>();
}

std::optional<double> ObjectReader::optional_number(const std::string& key) {
    const Json* value = optional(key);
    if (!value) return std::nullopt;
    expect(value->is_number(), key, "a number or null");
    return value->get<double>();
}

bool ObjectReader::boolean(const std::string& key, bool fallback) {
    const Json* value = optional(key);
    if (!value) return fallback;
    expect(value->is_boolean(), key, "true or false");
    return value->get<bool>();
}

std::vector<int64_t> ObjectReader::integers(const std::string& key) {
    const Json& array = required(key);
    expect(array.is_array(), key, "an array of whole numbers");
    std::vector<int64_t> values;
    for (std::size_t i = 0; i < array.size(); ++i) {
        if (!is_whole(array[i]))
            fail(fmt::format("{}[{}]: found {}, expected a whole number", key, i, kind_of(array[i])));
        values.push_back(as_integer(array[i]));
    }
    return values;
}

ObjectReader ObjectReader::object(const std::string& key) {
    return ObjectReader(required(key), where_ + key);
}

Provenance ObjectReader::header(const std::string& format) {
    const std::string found = text("format");
    if (found != format) fail(fmt::format("format: found \"{}\", expected \"{}\"", found, format));
    ignore("version");
    Provenance provenance;
    provenance.command = text("command", "");
    const int64_t seed = integer("seed", 0);
    if (seed < 0) fail(fmt::format("seed: found {}, expected a number that is not negative", seed));
    provenance.seed = static_cast<uint64_t>(seed);
    return provenance;
}

ModelIdentity ObjectReader::model(const std::string& key) {
    ObjectReader reader = object(key);
    ModelIdentity model{.path = reader.text("path"),
                        .pattern = reader.text("pattern", ""),
                        .arch_hash = reader.text("arch_hash"),
                        .weights_hash = reader.text("weights_hash", "")};
    reader.finish();
    return model;
}

void ObjectReader::ignore(const std::string& key) { asked_.push_back(key); }

void ObjectReader::finish() const {
    for (const auto& [key, value] : object_.items())
        if (key != "notes" && std::find(asked_.begin(), asked_.end(), key) == asked_.end())
            fail_here(fmt::format("the key \"{}\" is unknown; free text goes under \"notes\"", key));
}

}  // namespace minipuzzle
