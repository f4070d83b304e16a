#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "importance/width.h"
#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"

namespace minipuzzle::importance {

namespace {

constexpr const char* kWindows = "windows";

std::string total_name(std::size_t layer) { return fmt::format("layers.{}.total", layer); }

std::string_view name(Aggregation aggregation) { return aggregation == Aggregation::mean ? "mean" : "l2"; }

// The places of `scores`, best first, ties keep the lower one; each plus `offset`.
std::vector<int32_t> falling_order(std::span<const double> scores, int64_t offset = 0) {
    std::vector<int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    for (int32_t& place : order) place += narrow<int32_t>(offset);
    return order;
}

std::vector<float> narrowed(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// Of every head the L2 norm over its channels.
std::vector<double> head_scores(const Mamba& shape, const std::vector<double>& channels) {
    std::vector<double> scores;
    for (int64_t head = 0; head < shape.heads; ++head) {
        double square = 0;
        for (int64_t p = 0; p < shape.head_dim; ++p)
            square += channels[head * shape.head_dim + p] * channels[head * shape.head_dim + p];
        scores.push_back(std::sqrt(square));
    }
    return scores;
}

}  // namespace

WidthAggregation parse_width_aggregation(const std::string& text) {
    for (const Aggregation sequence : {Aggregation::mean, Aggregation::l2})
        for (const Aggregation batch : {Aggregation::mean, Aggregation::l2}) {
            const WidthAggregation aggregation{.sequence = sequence, .batch = batch};
            if (text == name(aggregation)) return aggregation;
        }
    fail_usage(
        "found \"" + text +
        "\", expected mean or l2 over the sequence, a comma, and mean or l2 over the batch: \"mean,l2\"");
}

std::string name(WidthAggregation aggregation) {
    return fmt::format("{},{}", name(aggregation.sequence), name(aggregation.batch));
}

WidthStatistics::WidthStatistics(Backend& backend, const Architecture& architecture,
                                 WidthAggregation aggregation, std::filesystem::path saved)
    : backend_(backend), architecture_(architecture), aggregation_(aggregation), saved_(std::move(saved)) {
    int64_t all = 0;
    std::vector<int64_t> counts;
    for (const Layer& layer : architecture.layers) {
        Units units;
        int64_t count = 0;
        if (auto* mamba = std::get_if<Mamba>(&layer)) {
            units.first = mamba->inner();  // z lies before x
            count = mamba->inner();
        } else if (auto* attention = std::get_if<Attention>(&layer)) {
            units.channels = attention->heads / attention->kv_heads * attention->head_dim;
            count = attention->kv_heads;
        } else {
            count = std::get<Ffn>(layer).width;
        }
        layers_.push_back(units);
        counts.push_back(count);
        all += count;
    }
    const Tensor shape(nullptr, DType::f64, {all}, backend.device());
    memory_.emplace(DeviceArena::sized(backend, aligned_bytes(shape)));
    const Tensor block = memory_->take("width statistics", {all}, DType::f64);
    int64_t begin = 0;
    for (std::size_t i = 0; i < counts.size(); begin += counts[i], ++i) {
        layers_[i].total = block.slice(begin, counts[i]);
        backend.zero(layers_[i].total);
    }
    if (!saved_.empty() && std::filesystem::exists(saved_)) load();
}

void WidthStatistics::observe(const LayerContext& context, int64_t layer,
                              const LayerActivations& activations) {
    const Units& units = layers_.at(layer);
    const Layer& sizes = architecture_.layers[layer];
    const Tensor x = std::holds_alternative<Mamba>(sizes)       ? activations.mamba.zxbcdt
                     : std::holds_alternative<Attention>(sizes) ? activations.attention.out
                                                                : activations.ffn.activated;
    const Tensor sums = context.arena.take("activation sums", {context.batch(), units.total.elements()},
                                           precise_type(context.backend.compute_type()));
    const bool squared = aggregation_.sequence == Aggregation::l2;
    context.backend.run(ActivationSums{
        .x = x, .first = units.first, .channels = units.channels, .squared = squared, .out = sums});
    context.backend.run(
        AccumulatePowers{.x = sums,
                         .scale = squared ? 1 : 1 / static_cast<double>(context.length()),
                         .power = (squared ? 0.5 : 1) * (aggregation_.batch == Aggregation::l2 ? 2 : 1),
                         .total = units.total});
}

void WidthStatistics::finish(const std::vector<int64_t>& windows) {
    for (const int64_t window : windows) MP_ASSERT(held_.insert(window).second);
    windows_.insert(windows_.end(), windows.begin(), windows.end());
    if (!saved_.empty()) save();
}

void WidthStatistics::save() const {
    std::vector<StoredTensor> tensors{{.name = kWindows,
                                       .dtype = DType::i64,
                                       .shape = {std::ssize(windows_)},
                                       .bytes = std::as_bytes(std::span(windows_))}};
    std::vector<std::vector<std::byte>> totals;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Tensor& total = layers_[i].total;
        totals.emplace_back(total.bytes());
        backend_.copy(totals.back().data(), total.data, total.bytes());
        tensors.push_back({.name = total_name(i),
                           .dtype = DType::f64,
                           .shape = {total.elements()},
                           .bytes = totals.back()});
    }
    std::string content = safetensors_header(tensors, {});
    for (const StoredTensor& tensor : tensors)
        content.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    write_file_atomically(saved_, content);
}

void WidthStatistics::load() {
    const SafetensorsFile file(saved_);
    const auto find = [&](const std::string& name, DType dtype, int64_t elements) -> const StoredTensor& {
        const StoredTensor* tensor = file.find(name);
        if (!tensor || tensor->dtype != dtype || (elements >= 0 && tensor->elements() != elements))
            fail_input(
                fmt::format("{}: found no {} of this model, expected the width statistics of an "
                            "unfinished score run: leave out --resume to start anew",
                            saved_.string(), name));
        return *tensor;
    };
    const StoredTensor& windows = find(kWindows, DType::i64, -1);
    windows_.resize(windows.elements());
    if (!windows_.empty()) std::memcpy(windows_.data(), windows.bytes.data(), windows.bytes.size());
    held_.insert(windows_.begin(), windows_.end());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Tensor& total = layers_[i].total;
        backend_.copy(total.data, find(total_name(i), DType::f64, total.elements()).bytes.data(),
                      total.bytes());
    }
}

std::vector<double> WidthStatistics::unit_scores(int64_t layer) const {
    const Tensor& total = layers_.at(layer).total;
    std::vector<double> values(total.elements());
    backend_.copy(reinterpret_cast<std::byte*>(values.data()), total.data, total.bytes());
    for (double& value : values) {
        value = aggregation_.batch == Aggregation::l2 ? std::sqrt(value)
                                                      : value / static_cast<double>(windows_.size());
        if (!std::isfinite(value))
            throw Error(
                ErrorKind::other,
                fmt::format("an activation of layer {} is not finite: look at the model's weights", layer));
    }
    return values;
}

WidthScores WidthStatistics::scores() const {
    MP_ASSERT(!windows_.empty());
    WidthScores scores;
    for (int64_t layer = 0; layer < std::ssize(layers_); ++layer) {
        const std::vector<double> units = unit_scores(layer);
        if (auto* mamba = std::get_if<Mamba>(&architecture_.layers[layer])) {
            const std::vector<double> heads = head_scores(*mamba, units);
            const int64_t per_group = mamba->heads / mamba->groups;
            for (int64_t first = 0; first < mamba->heads; first += per_group)
                scores.mamba_head_order[layer].push_back(
                    falling_order(std::span(heads).subspan(first, per_group), first));
            scores.mamba_head_score[layer] = narrowed(heads);
        } else if (std::holds_alternative<Attention>(architecture_.layers[layer])) {
            scores.kv_head_order[layer] = falling_order(units);
            scores.kv_head_score[layer] = narrowed(units);
        } else {
            scores.ffn_order[layer] = falling_order(units);
            scores.ffn_score[layer] = narrowed(units);
        }
    }
    return scores;
}

}  // namespace minipuzzle::importance
