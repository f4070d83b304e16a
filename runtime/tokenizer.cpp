#include "runtime/tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "runtime/added_tokens.h"
#include "runtime/bpe.h"
#include "runtime/files.h"
#include "runtime/unicode_regex.h"

namespace minipuzzle {
namespace {

using nlohmann::json;

// What the post-processor adds around a text.
struct Template {
    std::vector<int32_t> before, after;
};

const json& member(const json& object, const char* key) {
    static const json kNull;
    if (!object.is_object()) return kNull;
    const auto found = object.find(key);
    return found == object.end() ? kNull : *found;
}

// `what` names the value in the message: "pre_tokenizer", "decoder", ...
std::string type_of(const json& object, const std::string& what) {
    const json& type = member(object, "type");
    if (!type.is_string()) fail_input(fmt::format("{} has no \"type\"", what));
    return type.get<std::string>();
}

void require(const json& object, const char* key, const json& expected, const std::string& what) {
    const json& found = member(object, key);
    if (found == expected) return;
    fail_input(fmt::format("{}: {} is {}; only {} is supported", what, key, found.dump(), expected.dump()));
}

// Sequence[Split(Regex, Isolated), ByteLevel without a prefix space and without its own expression].
std::string read_pattern(const json& pre_tokenizer) {
    const std::string type = type_of(pre_tokenizer, "pre_tokenizer");
    const json& list = member(pre_tokenizer, "pretokenizers");
    const std::string expected = "expected a Sequence of Split and ByteLevel";
    if (type != "Sequence") fail_input(fmt::format("pre_tokenizer {} is not supported; {}", type, expected));
    if (!list.is_array()) fail_input("pre_tokenizer has no list \"pretokenizers\"");
    std::string found;
    for (const json& step : list)
        found += (found.empty() ? "" : ", ") + type_of(step, "a pre_tokenizer step");
    if (found != "Split, ByteLevel") {
        fail_input(fmt::format("pre_tokenizer Sequence of [{}] is not supported; {}", found, expected));
    }
    require(list[0], "behavior", "Isolated", "pre_tokenizer Split");
    if (!member(list[0], "invert").is_null()) require(list[0], "invert", false, "pre_tokenizer Split");
    require(list[1], "add_prefix_space", false, "pre_tokenizer ByteLevel");
    require(list[1], "use_regex", false, "pre_tokenizer ByteLevel");
    const json& pattern = member(member(list[0], "pattern"), "Regex");
    if (!pattern.is_string()) fail_input("pre_tokenizer Split has no pattern {\"Regex\": text}");
    return pattern.get<std::string>();
}

// Ids that a {"SpecialToken": {"id": name}} of the template stands for.
std::vector<int32_t> special_ids(const json& processor, const json& piece) {
    const json& name = member(piece, "id");
    if (!name.is_string()) fail_input("post_processor: a SpecialToken has no \"id\"");
    const json& entry =
        member(member(processor, "special_tokens"), name.get_ref<const std::string&>().c_str());
    const json& ids = member(entry, "ids");
    if (!ids.is_array())
        fail_input(fmt::format("post_processor: special_tokens has no ids of {}", name.dump()));
    std::vector<int32_t> result;
    for (const json& id : ids) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(kMaxTokenIds)) {
            fail_input(fmt::format("post_processor: special token {} has the id {}", name.dump(), id.dump()));
        }
        result.push_back(id.get<int32_t>());
    }
    return result;
}

void read_template(const json& processor, Template& result) {
    const json& single = member(processor, "single");
    if (!single.is_array()) fail_input("post_processor: TemplateProcessing has no list \"single\"");
    std::vector<int32_t> before, after;
    bool text_seen = false;
    for (const json& piece : single) {
        if (const json& special = member(piece, "SpecialToken"); !special.is_null()) {
            const std::vector<int32_t> ids = special_ids(processor, special);
            std::vector<int32_t>& side = text_seen ? after : before;
            side.insert(side.end(), ids.begin(), ids.end());
        } else if (member(member(piece, "Sequence"), "id") == "A" && !text_seen) {
            text_seen = true;
        } else {
            fail_input(fmt::format("post_processor: template piece {} is not supported", piece.dump()));
        }
    }
    if (!text_seen) fail_input("post_processor: the template \"single\" has no Sequence A");
    result.before.insert(result.before.begin(), before.begin(), before.end());
    result.after.insert(result.after.end(), after.begin(), after.end());
}

// A null post-processor and ByteLevel (which moves offsets only) add nothing; of a Sequence each wraps the
// last.
void read_post_processor(const json& processor, Template& result) {
    if (processor.is_null()) return;
    const std::string type = type_of(processor, "post_processor");
    if (type == "ByteLevel") return;
    if (type == "TemplateProcessing") return read_template(processor, result);
    if (type != "Sequence") fail_input(fmt::format("post_processor {} is not supported", type));
    const json& list = member(processor, "processors");
    if (!list.is_array()) fail_input("post_processor: Sequence has no list \"processors\"");
    for (const json& step : list) {
        if (member(step, "type") == "Sequence")
            fail_input("post_processor: a Sequence within a Sequence is not supported");
        read_post_processor(step, result);
    }
}

json parse(const std::string& content) {
    try {
        json file = json::parse(content);
        if (!file.is_object()) fail_input("the file is not a JSON object");
        return file;
    } catch (const json::exception& e) {
        fail_input(fmt::format("not JSON ({})", e.what()));
    }
}

}  // namespace

struct Tokenizer::State {
    explicit State(const json& file);
    void fill_ids();

    UnicodeRegex pattern;
    Bpe model;
    AddedTokens added;
    Template around;
    std::vector<std::string> bytes;  // by id; empty where no token has it
    std::vector<bool> special;       // by id
};

Tokenizer::State::State(const json& file)
    : pattern(read_pattern(member(file, "pre_tokenizer"))),
      model(member(file, "model")),
      added(member(file, "added_tokens"), model) {
    const json& normalizer = member(file, "normalizer");
    if (!normalizer.is_null()) {
        fail_input(fmt::format("normalizer {} is not supported", type_of(normalizer, "normalizer")));
    }
    const json& decoder = member(file, "decoder");
    if (!decoder.is_null() && type_of(decoder, "decoder") != "ByteLevel") {
        fail_input(fmt::format("decoder {} is not supported", type_of(decoder, "decoder")));
    }
    read_post_processor(member(file, "post_processor"), around);
    fill_ids();
}

void Tokenizer::State::fill_ids() {
    const auto put = [&](const std::string& text, int32_t id) {
        const auto place = static_cast<std::size_t>(id);
        if (place >= bytes.size()) bytes.resize(place + 1);
        bytes[place] = text;
    };
    model.for_each(put);
    for (const AddedToken& token : added.tokens()) put(token.content, token.id);
    special.resize(bytes.size());
    for (const AddedToken& token : added.tokens())
        special[static_cast<std::size_t>(token.id)] = token.special;
    for (const std::vector<int32_t>* ids : {&around.before, &around.after}) {
        for (const int32_t id : *ids) {
            if (static_cast<std::size_t>(id) < bytes.size() && !bytes[static_cast<std::size_t>(id)].empty())
                continue;
            fail_input(fmt::format("post_processor: the template adds id {}, which no token has", id));
        }
    }
}

Tokenizer::Tokenizer(const std::filesystem::path& tokenizer_json) {
    const std::string content = read_file(tokenizer_json);
    try {
        state_ = std::make_unique<State>(parse(content));
    } catch (const Error& e) {
        throw Error(e.kind(), fmt::format("{}: {}", tokenizer_json.string(), e.what()));
    }
}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
    std::vector<int32_t> ids;
    if (special) ids = state_->around.before;
    std::vector<std::string_view> pieces;
    for (const Stretch& stretch : state_->added.split(text)) {
        if (stretch.id >= 0) {
            ids.push_back(stretch.id);
            continue;
        }
        pieces.clear();
        state_->pattern.split(stretch.text, pieces);
        for (const std::string_view piece : pieces) state_->model.encode(piece, ids);
    }
    if (special) ids.insert(ids.end(), state_->around.after.begin(), state_->around.after.end());
    return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
    std::string text;
    for (const int32_t id : ids) {
        const auto place = static_cast<std::size_t>(id);
        if (id < 0 || id >= size()) {
            fail_input(fmt::format("token id {} is not in [0, {}) of the tokenizer", id, size()));
        }
        if (!skip_special || !state_->special[place]) text += state_->bytes[place];
    }
    return text;
}

int64_t Tokenizer::size() const { return static_cast<int64_t>(state_->bytes.size()); }

int32_t Tokenizer::id_of(std::string_view token) const {
    if (const auto added = state_->added.find(token)) return state_->added.tokens()[*added].id;
    return state_->model.id_of(token);
}

}  // namespace minipuzzle
