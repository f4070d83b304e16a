#include "cli/bench/memory.h"

#include "kernels/random.h"

namespace minipuzzle::cli::bench {

Memory::~Memory() {
    for (std::byte* memory : taken_) backend_.free(memory);
}

Tensor Memory::take(DType dtype, std::initializer_list<int64_t> extents) {
    Tensor tensor(nullptr, dtype, extents, backend_.device());
    bytes_ += tensor.bytes();
    if (mode_ == Mode::counting) return tensor;
    tensor.data = backend_.allocate(tensor.bytes());
    taken_.push_back(tensor.data);
    return tensor;
}

Tensor Memory::take_normal(DType dtype, std::initializer_list<int64_t> extents, double scale) {
    const Tensor tensor = take(dtype, extents);
    if (tensor.data) backend_.run(RandomNormal{.out = tensor, .key = next_key_++, .scale = scale});
    return tensor;
}

Tensor Memory::normal(std::initializer_list<int64_t> extents, double scale) {
    return take_normal(backend_.compute_type(), extents, scale);
}

Tensor Memory::empty(std::initializer_list<int64_t> extents) { return normal(extents); }

Tensor Memory::precise(const std::vector<double>& values) {
    const Tensor tensor = empty_precise({static_cast<int64_t>(values.size())});
    if (!tensor.data) return tensor;
    const std::vector<float> narrow_values(values.begin(), values.end());
    const void* from = tensor.dtype == DType::f64 ? static_cast<const void*>(values.data())
                                                  : static_cast<const void*>(narrow_values.data());
    backend_.copy(tensor.data, static_cast<const std::byte*>(from), tensor.bytes());
    return tensor;
}

Tensor Memory::empty_precise(std::initializer_list<int64_t> extents) {
    return take_normal(precise_type(backend_.compute_type()), extents, 1);
}

Codes Memory::codes(std::initializer_list<int64_t> extents, double scale) {
    const Tensor values = take(DType::f8_e4m3, extents);
    const Codes codes{values, take(precise_type(backend_.compute_type()), {values.rows()})};
    if (!values.data) return codes;
    Memory passing(backend_);
    const Tensor rows = passing.take(backend_.compute_type(), extents);
    backend_.run(RandomNormal{.out = rows, .key = next_key_++, .scale = scale});
    backend_.run(QuantizeRows{rows, codes.values, codes.scale});
    return codes;
}

Tensor Memory::zeros(DType dtype, std::initializer_list<int64_t> extents) {
    const Tensor tensor = take(dtype, extents);
    if (tensor.data) backend_.zero(tensor);
    return tensor;
}

Tensor Memory::indices(std::initializer_list<int64_t> extents, int64_t limit) {
    const Tensor tensor = take(DType::i32, extents);
    if (!tensor.data) return tensor;
    std::vector<int32_t> values(tensor.elements());
    const uint64_t key = next_key_++;
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<int32_t>(counter_random(key, i) % static_cast<uint64_t>(limit));
    backend_.copy(tensor.data, reinterpret_cast<const std::byte*>(values.data()), tensor.bytes());
    return tensor;
}

}  // namespace minipuzzle::cli::bench
