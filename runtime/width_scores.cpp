#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <span>

#include "runtime/safetensors.h"
#include "runtime/score_table.h"

namespace minipuzzle {

namespace {

constexpr std::string_view kPrefix = "layers.";
// An order and its scores, as tensors are named, and what they name.
struct Kind {
    std::string_view order, score, unit;
};
constexpr Kind kNeurons{"ffn_neuron_order", "ffn_neuron_score", "neuron"},
    kMambaHeads{"mamba_head_order", "mamba_head_score", "head"},
    kKvHeads{"kv_head_order", "kv_head_score", "KV head"};

struct WidthTensorName {
    int64_t layer = -1;
    std::string what;
};

// "layers.N.WHAT" into its parts; layer -1 where the name is none of ours.
WidthTensorName parse_name(const std::string& name) {
    if (name.rfind(kPrefix, 0) != 0) return {};
    const std::size_t dot = name.find('.', kPrefix.size());
    if (dot == std::string::npos || dot == kPrefix.size() || dot - kPrefix.size() > 9) return {};
    const std::string digits = name.substr(kPrefix.size(), dot - kPrefix.size());
    if (!std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) return {};
    return {.layer = std::stoll(digits), .what = name.substr(dot + 1)};
}

template <class T>
std::vector<T> values_of(const StoredTensor& tensor, DType dtype, std::size_t axes,
                         const std::string& where) {
    if (tensor.dtype != dtype || tensor.shape.size() != axes)
        fail_input(fmt::format("{}: {}: found {} with {} axes, expected {} with {}", where, tensor.name,
                               info(tensor.dtype).name, tensor.shape.size(), info(dtype).name, axes));
    std::vector<T> values(static_cast<std::size_t>(tensor.elements()));
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    return values;
}

// An order must name every unit from `first` on once, else what is cut down would keep one twice.
void check_permutation(std::span<const int32_t> order, std::size_t first, const std::string& where,
                       std::string_view unit) {
    std::vector<bool> seen(order.size(), false);
    for (const int32_t named : order) {
        const auto place = static_cast<std::size_t>(named) - first;  // wraps where below
        const bool in_range = named >= 0 && place < order.size();
        if (!in_range || seen[place])
            fail_input(fmt::format("{}: {} {} is {}, expected each of {}..{} once", where, unit, named,
                                   in_range ? "listed twice" : "out of range", first,
                                   first + order.size() - 1));
        seen[place] = true;
    }
}

std::vector<int32_t> read_order(const StoredTensor& tensor, const Kind& kind, const std::string& where) {
    std::vector<int32_t> order = values_of<int32_t>(tensor, DType::i32, 1, where);
    check_permutation(order, 0, where + ": " + tensor.name, kind.unit);
    return order;
}

std::vector<std::vector<int32_t>> read_grouped_order(const StoredTensor& tensor, const Kind& kind,
                                                     const std::string& where) {
    const std::vector<int32_t> order = values_of<int32_t>(tensor, DType::i32, 2, where);
    const auto per_group = static_cast<std::size_t>(tensor.shape[1]);
    std::vector<std::vector<int32_t>> groups;
    for (std::size_t first = 0; first < order.size(); first += per_group) {
        const auto group = std::span(order).subspan(first, per_group);
        check_permutation(group, first, fmt::format("{}: {}: group {}", where, tensor.name, groups.size()),
                          kind.unit);
        groups.emplace_back(group.begin(), group.end());
    }
    return groups;
}

std::size_t units_of(const std::vector<int32_t>& order) { return order.size(); }
std::size_t units_of(const std::vector<std::vector<int32_t>>& groups) {
    return groups.empty() ? 0 : groups.size() * groups.front().size();
}

// Scores need not be there, but where they are they belong to an order.
template <class Order>
void check_scores_of(const std::map<int64_t, Order>& orders,
                     const std::map<int64_t, std::vector<float>>& scores, const Kind& kind,
                     const std::string& where) {
    for (const auto& [layer, score] : scores) {
        const auto order = orders.find(layer);
        const std::size_t units = order == orders.end() ? 0 : units_of(order->second);
        if (units != score.size())
            fail_input(fmt::format("{}: layer {} has {} scores but {} {}s in its order", where, layer,
                                   score.size(), units, kind.unit));
    }
}

class Writer {
  public:
    template <class T>
    void add(int64_t layer, std::string_view what, const std::vector<T>& values, DType dtype) {
        tensors_.push_back({.name = fmt::format("{}{}.{}", kPrefix, layer, what),
                            .dtype = dtype,
                            .shape = {std::ssize(values)},
                            .bytes = std::as_bytes(std::span(values))});
    }
    void add_scores(int64_t layer, std::string_view what, const std::map<int64_t, std::vector<float>>& of) {
        const auto scores = of.find(layer);
        if (scores != of.end()) add(layer, what, scores->second, DType::f32);
    }
    void add_orders(const Kind& kind, const std::map<int64_t, std::vector<int32_t>>& orders,
                    const std::map<int64_t, std::vector<float>>& scores) {
        for (const auto& [layer, order] : orders) {
            add(layer, kind.order, order, DType::i32);
            add_scores(layer, kind.score, scores);
        }
    }
    void add_orders(const Kind& kind, const std::map<int64_t, std::vector<std::vector<int32_t>>>& orders,
                    const std::map<int64_t, std::vector<float>>& scores) {
        for (const auto& [layer, groups] : orders) {
            std::vector<int32_t>& joined = joined_.emplace_back();
            for (const auto& group : groups) joined.insert(joined.end(), group.begin(), group.end());
            add(layer, kind.order, joined, DType::i32);
            const auto count = std::ssize(groups);
            tensors_.back().shape = {count, count > 0 ? std::ssize(joined) / count : 0};
            add_scores(layer, kind.score, scores);
        }
    }
    void write(const std::filesystem::path& path) const { write_safetensors(path, tensors_); }

  private:
    std::vector<StoredTensor> tensors_;
    std::list<std::vector<int32_t>> joined_;
};

}  // namespace

WidthScores read_width_scores(const std::filesystem::path& path) {
    const SafetensorsFile file(path);
    const std::string where = path.string();
    WidthScores scores;
    const auto read = [&](const StoredTensor& tensor, int64_t layer, const std::string& what) {
        const auto numbers = [&] { return values_of<float>(tensor, DType::f32, 1, where); };
        if (what == kNeurons.order)
            scores.ffn_order[layer] = read_order(tensor, kNeurons, where);
        else if (what == kNeurons.score)
            scores.ffn_score[layer] = numbers();
        else if (what == kMambaHeads.order)
            scores.mamba_head_order[layer] = read_grouped_order(tensor, kMambaHeads, where);
        else if (what == kMambaHeads.score)
            scores.mamba_head_score[layer] = numbers();
        else if (what == kKvHeads.order)
            scores.kv_head_order[layer] = read_order(tensor, kKvHeads, where);
        else if (what == kKvHeads.score)
            scores.kv_head_score[layer] = numbers();
        else
            return false;
        return true;
    };
    for (const StoredTensor& tensor : file.tensors()) {
        const WidthTensorName name = parse_name(tensor.name);
        if (name.layer < 0 || !read(tensor, name.layer, name.what))
            fail_input(fmt::format("{}: tensor {}, expected layers.N. with {}, {} or {} and their scores",
                                   where, tensor.name, kNeurons.order, kMambaHeads.order, kKvHeads.order));
    }
    check_scores_of(scores.ffn_order, scores.ffn_score, kNeurons, where);
    check_scores_of(scores.mamba_head_order, scores.mamba_head_score, kMambaHeads, where);
    check_scores_of(scores.kv_head_order, scores.kv_head_score, kKvHeads, where);
    return scores;
}

void write_width_scores(const std::filesystem::path& path, const WidthScores& scores) {
    Writer writer;
    writer.add_orders(kNeurons, scores.ffn_order, scores.ffn_score);
    writer.add_orders(kMambaHeads, scores.mamba_head_order, scores.mamba_head_score);
    writer.add_orders(kKvHeads, scores.kv_head_order, scores.kv_head_score);
    writer.write(path);
}

std::vector<int32_t> kept_neurons(const WidthScores& scores, int64_t layer, int64_t width) {
    const auto found = scores.ffn_order.find(layer);
    const int64_t known = found == scores.ffn_order.end() ? 0 : static_cast<int64_t>(found->second.size());
    if (width < 0 || width > known)
        fail_input(
            fmt::format("width scores: ffn width {} for layer {}, found the order of {} neurons; score "
                        "this model with --width",
                        width, layer, known));
    std::vector<int32_t> kept(found->second.begin(), found->second.begin() + width);
    std::sort(kept.begin(), kept.end());
    return kept;
}

}  // namespace minipuzzle
