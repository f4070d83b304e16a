#include "runtime/ffn_slice.h"

#include <cstring>

namespace minipuzzle {

namespace {

std::vector<std::byte> host_bytes(Backend& backend, const Tensor& tensor) {
    std::vector<std::byte> bytes(tensor.bytes());
    backend.copy(bytes.data(), tensor.data, tensor.bytes());
    return bytes;
}

// out = those rows of `matrix` [R, C]; values are copied as they are, whatever their type.
void gather_rows(Backend& backend, const Tensor& matrix, const std::vector<int32_t>& rows,
                 const Tensor& out) {
    const std::vector<std::byte> all = host_bytes(backend, matrix);
    const int64_t row_bytes = matrix.bytes() / matrix.size(0);
    std::vector<std::byte> kept(out.bytes());
    for (std::size_t i = 0; i < rows.size(); ++i)
        std::memcpy(kept.data() + static_cast<int64_t>(i) * row_bytes, all.data() + rows[i] * row_bytes,
                    row_bytes);
    backend.copy(out.data, kept.data(), out.bytes());
}

// out = those columns of `matrix` [R, C].
void gather_columns(Backend& backend, const Tensor& matrix, const std::vector<int32_t>& columns,
                    const Tensor& out) {
    const std::vector<std::byte> all = host_bytes(backend, matrix);
    const int64_t size = bytes_of(matrix.dtype), stride = matrix.columns() * size;
    std::vector<std::byte> kept(out.bytes());
    std::byte* to = kept.data();
    for (int64_t row = 0; row < matrix.rows(); ++row)
        for (const int32_t column : columns) {
            std::memcpy(to, all.data() + row * stride + column * size, size);
            to += size;
        }
    backend.copy(out.data, kept.data(), out.bytes());
}

}  // namespace

FfnWeights slice_ffn(Backend& backend, DeviceArena& arena, const FfnWeights& weights,
                     const std::vector<int32_t>& neurons) {
    const int64_t width = weights.up_proj.size(1), kept = static_cast<int64_t>(neurons.size());
    FfnWeights sliced = weights;
    sliced.up_proj = arena.take("narrowed up_proj", {kept, width}, weights.up_proj.dtype);
    sliced.down_proj = arena.take("narrowed down_proj", {width, kept}, weights.down_proj.dtype);
    if (weights.up_proj_scale)
        sliced.up_proj_scale = arena.take("narrowed up_proj scales", {kept}, weights.up_proj_scale.dtype);
    if (arena.is_measuring()) return sliced;

    gather_rows(backend, weights.up_proj, neurons, sliced.up_proj);
    gather_columns(backend, weights.down_proj, neurons, sliced.down_proj);
    if (weights.up_proj_scale) gather_rows(backend, weights.up_proj_scale, neurons, sliced.up_proj_scale);
    return sliced;
}

}  // namespace minipuzzle
