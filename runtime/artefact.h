// What every file of ours has in common: the format line, strict reading, JSON from YAML.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace minipuzzle {

using Json = nlohmann::ordered_json;

// The tool's version, from CMake.
const char* version();

// Who made an artefact: the command line as typed, the seed.
struct Provenance {
    std::string command;
    uint64_t seed = 0;
};

// The model an artefact speaks of. `pattern` is left out where empty, `weights_hash` may be empty in a file.
struct ModelIdentity {
    std::string path, pattern, arch_hash, weights_hash;
};

// {"format": format, "version": ..., "command": ..., "seed": ...}: the opening keys of every artefact.
Json artefact_header(const std::string& format, const Provenance& provenance);
Json to_json(const ModelIdentity& model);

// Strict reading of one JSON object: every key must be asked for, `notes` is always allowed. Messages name
// the file and the path of the value ("scores.json: layers[3].kl: found a string, expected a number or
// null").
class ObjectReader {
  public:
    ObjectReader(const Json& object, std::string where);

    bool has(const std::string& key) const;        // present and not null
    const Json& required(const std::string& key);  // the raw value; Error where absent
    const Json* optional(const std::string& key);  // nullptr where absent or null
    std::string text(const std::string& key);
    std::string text(const std::string& key, const std::string& fallback);
    int64_t integer(const std::string& key);
    int64_t integer(const std::string& key, int64_t fallback);
    double number(const std::string& key);
    std::optional<double> optional_number(const std::string& key);
    bool boolean(const std::string& key, bool fallback);
    std::vector<int64_t> integers(const std::string& key);
    ObjectReader object(const std::string& key);
    // Calls read(ObjectReader) for every element of an array of objects.
    template <class Read>
    void each(const std::string& key, Read read) {
        const Json& array = required(key);
        expect(array.is_array(), key, "an array");
        for (std::size_t i = 0; i < array.size(); ++i)
            read(ObjectReader(array[i], where_ + key + "[" + std::to_string(i) + "]"));
    }
    // Reads and checks `format`, and accepts version, command and seed.
    Provenance header(const std::string& format);
    ModelIdentity model(const std::string& key);
    void ignore(const std::string& key);
    // Error on any key nobody asked for; call it last.
    void finish() const;
    const std::string& where() const { return where_; }
    // Error bad_input about a key ("KEY: found ..."), which `what` opens with.
    [[noreturn]] void fail(const std::string& what) const;

  private:
    void expect(bool ok, const std::string& key, const char* expected) const;
    [[noreturn]] void fail_here(const std::string& what) const;  // about the object itself
    const Json& object_;
    std::string where_;  // "FILE: " or "FILE: path."
    std::vector<std::string> asked_;
};

// Strict JSON text: duplicate keys, trailing text, broken UTF-8 and nesting beyond 100 levels are Error
// bad_input; `where` opens the message.
Json parse_json(const std::string& text, const std::string& where);
// The same with sorted keys: for large foreign objects, whose lookups must not be linear.
nlohmann::json parse_sorted_json(const std::string& text, const std::string& where);
// "a string", "a number", ...: what a message says was found.
std::string kind_of(const Json& value);

// A JSON file of ours (strict JSON: no duplicate keys).
Json read_json(const std::filesystem::path& path);
// A YAML file as JSON: plain scalars become numbers, booleans or null by YAML 1.2's core schema, quoted ones
// strings.
Json read_yaml(const std::filesystem::path& path);
// Readable JSON: two-space indent, short arrays and objects of numbers kept on one line; doubles shortest
// round-trip.
std::string pretty(const Json& json);

}  // namespace minipuzzle
