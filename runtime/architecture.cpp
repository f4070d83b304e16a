#include "runtime/architecture.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle {
namespace {

// Parameters of a mixer, by layer type (the tensors of tensor_slots).
struct MixerParameters {
    int64_t width;
    bool conv_bias;

    int64_t operator()(const Mamba& m) const {
        const int64_t conv = m.conv_channels() * (m.conv_kernel + (conv_bias ? 1 : 0));
        const int64_t per_head = 3 * m.heads;  // dt_bias, A_log, D
        return m.projection() * width + conv + per_head + m.inner() + width * m.inner();
    }
    int64_t operator()(const Attention& a) const {
        return (2 * a.heads + 2 * a.kv_heads) * a.head_dim * width;
    }
    int64_t operator()(const Ffn& f) const { return 2 * f.width * width; }
};

struct CanonicalLayer {
    nlohmann::json operator()(const Mamba& m) const {
        return {{"type", "mamba"},  {"heads", m.heads},   {"head_dim", m.head_dim},
                {"state", m.state}, {"groups", m.groups}, {"conv_kernel", m.conv_kernel}};
    }
    nlohmann::json operator()(const Attention& a) const {
        return {
            {"type", "attention"}, {"heads", a.heads}, {"kv_heads", a.kv_heads}, {"head_dim", a.head_dim}};
    }
    nlohmann::json operator()(const Ffn& f) const { return {{"type", "ffn"}, {"width", f.width}}; }
};

}  // namespace

char letter(LayerType type) {
    switch (type) {
        case LayerType::mamba:
            return 'M';
        case LayerType::attention:
            return '*';
        case LayerType::ffn:
            return '-';
    }
    MP_ASSERT(false);
}

std::string_view name(LayerType type) {
    switch (type) {
        case LayerType::mamba:
            return "mamba";
        case LayerType::attention:
            return "attention";
        case LayerType::ffn:
            return "ffn";
    }
    MP_ASSERT(false);
}

std::string Architecture::pattern() const {
    std::string text;
    for (const Layer& layer : layers) text += letter(type_of(layer));
    return text;
}

int64_t Architecture::count(LayerType type) const {
    int64_t found = 0;
    for (const Layer& layer : layers) found += type_of(layer) == type;
    return found;
}

int64_t Architecture::ffn_width() const {
    int64_t common = 0;
    for (const Layer& layer : layers) {
        const Ffn* ffn = std::get_if<Ffn>(&layer);
        if (!ffn) continue;
        if (common != 0 && common != ffn->width) return 0;
        common = ffn->width;
    }
    return common;
}

int64_t parameters(const Architecture& architecture, const Layer& layer) {
    return architecture.width +
           std::visit(MixerParameters{architecture.width, architecture.conv_bias}, layer);
}

int64_t parameters(const Architecture& architecture) {
    int64_t total = outer_parameters(architecture);
    for (const Layer& layer : architecture.layers) total += parameters(architecture, layer);
    return total;
}

int64_t outer_parameters(const Architecture& architecture) {
    const int64_t tables = architecture.tied_embeddings ? 1 : 2;
    return tables * architecture.vocab * architecture.width + architecture.width;
}

std::string arch_hash(const Architecture& architecture) {
    // nlohmann::json sorts keys; doubles go in as shortest round-trip text, whatever the library prints.
    nlohmann::json canonical = {{"vocab", architecture.vocab},
                                {"width", architecture.width},
                                {"norm_eps", fmt::format("{}", architecture.norm_eps)},
                                {"dt_min", fmt::format("{}", architecture.dt_min)},
                                {"dt_max", fmt::format("{}", architecture.dt_max)},
                                {"tied_embeddings", architecture.tied_embeddings},
                                {"conv_bias", architecture.conv_bias},
                                {"layers", nlohmann::json::array()}};
    for (const Layer& layer : architecture.layers)
        canonical["layers"].push_back(std::visit(CanonicalLayer{}, layer));
    return sha256(canonical.dump());
}

}  // namespace minipuzzle
