// Regular expressions of tokenizer.json (Oniguruma's dialect) run by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace minipuzzle {

// Space, tab, line ends and the rest of Unicode White_Space (U+180E is not among them).
bool is_white_space(char32_t code_point);

// An Oniguruma pattern in PCRE2's syntax with the same meaning under UTF and UCP: \s and \S, inside and
// outside classes, become explicit White_Space sets. Constructs that the two dialects read differently
// (anchors, \w, \h, \v, bare flags, nested classes, {,n}, {n,m}+, ...) are Error bad_input that names them.
std::string to_pcre2(std::string_view pattern);

// A compiled pattern. Thread-safe: every call brings its own scratch.
class UnicodeRegex {
  public:
    // Error bad_input where the pattern is unsupported or ill-formed.
    explicit UnicodeRegex(std::string_view oniguruma_pattern);

    // Appends to `pieces` the matches in `text` and the gaps between them, in order, none of them empty: what
    // the `tokenizers` library calls Split with behavior Isolated. Error bad_input on ill-formed UTF-8 and
    // where the match gives up (catastrophic backtracking).
    void split(std::string_view text, std::vector<std::string_view>& pieces) const;

    // Whether the pattern matches somewhere in `text`; errors as split.
    bool matches(std::string_view text) const;

  private:
    struct Code;
    std::shared_ptr<const Code> code_;
};

}  // namespace minipuzzle
