// Added tokens of a tokenizer.json: texts that are one token wherever they stand.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/bpe.h"
#include "runtime/unicode_regex.h"

namespace minipuzzle {

// A stretch of text: an added token's id, or -1 for text between them.
struct Stretch {
    std::string_view text;
    int32_t id = -1;
};

struct AddedToken {
    std::string content;
    int32_t id = 0;
    bool special = false;
    bool single_word = false;  // only where no word character touches it
    bool lstrip = false;       // takes the white space to its left
    bool rstrip = false;       // and to its right
    bool normalized = false;   // looked for after those that are not (there is no normalizer to run)
};

class AddedTokens {
  public:
    // Reads the list "added_tokens" (null: none). Error bad_input on wrong types, repeated texts or ids, and
    // ids that contradict the vocabulary's.
    AddedTokens(const nlohmann::json& list, const Bpe& vocabulary);

    // Cuts text into added tokens and what lies between: leftmost, the longest of those that start together.
    std::vector<Stretch> split(std::string_view text) const;

    const std::vector<AddedToken>& tokens() const { return tokens_; }
    // Index into tokens(); empty where absent.
    std::optional<std::size_t> find(std::string_view content) const;

  private:
    // Tokens to look for in one go: by content, and for each first byte the lengths that occur, longest
    // first.
    struct Pass {
        TokenMap indices;  // content -> index into tokens_
        std::array<std::vector<std::size_t>, 256> lengths;
    };
    void add(AddedToken token, const Bpe& vocabulary);
    void split_pass(const Pass& pass, std::string_view text, std::vector<Stretch>& out) const;
    const AddedToken* match(const Pass& pass, std::string_view text) const;
    bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) const;

    std::vector<AddedToken> tokens_;
    std::array<Pass, 2> passes_;  // normalized: false, then true
    std::optional<UnicodeRegex> word_character_;
};

}  // namespace minipuzzle
