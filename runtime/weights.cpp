#include "runtime/weights.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/random.h"

namespace minipuzzle {

namespace {

// Where the tensor of a slot lives in a Weights; the inverse of the walk.
Tensor& home_of(Weights& weights, const TensorSlot& slot, const std::string& leaf) {
    if (slot.layer < 0) {
        if (slot.name == "embeddings.weight") return weights.embeddings;
        if (slot.name == "norm_f.weight") return weights.norm_f;
        MP_ASSERT(slot.name == "lm_head.weight");
        return weights.lm_head;
    }
    LayerWeights& layer = weights.layers.at(slot.layer);
    if (auto* mamba = std::get_if<MambaWeights>(&layer)) {
        if (leaf == "norm.weight") return mamba->norm;
        if (leaf == "mixer.in_proj.weight") return mamba->in_proj;
        if (leaf == "mixer.conv1d.weight") return mamba->conv_weight;
        if (leaf == "mixer.conv1d.bias") return mamba->conv_bias;
        if (leaf == "mixer.dt_bias") return mamba->dt_bias;
        if (leaf == "mixer.A_log") return mamba->a_log;
        if (leaf == "mixer.D") return mamba->d;
        if (leaf == "mixer.norm.weight") return mamba->gate_norm;
        MP_ASSERT(leaf == "mixer.out_proj.weight");
        return mamba->out_proj;
    }
    if (auto* attention = std::get_if<AttentionWeights>(&layer)) {
        if (leaf == "norm.weight") return attention->norm;
        if (leaf == "mixer.q_proj.weight") return attention->q_proj;
        if (leaf == "mixer.k_proj.weight") return attention->k_proj;
        if (leaf == "mixer.v_proj.weight") return attention->v_proj;
        MP_ASSERT(leaf == "mixer.o_proj.weight");
        return attention->o_proj;
    }
    FfnWeights& ffn = std::get<FfnWeights>(layer);
    if (leaf == "norm.weight") return ffn.norm;
    if (leaf == "mixer.up_proj.weight") return ffn.up_proj;
    MP_ASSERT(leaf == "mixer.down_proj.weight");
    return ffn.down_proj;
}

// "layers.3.mixer.A_log" -> "mixer.A_log".
std::string leaf_of(const TensorSlot& slot) {
    if (slot.layer < 0) return slot.name;
    return slot.name.substr(slot.name.find('.', std::string("layers.").size()) + 1);
}

// The extents in memory: as in the file, but conv1d's middle axis of one channel per group is dropped.
Tensor shaped(const TensorSlot& slot, Backend& backend) {
    const auto& s = slot.shape;
    const DType type = backend.compute_type();
    const DeviceKind device = backend.device();
    if (s.size() == 1) return Tensor(nullptr, type, {s[0]}, device);
    if (s.size() == 2) return Tensor(nullptr, type, {s[0], s[1]}, device);
    MP_ASSERT(s.size() == 3 && s[1] == 1);
    return Tensor(nullptr, type, {s[0], s[2]}, device);
}

LayerWeights empty_layer(const Layer& layer) {
    switch (type_of(layer)) {
        case LayerType::mamba:
            return MambaWeights{};
        case LayerType::attention:
            return AttentionWeights{};
        case LayerType::ffn:
            return FfnWeights{};
    }
    MP_ASSERT(false);
    return FfnWeights{};
}

bool is_matrix(const std::string& leaf) {
    return leaf.ends_with("_proj.weight") || leaf == "embeddings.weight" || leaf == "lm_head.weight" ||
           leaf == "mixer.conv1d.weight";
}

}  // namespace

void for_each_parameter(const Architecture& architecture, Weights& weights,
                        const std::function<void(const ParameterInfo&, Tensor&)>& visit) {
    for (const TensorSlot& slot : tensor_slots(architecture)) {
        const std::string leaf = leaf_of(slot);
        visit({slot, is_matrix(leaf)}, home_of(weights, slot, leaf));
    }
}

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed)
    : backend_(&backend) {
    constexpr int64_t kAlignment = 256;
    for (const Layer& layer : architecture.layers) weights_.layers.push_back(empty_layer(layer));
    for_each_parameter(architecture, weights_, [&](const ParameterInfo& info, Tensor& tensor) {
        tensor = shaped(info.slot, backend);
        bytes_ += div_up(tensor.bytes(), kAlignment) * kAlignment;
    });
    block_ = backend.allocate(bytes_);
    std::byte* next = block_;
    for_each_parameter(architecture, weights_, [&](const ParameterInfo&, Tensor& tensor) {
        tensor.data = next;  // stays null where a measuring backend gives no memory
        if (next) next += div_up(tensor.bytes(), kAlignment) * kAlignment;
        if (zeroed) backend.zero(tensor);
    });
    if (architecture.tied_embeddings) weights_.lm_head = weights_.embeddings;
}

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : backend_(other.backend_),
      block_(std::exchange(other.block_, nullptr)),
      bytes_(other.bytes_),
      weights_(std::move(other.weights_)) {}

WeightMemory::~WeightMemory() {
    if (block_) backend_->free(block_);
}

std::vector<float> to_host(Backend& backend, const Tensor& tensor) {
    std::vector<float> values(tensor.elements());
    if (tensor.dtype == DType::f32) {
        backend.copy(reinterpret_cast<std::byte*>(values.data()), tensor.data, tensor.bytes());
    } else {
        MP_ASSERT(tensor.dtype == DType::f64);
        std::vector<double> wide(tensor.elements());
        backend.copy(reinterpret_cast<std::byte*>(wide.data()), tensor.data, tensor.bytes());
        std::copy(wide.begin(), wide.end(), values.begin());
    }
    backend.synchronize();
    return values;
}

void from_host(Backend& backend, const Tensor& tensor, std::span<const float> values) {
    MP_ASSERT(static_cast<int64_t>(values.size()) == tensor.elements());
    if (tensor.dtype == DType::f32) {
        backend.copy(tensor.data, reinterpret_cast<const std::byte*>(values.data()), tensor.bytes());
    } else {
        MP_ASSERT(tensor.dtype == DType::f64);
        const std::vector<double> wide(values.begin(), values.end());
        backend.copy(tensor.data, reinterpret_cast<const std::byte*>(wide.data()), tensor.bytes());
    }
    backend.synchronize();
}

WeightMemory load_weights(Backend& backend, const Checkpoint& checkpoint) {
    WeightMemory memory(backend, checkpoint.architecture(), false);
    for_each_parameter(
        checkpoint.architecture(), memory.weights(), [&](const ParameterInfo& info, Tensor& tensor) {
            const StoredTensor& stored = checkpoint.tensor(info.slot.name);
            std::vector<float> values(stored.elements());
            read_as_float(stored, values);
            for (std::size_t i = 0; i < values.size(); ++i)
                if (!std::isfinite(values[i]))
                    fail_input(fmt::format("{}: tensor {} holds {} at element {}: the checkpoint is damaged",
                                           checkpoint.folder().string(), stored.name, values[i], i));
            from_host(backend, tensor, values);
        });
    return memory;
}

namespace {

// One parameter's initial values (nemotron_h.md H.3; Mamba-2's dt and A initialisation, Dao & Gu 2024).
std::vector<float> initial_values(const ParameterInfo& info, int64_t elements, uint64_t seed, double range,
                                  std::size_t layers) {
    const std::string leaf = leaf_of(info.slot);
    CounterRandom random(seed, info.slot.name);
    std::vector<float> values(elements, 1.0f);  // norms and D
    const bool into_residual =
        leaf == "mixer.out_proj.weight" || leaf == "mixer.down_proj.weight" || leaf == "mixer.o_proj.weight";
    const double scale = into_residual ? range / std::sqrt(static_cast<double>(layers)) : range;
    for (int64_t i = 0; i < elements; ++i) {
        if (leaf == "mixer.A_log") {
            values[i] = static_cast<float>(std::log(1 + 15 * random.uniform(i)));
        } else if (leaf == "mixer.dt_bias") {
            const double dt = std::exp(std::log(1e-3) + random.uniform(i) * (std::log(0.1) - std::log(1e-3)));
            values[i] = static_cast<float>(dt + std::log(-std::expm1(-dt)));  // the inverse of softplus
        } else if (leaf == "mixer.conv1d.weight" || leaf == "mixer.conv1d.bias") {
            values[i] = static_cast<float>((2 * random.uniform(i) - 1) *
                                           0.5);  // 1/sqrt(kernel 4), PyTorch's conv default
        } else if (info.decays) {
            values[i] = static_cast<float>(scale * random.normal(i));
        }
    }
    return values;
}

}  // namespace

WeightMemory random_weights(Backend& backend, const Architecture& architecture, uint64_t seed,
                            double initializer_range) {
    WeightMemory memory(backend, architecture, false);
    for_each_parameter(architecture, memory.weights(), [&](const ParameterInfo& info, Tensor& tensor) {
        from_host(
            backend, tensor,
            initial_values(info, tensor.elements(), seed, initializer_range, architecture.layers.size()));
    });
    return memory;
}

}  // namespace minipuzzle
