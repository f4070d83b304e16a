// Hugging Face tokenizer.json: byte-level BPE with the file's own pre-tokenizer regular expression.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace minipuzzle {

// Agrees with the `tokenizers` library: (1) split on added tokens (leftmost-longest; lstrip, rstrip,
// single_word), (2) Split(regex, Isolated) over code points through PCRE2 JIT with \s meaning Unicode
// White_Space (U+180E is not), (3) bytes to GPT-2's printable alphabet, (4) per piece ignore_merges, else
// lowest-rank merges, leftmost first, (5) TemplateProcessing. Merges as "a b" strings or ["a", "b"] pairs.
// Anything else in the file (another model type, a normalizer, another pre-tokenizer) is Error bad_input that
// names it; "truncation" and "padding", which are about batches, are ignored. Safe to use from many threads.
class Tokenizer {
  public:
    explicit Tokenizer(const std::filesystem::path& tokenizer_json);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;

    // Ids of UTF-8 text; with `special` what the template adds (usually <s> in front). Ill-formed UTF-8 is
    // Error.
    std::vector<int32_t> encode(std::string_view text, bool special = true) const;
    // Bytes of the ids; special added tokens are kept as their text unless `skip_special`. Result may be cut
    // UTF-8. Error where an id is not in [0, size()).
    std::string decode(const std::vector<int32_t>& ids, bool skip_special = false) const;
    // 1 + the highest id.
    int64_t size() const;
    // Id of a token's text among the added tokens and the vocabulary; -1 where absent.
    int32_t id_of(std::string_view token) const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle
