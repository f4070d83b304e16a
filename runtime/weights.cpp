#include "runtime/weights.h"

#include "runtime/parameter_leaf.h"

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

// What stays precise whatever the compute type.
bool is_precise(const std::string& leaf) {
    return leaf.ends_with("norm.weight") || leaf == "norm_f.weight" || leaf == "mixer.dt_bias" ||
           leaf == "mixer.A_log" || leaf == "mixer.D";
}

// The extents in memory: as in the file, but conv1d's middle axis of one channel per group is dropped.
Tensor shaped(const TensorSlot& slot, const std::string& leaf, const Backend& backend) {
    const auto& s = slot.shape;
    const DType type = is_precise(leaf) ? precise_type(backend.compute_type()) : backend.compute_type();
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

Weights shaped_weights(const Backend& backend, const Architecture& architecture) {
    Weights weights;
    for (const Layer& layer : architecture.layers) weights.layers.push_back(empty_layer(layer));
    for_each_parameter(architecture, weights, [&](const ParameterInfo& info, Tensor& tensor) {
        tensor = shaped(info.slot, leaf_of(info.slot), backend);
    });
    if (architecture.tied_embeddings) weights.lm_head = weights.embeddings;
    return weights;
}

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed)
    : WeightMemory(backend, architecture, zeroed, [](const Tensor& parameter) { return parameter.dtype; }) {}

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed,
                           const TypeChoice& type)
    : backend_(&backend), weights_(shaped_weights(backend, architecture)) {
    constexpr int64_t kAlignment = 256;
    for_each_parameter(architecture, weights_, [&](const ParameterInfo&, Tensor& tensor) {
        const std::optional<DType> chosen = type(tensor);
        if (!chosen) {
            tensor = {};
            return;
        }
        tensor.dtype = *chosen;
        bytes_ += div_up(tensor.bytes(), kAlignment) * kAlignment;
    });
    if (bytes_ > 0) block_ = backend.allocate(bytes_);
    std::byte* next = block_;
    for_each_parameter(architecture, weights_, [&](const ParameterInfo&, Tensor& tensor) {
        if (!tensor || !next) return;  // a measuring backend gives no memory
        tensor.data = next;
        next += div_up(tensor.bytes(), kAlignment) * kAlignment;
    });
    if (architecture.tied_embeddings) weights_.lm_head = weights_.embeddings;
    if (zeroed) zero();
}

void WeightMemory::zero() {
    if (block_) backend_->zero(Tensor(block_, DType::u8, {bytes_}, backend_->device()));
}

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : backend_(other.backend_),
      block_(std::exchange(other.block_, nullptr)),
      bytes_(other.bytes_),
      weights_(std::move(other.weights_)) {}

WeightMemory::~WeightMemory() {
    if (block_) backend_->free(block_);
}

WeightMemory load_weights(Backend& backend, const Architecture& architecture, const ParameterSource& source) {
    WeightMemory memory(backend, architecture, false);
    for_each_parameter(architecture, memory.weights(), [&](const ParameterInfo& info, Tensor& tensor) {
        source.fill(backend, info, tensor);
    });
    return memory;
}

WeightMemory load_weights(Backend& backend, const Checkpoint& checkpoint) {
    return load_weights(backend, checkpoint.architecture(), *checkpoint_source(checkpoint));
}

WeightMemory random_weights(Backend& backend, const Architecture& architecture, uint64_t seed,
                            double initializer_range) {
    return load_weights(backend, architecture, *random_source(architecture, seed, initializer_range));
}

std::vector<float> to_host(Backend& backend, const Tensor& tensor) {
    std::vector<std::byte> raw(tensor.bytes());
    backend.copy(raw.data(), tensor.data, tensor.bytes());
    std::vector<float> values(tensor.elements());
    read_as_float({.name = "", .dtype = tensor.dtype, .shape = {tensor.elements()}, .bytes = raw}, values);
    return values;
}

void from_host(Backend& backend, const Tensor& tensor, std::span<const float> values) {
    MP_ASSERT(static_cast<int64_t>(values.size()) == tensor.elements());
    const std::vector<std::byte> raw = to_dtype(values, tensor.dtype);
    backend.copy(tensor.data, raw.data(), tensor.bytes());
}

}  // namespace minipuzzle
