#include "cli/bench/twin.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kStage = int64_t{64} << 20;  // bytes copied from the device at a time

double value_of(const Tensor& tensor, const std::byte* raw, int64_t index) {
    if (tensor.dtype == DType::bf16) return bf16_to_float(reinterpret_cast<const uint16_t*>(raw)[index]);
    if (tensor.dtype == DType::f32) return reinterpret_cast<const float*>(raw)[index];
    if (tensor.dtype == DType::f8_e4m3) return e4m3_to_float(reinterpret_cast<const uint8_t*>(raw)[index]);
    MP_ASSERT(tensor.dtype == DType::f64);
    return reinterpret_cast<const double*>(raw)[index];
}

double norm_error(const Tensor& actual, const Tensor& expected) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < expected.elements(); ++i) {
        const double a = value_of(actual, actual.data, i), b = value_of(expected, expected.data, i);
        difference += (a - b) * (a - b);
        size += b * b;
    }
    return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace

Twin::Twin(Backend& device, int threads)
    : device_(device),
      cpu_(make_cpu_backend(device.device() == DeviceKind::cpu ? DType::f64 : DType::f32, threads)) {}

double Twin::tolerance(Rounding rounding) const {
    // Both hold the same inputs. float32 against double: sums of up to 1e5 terms.
    if (rounding == Rounding::precise) return 1e-4;
    if (device_.compute_type() != DType::bf16) return 1e-5;
    // bf16 rounds by up to 2^-9, in the mean a little over half of that; twice the worst for one rounding.
    // Values that are rounded between an operation's steps add as much again or twice, over sums in which
    // errors average out.
    return rounding == Rounding::once ? 4e-3 : 1e-2;
}

Tensor Twin::take(DType dtype, std::initializer_list<int64_t> extents) {
    Tensor tensor(nullptr, dtype, extents);
    tensor.data = memory_.emplace_back(tensor.bytes()).data();
    return tensor;
}

Tensor Twin::empty(std::initializer_list<int64_t> extents) {
    const Tensor tensor = take(cpu_->compute_type(), extents);
    std::memset(tensor.data, 0xff, tensor.bytes());
    return tensor;
}

Codes Twin::empty_codes(std::initializer_list<int64_t> extents) {
    const Tensor values = take(DType::f8_e4m3, extents);
    std::memset(values.data, 0xff, values.bytes());
    return {values, empty({values.rows()})};
}

Tensor Twin::indices(const std::vector<int32_t>& values) {
    const Tensor tensor = take(DType::i32, {static_cast<int64_t>(values.size())});
    std::memcpy(tensor.data, values.data(), tensor.bytes());
    return tensor;
}

void Twin::convert_rows(const Tensor& tensor, const std::byte* raw, int64_t rows,
                        const std::vector<Range>& columns, std::byte* to) const {
    const bool in_double = cpu_->compute_type() == DType::f64;
    int64_t next = 0;
    for (int64_t r = 0; r < rows; ++r) {
        for (const Range& range : columns) {
            for (int64_t c = 0; c < range.count; ++c, ++next) {
                const int64_t from = r * tensor.columns() + range.begin + c;
                if (tensor.dtype == DType::i32)
                    reinterpret_cast<int32_t*>(to)[next] = reinterpret_cast<const int32_t*>(raw)[from];
                else if (in_double)
                    reinterpret_cast<double*>(to)[next] = value_of(tensor, raw, from);
                else
                    reinterpret_cast<float*>(to)[next] = static_cast<float>(value_of(tensor, raw, from));
            }
        }
    }
}

Tensor Twin::part(const Tensor& tensor, Range rows, const std::vector<Range>& columns,
                  std::initializer_list<int64_t> extents) {
    const Tensor copy = take(tensor.dtype == DType::i32 ? DType::i32 : cpu_->compute_type(), extents);
    int64_t width = 0;
    for (const Range& range : columns) width += range.count;
    MP_ASSERT(copy.elements() == rows.count * width);
    const int64_t row_bytes = tensor.columns() * bytes_of(tensor.dtype);
    const int64_t block = std::max<int64_t>(1, kStage / std::max<int64_t>(1, row_bytes));
    std::vector<std::byte> raw(std::min(block, rows.count) * row_bytes);
    for (int64_t begin = 0; begin < rows.count; begin += block) {
        const int64_t count = std::min(block, rows.count - begin);
        device_.copy(raw.data(), tensor.data + (rows.begin + begin) * row_bytes, count * row_bytes);
        convert_rows(tensor, raw.data(), count, columns, copy.data + begin * width * bytes_of(copy.dtype));
    }
    return copy;
}

Tensor Twin::whole(const Tensor& tensor) {
    Tensor copy = rows(tensor, {0, tensor.rows()}, {tensor.elements()});
    copy.rank = tensor.rank;
    copy.shape = tensor.shape;
    return copy;
}

Check Twin::compare(const std::string& name, const Tensor& result, Range rows,
                    const std::vector<Range>& columns, const Tensor& expected, Rounding rounding) {
    const Tensor actual = part(result, rows, columns, {expected.elements()});
    return {.part = name, .error = norm_error(actual, expected), .tolerance = tolerance(rounding)};
}

}  // namespace minipuzzle::cli::bench
