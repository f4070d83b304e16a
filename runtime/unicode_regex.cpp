#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/unicode_regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include "kernels/check.h"

namespace minipuzzle {
namespace {

struct FreeMatchData {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using MatchData = std::unique_ptr<pcre2_match_data, FreeMatchData>;

std::string pcre2_message(int code) {
    PCRE2_UCHAR buffer[256];
    pcre2_get_error_message(code, buffer, sizeof buffer);
    return reinterpret_cast<const char*>(buffer);
}

[[noreturn]] void fail_match(int code, const pcre2_match_data* data, std::size_t start) {
    if (code <= PCRE2_ERROR_UTF8_ERR1 && code >= PCRE2_ERROR_UTF8_ERR21) {
        const std::size_t at = pcre2_get_startchar(const_cast<pcre2_match_data*>(data));
        fail_input(fmt::format("text is not UTF-8: {} (byte {} of this stretch)", pcre2_message(code), at));
    }
    fail_input(fmt::format("the pre-tokenizer's regular expression gave up at byte {}: {}", start,
                           pcre2_message(code)));
}

std::size_t length_of_code_point(char first) {
    const auto byte = static_cast<unsigned char>(first);
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

}  // namespace

bool is_white_space(char32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

struct UnicodeRegex::Code {
    explicit Code(const std::string& pattern) {
        int error = 0;
        PCRE2_SIZE offset = 0;
        code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
        if (code == nullptr) {
            fail_input(fmt::format("regular expression is ill-formed: {}", pcre2_message(error)));
        }
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter gives the same matches
    }
    ~Code() { pcre2_code_free(code); }
    Code(const Code&) = delete;
    Code& operator=(const Code&) = delete;

    // The first call (start 0) checks the subject's UTF-8, the later ones need not.
    int match(std::string_view text, std::size_t start, pcre2_match_data* data) const {
        const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
        const uint32_t options = start == 0 ? 0 : PCRE2_NO_UTF_CHECK;
        const int result = pcre2_match(code, subject, text.size(), start, options, data, nullptr);
        if (result != PCRE2_ERROR_JIT_STACKLIMIT) return result;
        return pcre2_match(code, subject, text.size(), start, options | PCRE2_NO_JIT, data, nullptr);
    }

    pcre2_code* code = nullptr;
};

UnicodeRegex::UnicodeRegex(std::string_view oniguruma_pattern)
    : code_(std::make_shared<const Code>(to_pcre2(oniguruma_pattern))) {}

bool UnicodeRegex::matches(std::string_view text) const {
    const MatchData data(pcre2_match_data_create_from_pattern(code_->code, nullptr));
    const int result = code_->match(text, 0, data.get());
    if (result < 0 && result != PCRE2_ERROR_NOMATCH) fail_match(result, data.get(), 0);
    return result >= 0;
}

void UnicodeRegex::split(std::string_view text, std::vector<std::string_view>& pieces) const {
    if (text.empty()) return;
    const MatchData data(pcre2_match_data_create_from_pattern(code_->code, nullptr));
    std::size_t piece = 0;  // where the next piece starts
    std::size_t start = 0;  // where the next match is looked for
    while (start < text.size()) {
        const int result = code_->match(text, start, data.get());
        if (result == PCRE2_ERROR_NOMATCH) break;
        if (result < 0) fail_match(result, data.get(), start);
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data.get());
        if (span[0] > piece) pieces.push_back(text.substr(piece, span[0] - piece));
        if (span[1] > span[0]) pieces.push_back(text.substr(span[0], span[1] - span[0]));
        piece = span[1];
        start = span[1] > span[0] || span[1] >= text.size() ? span[1]
                                                            : span[1] + length_of_code_point(text[span[1]]);
    }
    if (piece < text.size()) pieces.push_back(text.substr(piece));
}

}  // namespace minipuzzle
