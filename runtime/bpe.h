// Byte-level byte-pair encoding: the "model" of a tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace minipuzzle {

// Ids at or above this are refused: tables are indexed by id.
inline constexpr int64_t kMaxTokenIds = int64_t{1} << 22;

// The bytes that a text in GPT-2's printable alphabet stands for ("Ġthe" is " the"); empty where a character
// is not of the alphabet.
std::optional<std::string> bytes_of_printable(std::string_view text);

struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using TokenMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// (left id, right id) -> (rank, id of the whole): open addressing, filled once.
class MergeTable {
  public:
    struct Merge {
        int32_t rank = 0, id = 0;
    };
    // `count`: how many insert calls will follow at most.
    explicit MergeTable(std::size_t count = 0);
    // A pair given again replaces the earlier one, as in the `tokenizers` library.
    void insert(int32_t left, int32_t right, Merge merge);
    // Null where the pair does not merge.
    const Merge* find(int32_t left, int32_t right) const {
        const Slot& slot = slots_[place_of(key_of(left, right))];
        return slot.key == kEmpty ? nullptr : &slot.merge;
    }

  private:
    static constexpr uint64_t kEmpty = ~uint64_t{0};
    struct Slot {
        uint64_t key = kEmpty;
        Merge merge;
    };
    static uint64_t key_of(int32_t left, int32_t right) {
        return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    }
    // The slot that holds `key`, or the empty one where it belongs.
    std::size_t place_of(uint64_t key) const {
        std::size_t at = (key * 0x9e3779b97f4a7c15u) >> shift_;
        while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
        return at;
    }
    std::vector<Slot> slots_;
    int shift_ = 0;
};

class Bpe {
  public:
    // Reads {"type": "BPE", "vocab", "merges", "ignore_merges", ...}. Error bad_input names what is wrong or
    // unsupported (dropout, sub-word affixes).
    explicit Bpe(const nlohmann::json& model);

    // Appends the ids of one piece of the pre-tokenizer, given as raw bytes.
    void encode(std::string_view piece, std::vector<int32_t>& ids) const;

    // Id of a token in the file's spelling (GPT-2's alphabet where it applies); -1 where absent.
    int32_t id_of(std::string_view token) const;

    // Calls visit(bytes, id) for every token: its bytes, or its text where that is not of the alphabet.
    void for_each(const std::function<void(const std::string&, int32_t)>& visit) const;

  private:
    void read_vocab(const nlohmann::json& vocab);
    void read_merges(const nlohmann::json& merges);
    void merge_short(std::vector<int32_t>& symbols) const;
    void merge_long(std::vector<int32_t>& symbols) const;

    TokenMap by_bytes_;  // tokens of the alphabet, by the bytes they stand for
    TokenMap by_text_;   // the others, by their text: no piece ever matches them
    std::array<int32_t, 256> byte_ids_{};
    MergeTable merges_;
    bool ignore_merges_ = false;
};

}  // namespace minipuzzle
