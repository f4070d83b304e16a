// YAML as JSON, scalars by YAML 1.2's core schema.
#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <set>

#include "kernels/check.h"
#include "runtime/artefact.h"
#include "runtime/files.h"

namespace minipuzzle {
namespace {

constexpr int kDeepest = 100;
constexpr int64_t kMostNodes = 1'000'000;  // aliases can make a small file expand without end

class YamlReader {
  public:
    explicit YamlReader(std::string where) : where_(std::move(where)) {}

    Json convert(const YAML::Node& node, int depth = 0) {
        if (depth > kDeepest || ++nodes_ > kMostNodes) fail(node, "too deep or too large");
        switch (node.Type()) {
            case YAML::NodeType::Scalar:
                return scalar(node);
            case YAML::NodeType::Sequence: {
                Json array = Json::array();
                for (const YAML::Node& element : node) array.push_back(convert(element, depth + 1));
                return array;
            }
            case YAML::NodeType::Map:
                return map(node, depth);
            default:
                return nullptr;
        }
    }

  private:
    [[noreturn]] void fail(const YAML::Node& node, const std::string& what) const {
        fail_input(fmt::format("{}: line {}: {}", where_, node.Mark().line + 1, what));
    }

    Json map(const YAML::Node& node, int depth) {
        Json object = Json::object();
        for (const auto& entry : node) {
            if (!entry.first.IsScalar()) fail(entry.first, "a key must be a plain word or number");
            const std::string& key = entry.first.Scalar();
            if (object.contains(key)) fail(entry.first, fmt::format("the key \"{}\" appears twice", key));
            object[key] = convert(entry.second, depth + 1);
        }
        return object;
    }

    Json scalar(const YAML::Node& node) const {
        const std::string& text = node.Scalar();
        if (node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str") return text;
        if (node.Tag() != "?" && !node.Tag().empty())
            fail(node, fmt::format("the tag {} is unknown", node.Tag()));
        if (one_of(text, {"", "~", "null", "Null", "NULL"})) return nullptr;
        if (one_of(text, {"true", "True", "TRUE"})) return true;
        if (one_of(text, {"false", "False", "FALSE"})) return false;
        return number(node, text);
    }

    static bool one_of(const std::string& text, std::initializer_list<const char*> words) {
        for (const char* word : words)
            if (text == word) return true;
        return false;
    }

    // A number where the whole text is one, else the text itself.
    Json number(const YAML::Node& node, const std::string& text) const {
        const char* begin = text.data();
        const char* end = begin + text.size();
        if (*begin == '+') ++begin;
        if (begin > text.data() && *begin == '-') return text;
        int base = 10;
        if (text.starts_with("0x") || text.starts_with("0o")) {
            base = text[1] == 'x' ? 16 : 8;
            begin += 2;
            if (*begin == '-') return text;
        }
        int64_t whole = 0;
        const auto as_whole = std::from_chars(begin, end, whole, base);
        if (as_whole.ptr == end && as_whole.ec == std::errc::result_out_of_range)
            fail(node, fmt::format("the number {} is too large", text));
        if (as_whole.ptr == end && as_whole.ec == std::errc()) return whole;
        const std::string digits = text.substr(text.find_first_not_of("+-") == 1 ? 1 : 0);
        if (one_of(digits, {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"}))
            fail(node, fmt::format("found {}, expected a finite number", text));
        // from_chars also knows "inf" and "nan", which the core schema spells with a dot.
        if (base != 10 || digits.empty() || digits.find_first_not_of("0123456789.eE+-") != std::string::npos)
            return text;
        double value = 0;
        const auto as_double = std::from_chars(begin, end, value);
        if (as_double.ptr == end && as_double.ec == std::errc::result_out_of_range)
            fail(node, fmt::format("the number {} is too large", text));
        return as_double.ptr == end && as_double.ec == std::errc() ? Json(value) : Json(text);
    }

    std::string where_;
    int64_t nodes_ = 0;
};

}  // namespace

Json read_yaml(const std::filesystem::path& path) {
    const std::string text = read_file(path);
    try {
        const std::vector<YAML::Node> documents = YAML::LoadAll(text);
        if (documents.size() > 1)
            fail_input(fmt::format("{}: holds several documents, expected one", path.string()));
        return documents.empty() ? Json() : YamlReader(path.string()).convert(documents[0]);
    } catch (const YAML::Exception& error) {
        fail_input(
            fmt::format("{}: line {}: is not valid YAML: {}", path.string(), error.mark.line + 1, error.msg));
    }
}

}  // namespace minipuzzle
