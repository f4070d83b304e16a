#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "runtime/safetensors.h"
#include "runtime/score_table.h"

namespace minipuzzle {

namespace {

constexpr std::string_view kPrefix = "layers.", kOrder = "ffn_neuron_order", kScore = "ffn_neuron_score";

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
std::vector<T> values_of(const StoredTensor& tensor, DType dtype, const std::string& where) {
    if (tensor.dtype != dtype || tensor.shape.size() != 1)
        fail_input(fmt::format("{}: {}: found {} with {} axes, expected {} with one axis", where, tensor.name,
                               info(tensor.dtype).name, tensor.shape.size(), info(dtype).name));
    std::vector<T> values(static_cast<std::size_t>(tensor.elements()));
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    return values;
}

// An order must name every neuron once, else a narrowed FFN would keep a row twice.
void check_permutation(const std::vector<int32_t>& order, const std::string& where, const std::string& name) {
    std::vector<bool> seen(order.size(), false);
    for (const int32_t neuron : order) {
        const bool in_range = neuron >= 0 && static_cast<std::size_t>(neuron) < order.size();
        if (!in_range || seen[static_cast<std::size_t>(neuron)])
            fail_input(fmt::format("{}: {}: neuron {} is {}, expected each of 0..{} once", where, name,
                                   neuron, in_range ? "listed twice" : "out of range", order.size() - 1));
        seen[static_cast<std::size_t>(neuron)] = true;
    }
}

template <class T>
StoredTensor stored(int64_t layer, std::string_view what, const std::vector<T>& values, DType dtype) {
    return {.name = fmt::format("{}{}.{}", kPrefix, layer, what),
            .dtype = dtype,
            .shape = {static_cast<int64_t>(values.size())},
            .bytes = std::as_bytes(std::span(values))};
}

}  // namespace

WidthScores read_width_scores(const std::filesystem::path& path) {
    const SafetensorsFile file(path);
    WidthScores scores;
    for (const StoredTensor& tensor : file.tensors()) {
        const WidthTensorName name = parse_name(tensor.name);
        if (name.layer >= 0 && name.what == kOrder) {
            std::vector<int32_t> order = values_of<int32_t>(tensor, DType::i32, path.string());
            check_permutation(order, path.string(), tensor.name);
            scores.ffn_order[name.layer] = std::move(order);
        } else if (name.layer >= 0 && name.what == kScore) {
            scores.ffn_score[name.layer] = values_of<float>(tensor, DType::f32, path.string());
        } else {
            fail_input(fmt::format("{}: tensor {}, expected layers.N.{} and layers.N.{} only", path.string(),
                                   tensor.name, kOrder, kScore));
        }
    }
    for (const auto& [layer, score] : scores.ffn_score)
        if (!scores.ffn_order.count(layer) || scores.ffn_order.at(layer).size() != score.size())
            fail_input(fmt::format("{}: layer {} has {} scores but {} neurons in its order", path.string(),
                                   layer, score.size(),
                                   scores.ffn_order.count(layer) ? scores.ffn_order.at(layer).size() : 0));
    return scores;
}

void write_width_scores(const std::filesystem::path& path, const WidthScores& scores) {
    std::vector<StoredTensor> tensors;
    for (const auto& [layer, order] : scores.ffn_order) {
        tensors.push_back(stored(layer, kOrder, order, DType::i32));
        const auto score = scores.ffn_score.find(layer);
        if (score != scores.ffn_score.end())
            tensors.push_back(stored(layer, kScore, score->second, DType::f32));
    }
    write_safetensors(path, tensors);
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
