#include "runtime/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "kernels/check.h"

namespace minipuzzle {
namespace {

using nlohmann::json;

// Word characters of Unicode's \w (UTS 18): Alphabetic, marks, decimal digits, connectors, join controls. The
// ranges are the symbols that are Alphabetic.
constexpr std::string_view kWordCharacter =
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
    "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]";

bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

// The code point at the start or the end of text, as bytes; empty for empty text.
std::string_view first_character(std::string_view text) {
    std::size_t length = text.empty() ? 0 : 1;
    while (length < text.size() && continues(text[length])) ++length;
    return text.substr(0, length);
}
std::string_view last_character(std::string_view text) {
    if (text.empty()) return text;
    std::size_t begin = text.size() - 1;
    while (begin > 0 && continues(text[begin])) --begin;
    return text.substr(begin);
}

// White space is at most three bytes long, so four-byte and ill-formed characters need no decoding.
bool is_space_character(std::string_view character) {
    const auto byte = [&](std::size_t i) {
        return static_cast<char32_t>(static_cast<unsigned char>(character[i]));
    };
    switch (character.size()) {
        case 1:
            return is_white_space(byte(0));
        case 2:
            return is_white_space((byte(0) & 0x1f) << 6 | (byte(1) & 0x3f));
        case 3:
            return is_white_space((byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f));
        default:
            return false;
    }
}

AddedToken read_token(const json& entry, std::size_t index) {
    const auto fail = [&](const std::string& what) {
        fail_input(fmt::format("added_tokens[{}] {}", index, what));
    };
    if (!entry.is_object()) fail("is not an object");
    AddedToken token;
    const auto content = entry.find("content");
    if (content == entry.end() || !content->is_string()) fail("has no text \"content\"");
    token.content = content->get<std::string>();
    const auto id = entry.find("id");
    const bool fits = id != entry.end() && id->is_number_unsigned() &&
                      id->get<uint64_t>() < static_cast<uint64_t>(kMaxTokenIds);
    if (!fits) fail(fmt::format("has no \"id\" in [0, {})", kMaxTokenIds));
    token.id = id->get<int32_t>();
    const auto flag = [&](const char* key, bool& value) {
        const auto found = entry.find(key);
        if (found == entry.end()) return;
        if (!found->is_boolean()) fail(fmt::format("has a \"{}\" that is not true or false", key));
        value = found->get<bool>();
    };
    flag("special", token.special);
    token.normalized = !token.special;  // the library's default
    flag("normalized", token.normalized);
    flag("single_word", token.single_word);
    flag("lstrip", token.lstrip);
    flag("rstrip", token.rstrip);
    return token;
}

}  // namespace

AddedTokens::AddedTokens(const json& list, const Bpe& vocabulary) {
    if (list.is_null()) return;
    if (!list.is_array()) fail_input("\"added_tokens\" is not a list");
    std::unordered_map<int32_t, std::string> content_of;
    for (std::size_t i = 0; i < list.size(); ++i) {
        AddedToken token = read_token(list[i], i);
        if (token.content.empty()) continue;  // matches nothing
        if (!content_of.emplace(token.id, token.content).second) {
            fail_input(fmt::format("added_tokens gives id {} twice", token.id));
        }
        add(std::move(token), vocabulary);
    }
    vocabulary.for_each([&](const std::string&, int32_t id) {
        const auto added = content_of.find(id);
        if (added == content_of.end() || vocabulary.id_of(added->second) == id) return;
        fail_input(fmt::format("added_tokens gives {} the id {}, which model.vocab gives to another token",
                               json(added->second).dump(), id));
    });
}

void AddedTokens::add(AddedToken token, const Bpe& vocabulary) {
    const std::string shown = json(token.content).dump();
    if (find(token.content)) fail_input(fmt::format("added_tokens lists {} twice", shown));
    const int32_t known = vocabulary.id_of(token.content);
    if (known >= 0 && known != token.id) {
        fail_input(
            fmt::format("added_tokens gives {} the id {}, but model.vocab {}", shown, token.id, known));
    }
    if (token.single_word && !word_character_) word_character_.emplace(kWordCharacter);
    Pass& pass = passes_[token.normalized ? 1 : 0];
    pass.indices.emplace(token.content, static_cast<int32_t>(tokens_.size()));
    auto& lengths = pass.lengths[static_cast<unsigned char>(token.content[0])];
    const auto place =
        std::lower_bound(lengths.begin(), lengths.end(), token.content.size(), std::greater<>());
    if (place == lengths.end() || *place != token.content.size()) lengths.insert(place, token.content.size());
    tokens_.push_back(std::move(token));
}

std::optional<std::size_t> AddedTokens::find(std::string_view content) const {
    for (const Pass& pass : passes_) {
        const auto found = pass.indices.find(content);
        if (found != pass.indices.end()) return static_cast<std::size_t>(found->second);
    }
    return std::nullopt;
}

std::vector<Stretch> AddedTokens::split(std::string_view text) const {
    std::vector<Stretch> first, all;
    split_pass(passes_[0], text, first);
    for (const Stretch& stretch : first) {
        if (stretch.id >= 0) {
            all.push_back(stretch);
        } else {
            split_pass(passes_[1], stretch.text, all);
        }
    }
    return all;
}

// The longest token of the pass that `text` starts with.
const AddedToken* AddedTokens::match(const Pass& pass, std::string_view text) const {
    for (const std::size_t length : pass.lengths[static_cast<unsigned char>(text[0])]) {
        if (length > text.size()) continue;
        const auto found = pass.indices.find(text.substr(0, length));
        if (found != pass.indices.end()) return &tokens_[static_cast<std::size_t>(found->second)];
    }
    return nullptr;
}

bool AddedTokens::stands_alone(std::string_view text, std::size_t begin, std::size_t end) const {
    for (const std::string_view neighbour :
         {last_character(text.substr(0, begin)), first_character(text.substr(end))}) {
        if (neighbour.empty()) continue;
        if (word_character_->matches(neighbour)) return false;
    }
    return true;
}

// As the library: matches never overlap and are found before white space is stripped, so a token that is
// refused for touching a word still hides the shorter ones within it.
void AddedTokens::split_pass(const Pass& pass, std::string_view text, std::vector<Stretch>& out) const {
    std::size_t done = 0;  // text before this is in `out`
    for (std::size_t at = 0; at < text.size();) {
        const AddedToken* token = match(pass, text.substr(at));
        if (token == nullptr) {
            ++at;
            continue;
        }
        std::size_t begin = at, end = at + token->content.size();
        at = end;
        if (token->single_word && !stands_alone(text, begin, end)) continue;
        while (token->lstrip && begin > done) {
            const std::string_view before = last_character(text.substr(done, begin - done));
            if (!is_space_character(before)) break;
            begin -= before.size();
        }
        while (token->rstrip && end < text.size()) {
            const std::string_view after = first_character(text.substr(end));
            if (!is_space_character(after)) break;
            end += after.size();
        }
        if (begin > done) out.push_back({.text = text.substr(done, begin - done), .id = -1});
        out.push_back({.text = text.substr(begin, end - begin), .id = token->id});
        done = std::max(done, end);
    }
    if (done < text.size()) out.push_back({.text = text.substr(done), .id = -1});
}

}  // namespace minipuzzle
