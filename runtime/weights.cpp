#include "runtime/weights.h"

#include "runtime/parameter_leaf.h"

namespace minipuzzle {

namespace {

// Where the tensor of a slot, and the scales of a projection, live in a Weights; the inverse of the walk.
struct Home {
    Tensor& tensor;
    Tensor* scale = nullptr;
};

Home home_in(MambaWeights& mamba, const std::string& leaf) {
    if (leaf == "norm.weight") return {mamba.norm};
    if (leaf == "mixer.in_proj.weight") return {mamba.in_proj, &mamba.in_proj_scale};
    if (leaf == "mixer.conv1d.weight") return {mamba.conv_weight};
    if (leaf == "mixer.conv1d.bias") return {mamba.conv_bias};
    if (leaf == "mixer.dt_bias") return {mamba.dt_bias};
    if (leaf == "mixer.A_log") return {mamba.a_log};
    if (leaf == "mixer.D") return {mamba.d};
    if (leaf == "mixer.norm.weight") return {mamba.gate_norm};
    MP_ASSERT(leaf == "mixer.out_proj.weight");
    return {mamba.out_proj, &mamba.out_proj_scale};
}

Home home_in(AttentionWeights& attention, const std::string& leaf) {
    if (leaf == "norm.weight") return {attention.norm};
    if (leaf == "mixer.q_proj.weight") return {attention.q_proj, &attention.q_proj_scale};
    if (leaf == "mixer.k_proj.weight") return {attention.k_proj, &attention.k_proj_scale};
    if (leaf == "mixer.v_proj.weight") return {attention.v_proj, &attention.v_proj_scale};
    MP_ASSERT(leaf == "mixer.o_proj.weight");
    return {attention.o_proj, &attention.o_proj_scale};
}

Home home_in(FfnWeights& ffn, const std::string& leaf) {
    if (leaf == "norm.weight") return {ffn.norm};
    if (leaf == "mixer.up_proj.weight") return {ffn.up_proj, &ffn.up_proj_scale};
    MP_ASSERT(leaf == "mixer.down_proj.weight");
    return {ffn.down_proj, &ffn.down_proj_scale};
}

Home home_of(Weights& weights, const TensorSlot& slot, const std::string& leaf) {
    if (slot.layer >= 0)
        return std::visit([&](auto& layer) { return home_in(layer, leaf); }, weights.layers.at(slot.layer));
    if (slot.name == "embeddings.weight") return {weights.embeddings};
    if (slot.name == "norm_f.weight") return {weights.norm_f};
    MP_ASSERT(slot.name == "lm_head.weight");
    return {weights.lm_head};
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
        const Home home = home_of(weights, slot, leaf);
        visit({slot, is_matrix(leaf), home.scale}, home.tensor);
    }
}

Weights shaped_weights(const Backend& backend, const Architecture& architecture, Precision precision) {
    Weights weights;
    for (const Layer& layer : architecture.layers) weights.layers.push_back(empty_layer(layer));
    for_each_parameter(architecture, weights, [&](const ParameterInfo& info, Tensor& tensor) {
        tensor = shaped(info.slot, leaf_of(info.slot), backend);
        if (!info.scale || !is_quantized(architecture, precision, info.slot.layer)) return;
        tensor.dtype = DType::f8_e4m3;
        *info.scale =
            Tensor(nullptr, precise_type(backend.compute_type()), {tensor.size(0)}, backend.device());
    });
    if (architecture.tied_embeddings) weights.lm_head = weights.embeddings;
    return weights;
}

int64_t aligned_bytes(const Tensor& tensor) {
    constexpr int64_t kAlignment = 256;
    return div_up(tensor.bytes(), kAlignment) * kAlignment;
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
