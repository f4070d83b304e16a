#include "runtime/ffn_slice.h"

#include <algorithm>

namespace minipuzzle {

FfnWeights slice_ffn(Backend& backend, DeviceArena& arena, const FfnWeights& weights,
                     const std::vector<int32_t>& neurons) {
    const int64_t full = weights.up_proj.size(0), width = weights.up_proj.size(1);
    const int64_t kept = static_cast<int64_t>(neurons.size());
    FfnWeights sliced = weights;
    sliced.up_proj = arena.take("narrowed up_proj", {kept, width});
    sliced.down_proj = arena.take("narrowed down_proj", {width, kept});
    if (arena.is_measuring()) return sliced;

    const std::vector<float> up = to_host(backend, weights.up_proj),
                             down = to_host(backend, weights.down_proj);
    std::vector<float> up_rows(kept * width), down_columns(width * kept);
    for (int64_t i = 0; i < kept; ++i) {
        std::copy_n(up.begin() + neurons[i] * width, width, up_rows.begin() + i * width);
        for (int64_t row = 0; row < width; ++row)
            down_columns[row * kept + i] = down[row * full + neurons[i]];
    }
    from_host(backend, sliced.up_proj, up_rows);
    from_host(backend, sliced.down_proj, down_columns);
    return sliced;
}

}  // namespace minipuzzle
