#include "runtime/bpe.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <queue>
#include <tuple>

#include "kernels/check.h"

namespace minipuzzle {
namespace {

using nlohmann::json;

// GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100, U+0101, ... in
// byte order. Indexed by code point, -1 where no byte has that letter.
constexpr std::array<int16_t, 324> alphabet() {
    std::array<int16_t, 324> byte_of{};
    for (int16_t& byte : byte_of) byte = -1;
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        byte_of[static_cast<std::size_t>(printable ? byte : next++)] = static_cast<int16_t>(byte);
    }
    return byte_of;
}
constexpr std::array<int16_t, 324> kByteOf = alphabet();

const json& member(const json& model, const char* key) {
    const auto found = model.find(key);
    if (found == model.end()) fail_input(fmt::format("model has no \"{}\"", key));
    return *found;
}

void require_absent(const json& model, const char* key) {
    const auto found = model.find(key);
    if (found == model.end() || found->is_null()) return;
    if (found->is_string() && found->get_ref<const std::string&>().empty()) return;
    if (found->is_number() && found->get<double>() == 0) return;
    fail_input(fmt::format("model.{} is {}; only null is supported", key, found->dump()));
}

// "a b" or ["a", "b"].
std::pair<std::string, std::string> merge_parts(const json& merge, std::size_t rank) {
    if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const std::size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
            return {text.substr(0, space), text.substr(space + 1)};
        }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
    fail_input(fmt::format("model.merges[{}] is neither \"a b\" nor [\"a\", \"b\"]", rank));
}

}  // namespace

std::optional<std::string> bytes_of_printable(std::string_view text) {
    std::string bytes;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto first = static_cast<unsigned char>(text[i]);
        uint32_t code_point = first;
        if (first >= 0x80) {  // the alphabet ends at U+0143: two bytes at most
            if ((first & 0xe0) != 0xc0 || i + 1 == text.size()) return std::nullopt;
            code_point = (first & 0x1fu) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3fu);
        }
        if (code_point >= kByteOf.size() || kByteOf[code_point] < 0) return std::nullopt;
        bytes += static_cast<char>(kByteOf[code_point]);
    }
    return bytes;
}

MergeTable::MergeTable(std::size_t count) {
    int bits = 4;
    while ((std::size_t{1} << bits) < 2 * count) ++bits;
    slots_.resize(std::size_t{1} << bits);
    shift_ = 64 - bits;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
    const uint64_t key = key_of(left, right);
    slots_[place_of(key)] = {.key = key, .merge = merge};
}

Bpe::Bpe(const json& model) {
    if (!model.is_object()) fail_input("\"model\" is not an object");
    const json type = model.value("type", json("BPE"));
    if (type != "BPE") fail_input(fmt::format("model.type is {}; only \"BPE\" is supported", type.dump()));
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
        require_absent(model, key);
    }
    const json ignore = model.value("ignore_merges", json(false));
    if (!ignore.is_boolean()) fail_input("model.ignore_merges is not true or false");
    ignore_merges_ = ignore.get<bool>();
    read_vocab(member(model, "vocab"));
    read_merges(member(model, "merges"));
}

void Bpe::read_vocab(const json& vocab) {
    if (!vocab.is_object()) fail_input("model.vocab is not an object of ids");
    std::vector<bool> taken;
    for (const auto& [text, value] : vocab.items()) {
        const bool fits = value.is_number_integer() && value.is_number_unsigned() &&
                          value.get<uint64_t>() < static_cast<uint64_t>(kMaxTokenIds);
        if (!fits) {
            fail_input(fmt::format("model.vocab gives {} the id {}; expected an integer in [0, {})",
                                   json(text).dump(), value.dump(), kMaxTokenIds));
        }
        const auto id = value.get<std::size_t>();
        if (id >= taken.size()) taken.resize(std::max(id + 1, 2 * taken.size()));
        if (taken[id]) fail_input(fmt::format("model.vocab gives id {} to two tokens", id));
        taken[id] = true;
        const std::optional<std::string> bytes = bytes_of_printable(text);
        (bytes ? by_bytes_ : by_text_).emplace(bytes.value_or(text), static_cast<int32_t>(id));
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        const auto found = by_bytes_.find(std::string(1, static_cast<char>(byte)));
        if (found == by_bytes_.end()) {
            fail_input(fmt::format("model.vocab has no token for the byte 0x{:02x}; expected all 256", byte));
        }
        byte_ids_[byte] = found->second;
    }
}

void Bpe::read_merges(const json& merges) {
    if (!merges.is_array()) fail_input("model.merges is not a list");
    merges_ = MergeTable(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        const auto [left, right] = merge_parts(merges[rank], rank);
        for (const std::string& token : {left, right, left + right}) {
            if (id_of(token) < 0) {
                fail_input(fmt::format("model.merges[{}] names {}, which is not in model.vocab", rank,
                                       json(token).dump()));
            }
        }
        merges_.insert(id_of(left), id_of(right), {static_cast<int32_t>(rank), id_of(left + right)});
    }
}

int32_t Bpe::id_of(std::string_view token) const {
    const std::optional<std::string> bytes = bytes_of_printable(token);
    const TokenMap& tokens = bytes ? by_bytes_ : by_text_;
    const auto found = tokens.find(bytes ? std::string_view(*bytes) : token);
    return found == tokens.end() ? -1 : found->second;
}

void Bpe::for_each(const std::function<void(const std::string&, int32_t)>& visit) const {
    for (const TokenMap* tokens : {&by_bytes_, &by_text_}) {
        for (const auto& [text, id] : *tokens) visit(text, id);
    }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
    if (ignore_merges_) {
        if (const auto whole = by_bytes_.find(piece); whole != by_bytes_.end()) {
            ids.push_back(whole->second);
            return;
        }
    }
    thread_local std::vector<int32_t> symbols;
    symbols.clear();
    for (const char byte : piece) symbols.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    constexpr std::size_t kShort = 48;  // below this scanning for the best pair beats keeping a heap
    if (symbols.size() <= kShort) {
        merge_short(symbols);
    } else {
        merge_long(symbols);
    }
    ids.insert(ids.end(), symbols.begin(), symbols.end());
}

// Repeatedly merges the pair of lowest rank, the leftmost of equals, by scanning.
void Bpe::merge_short(std::vector<int32_t>& symbols) const {
    constexpr MergeTable::Merge kNone{.rank = std::numeric_limits<int32_t>::max(), .id = -1};
    const auto merge_at = [&](std::size_t i) {
        const MergeTable::Merge* found = merges_.find(symbols[i], symbols[i + 1]);
        return found == nullptr ? kNone : *found;
    };
    thread_local std::vector<MergeTable::Merge> pairs;  // pairs[i]: what symbols i and i + 1 become
    pairs.clear();
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) pairs.push_back(merge_at(i));
    while (!pairs.empty()) {
        std::size_t best = 0;
        for (std::size_t i = 1; i < pairs.size(); ++i) {
            if (pairs[i].rank < pairs[best].rank) best = i;
        }
        if (pairs[best].rank == kNone.rank) return;
        symbols[best] = pairs[best].id;
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
        pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(best));
        if (best > 0) pairs[best - 1] = merge_at(best - 1);
        if (best < pairs.size()) pairs[best] = merge_at(best);
    }
}

// The same through a heap of candidate pairs over a linked list, n log n for pieces of any length.
void Bpe::merge_long(std::vector<int32_t>& symbols) const {
    constexpr std::size_t kNone = ~std::size_t{0};
    const std::size_t count = symbols.size();
    std::vector<std::size_t> next(count), previous(count);
    for (std::size_t i = 0; i < count; ++i) {
        next[i] = i + 1 < count ? i + 1 : kNone;
        previous[i] = i > 0 ? i - 1 : kNone;
    }
    using Candidate =
        std::tuple<int32_t, std::size_t, int32_t, int32_t>;  // rank, left place, left id, right id
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
    const auto consider = [&](std::size_t left) {
        if (left == kNone || next[left] == kNone) return;
        const int32_t a = symbols[left], b = symbols[next[left]];
        if (const MergeTable::Merge* merge = merges_.find(a, b)) heap.emplace(merge->rank, left, a, b);
    };
    for (std::size_t i = 0; i + 1 < count; ++i) consider(i);
    constexpr int32_t kGone = -1;  // a symbol that became part of its left neighbour
    while (!heap.empty()) {
        const auto [rank, left, a, b] = heap.top();
        heap.pop();
        const std::size_t right = next[left];
        if (symbols[left] != a || right == kNone || symbols[right] != b) continue;  // stale
        symbols[left] = merges_.find(a, b)->id;
        symbols[right] = kGone;
        next[left] = next[right];
        if (next[left] != kNone) previous[next[left]] = left;
        consider(previous[left]);
        consider(left);
    }
    std::erase(symbols, kGone);
}

}  // namespace minipuzzle
