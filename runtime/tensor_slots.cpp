// The list of tensors that an architecture has.
#include <fmt/format.h>

#include "runtime/checkpoint.h"

namespace minipuzzle {
namespace {

struct SlotsOfLayer {
    const Architecture& architecture;
    int layer;
    std::vector<TensorSlot>& slots;

    void add(const char* name, std::vector<int64_t> shape) const {
        slots.push_back({fmt::format("layers.{}.{}", layer, name), std::move(shape), layer});
    }
    void operator()(const Mamba& m) const {
        add("mixer.in_proj.weight", {m.projection(), architecture.width});
        add("mixer.conv1d.weight", {m.conv_channels(), 1, m.conv_kernel});
        if (architecture.conv_bias) add("mixer.conv1d.bias", {m.conv_channels()});
        add("mixer.dt_bias", {m.heads});
        add("mixer.A_log", {m.heads});
        add("mixer.D", {m.heads});
        add("mixer.norm.weight", {m.inner()});
        add("mixer.out_proj.weight", {architecture.width, m.inner()});
    }
    void operator()(const Attention& a) const {
        add("mixer.q_proj.weight", {a.heads * a.head_dim, architecture.width});
        add("mixer.k_proj.weight", {a.kv_heads * a.head_dim, architecture.width});
        add("mixer.v_proj.weight", {a.kv_heads * a.head_dim, architecture.width});
        add("mixer.o_proj.weight", {architecture.width, a.heads * a.head_dim});
    }
    void operator()(const Ffn& f) const {
        add("mixer.up_proj.weight", {f.width, architecture.width});
        add("mixer.down_proj.weight", {architecture.width, f.width});
    }
};

}  // namespace

std::vector<TensorSlot> tensor_slots(const Architecture& architecture) {
    std::vector<TensorSlot> slots;
    slots.push_back({"embeddings.weight", {architecture.vocab, architecture.width}});
    for (std::size_t i = 0; i < architecture.layers.size(); ++i) {
        const SlotsOfLayer layer{architecture, static_cast<int>(i), slots};
        layer.add("norm.weight", {architecture.width});
        std::visit(layer, architecture.layers[i]);
    }
    slots.push_back({"norm_f.weight", {architecture.width}});
    if (!architecture.tied_embeddings)
        slots.push_back({"lm_head.weight", {architecture.vocab, architecture.width}});
    return slots;
}

}  // namespace minipuzzle
