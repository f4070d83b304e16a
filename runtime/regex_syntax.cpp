// Oniguruma's (Ruby's) pattern syntax to PCRE2's: only what both read alike passes.
#include <fmt/format.h>

#include <cctype>

#include "kernels/check.h"
#include "runtime/unicode_regex.h"

namespace minipuzzle {
namespace {

// Under PCRE2_UCP \s also matches U+180E, so the set is spelled out; its complement serves \S inside classes.
constexpr std::string_view kWhiteSpace =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr std::string_view kNonWhiteSpace =
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{"
    "2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

class Translator {
  public:
    explicit Translator(std::string_view pattern) : in_(pattern) {}

    std::string run() {
        while (at_ < in_.size()) {
            switch (in_[at_]) {
                case '\\':
                    escape(Inside::pattern);
                    break;
                case '[':
                    character_class();
                    break;
                case '(':
                    group();
                    break;
                case '{':
                    braces();
                    break;
                case '^':
                case '$':
                    unsupported("an anchor (^ or $)");
                default:
                    copy(1);
            }
        }
        return std::move(out_);
    }

  private:
    enum class Inside { pattern, character_class };

    char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
    bool next_is(std::string_view text) const { return in_.substr(at_, text.size()) == text; }
    void copy(std::size_t count) {
        out_ += in_.substr(at_, count);
        at_ += count;
    }
    [[noreturn]] void unsupported(const std::string& what) const {
        fail_input(fmt::format("regular expression has {} at byte {}, which is not supported", what, at_));
    }

    void escape(Inside inside) {
        const char letter = peek(1);
        if (letter == 's' || letter == 'S') return white_space(letter == 's', inside);
        if (letter == 'p' || letter == 'P') return property();
        if (letter == 'u' || letter == 'x') return code_point();
        const bool alike =
            letter != '\0' && std::string_view("rntfaedD").find(letter) != std::string_view::npos;
        const bool punctuation = std::ispunct(static_cast<unsigned char>(letter)) != 0;
        if (!alike && !punctuation && letter != ' ') {
            unsupported(letter == '\0' ? "a \\ at its end" : fmt::format("\\{}", letter));
        }
        copy(2);
    }

    void white_space(bool positive, Inside inside) {
        const std::string_view set = positive ? kWhiteSpace : kNonWhiteSpace;
        if (inside == Inside::pattern) {
            out_ += fmt::format("[{}]", set);
        } else {
            if (peek(2) == '-' && peek(3) != ']') unsupported("a range that starts at \\s");
            out_ += set;
        }
        at_ += 2;
    }

    void property() {
        const std::size_t close = in_.find('}', at_);
        if (peek(2) != '{' || close == std::string_view::npos) unsupported("\\p without {name}");
        copy(close + 1 - at_);
    }

    // \uHHHH and \x{H...}; \xHH is a raw byte in Oniguruma unless it is ASCII.
    void code_point() {
        if (next_is("\\x{")) {
            const std::size_t close = in_.find('}', at_);
            if (close == std::string_view::npos) unsupported("\\x{ without }");
            return copy(close + 1 - at_);
        }
        const std::size_t digits = peek(1) == 'u' ? 4 : 2;
        const std::string_view hex = in_.substr(at_ + 2, digits);
        for (const char c : hex) {
            if (std::isxdigit(static_cast<unsigned char>(c)) == 0)
                unsupported("a code point of too few digits");
        }
        if (hex.size() != digits) unsupported("a code point of too few digits");
        if (digits == 2 && hex[0] > '7') unsupported("\\x beyond 7f");
        out_ += fmt::format("\\x{{{}}}", hex);
        at_ += 2 + digits;
    }

    void character_class() {
        copy(1);
        if (peek() == '^') copy(1);
        if (peek() == ']') unsupported("an empty character class");
        while (peek() != ']') {
            if (at_ >= in_.size()) unsupported("a character class that does not end");
            if (peek() == '[') unsupported("a class within a class");
            if (next_is("&&")) unsupported("a class intersection (&&)");
            if (peek() == '-' && (next_is("-\\s") || next_is("-\\S")) && out_.back() != '[' &&
                out_.back() != '^') {
                unsupported("a range that ends at \\s");
            }
            if (peek() == '\\') {
                escape(Inside::character_class);
            } else {
                copy(1);
            }
        }
        copy(1);
    }

    void group() {
        for (const std::string_view open : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
            if (next_is(open)) return copy(open.size());
        }
        if (peek(1) == '?' || peek(1) == '*') unsupported("a group of an unknown kind");
        copy(1);
    }

    // {n}, {n,} and {n,m} only: {,n} is {0,n} in one dialect and text in the other, a + behind is possessive
    // in one and a repetition in the other.
    void braces() {
        const std::size_t close = in_.find('}', at_);
        const std::string_view body = in_.substr(at_, close - at_);
        const bool digits = body.size() > 1 && std::isdigit(static_cast<unsigned char>(body[1])) != 0 &&
                            body.find_first_not_of("0123456789,", 1) == std::string_view::npos;
        if (close == std::string_view::npos || !digits) unsupported("a { that is no {n,m}");
        copy(close + 1 - at_);
        if (peek() == '+') unsupported("a + after {n,m}");
    }

    std::string_view in_;
    std::size_t at_ = 0;
    std::string out_;
};

}  // namespace

std::string to_pcre2(std::string_view pattern) {
    if (pattern.find('\0') != std::string_view::npos) fail_input("regular expression holds a NUL byte");
    return Translator(pattern).run();
}

}  // namespace minipuzzle
