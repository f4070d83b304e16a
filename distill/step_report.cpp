#include "distill/step_report.h"

#include <cmath>

namespace minipuzzle::distill {
namespace {

constexpr int64_t kAlignment = 256;

template <class T>
double ordered_sum(const std::byte* values, int64_t count) {
    const T* typed = reinterpret_cast<const T*>(values);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(typed[i]);
    return sum;
}

int64_t padded(int64_t bytes) { return div_up(bytes, kAlignment) * kAlignment; }

}  // namespace

StepReport::StepReport(Backend& backend, DeviceArena& arena, const StepShape& shape, int64_t parameters)
    : backend_(backend), seq_len_(shape.seq_len), measuring_(arena.is_measuring()) {
    const DType type = precise_type(backend.compute_type());
    const int64_t tokens = shape.batch * shape.seq_len;
    const LossWeights& loss = shape.loss;
    const int64_t terms = (loss.kl > 0) + (loss.ce > 0) + (loss.reverse_kl > 0) + std::ssize(shape.pairs);
    const int64_t bytes = padded(parameters * bytes_of(DType::f64)) + terms * padded(tokens * bytes_of(type));
    block_ = arena.take("losses and norms of a step", {bytes}, DType::u8);
    host_.resize(static_cast<std::size_t>(bytes));
    int64_t offset = 0;
    const auto take = [&](DType of, int64_t count) {
        Tensor tensor(block_.data ? block_.data + offset : nullptr, of, {count}, backend.device());
        offset += padded(tensor.bytes());
        return tensor;
    };
    squares_ = take(DType::f64, parameters);
    if (loss.kl > 0) kl_ = take(type, tokens);
    if (loss.ce > 0) ce_ = take(type, tokens);
    if (loss.reverse_kl > 0) reverse_kl_ = take(type, tokens);
    for (std::size_t i = 0; i < shape.pairs.size(); ++i) features_.push_back(take(type, tokens));
}

Tensor StepReport::part(const Tensor& values, int64_t first, int64_t rows) const {
    return values ? values.slice(first * seq_len_, rows * seq_len_) : Tensor();
}

void StepReport::fetch() {
    if (!measuring_) backend_.copy(host_.data(), block_.data, block_.bytes());
    backend_.synchronize();
}

const std::byte* StepReport::on_host(const Tensor& tensor) const {
    return measuring_ ? host_.data() : host_.data() + (tensor.data - block_.data);
}

double StepReport::host_sum(const Tensor& values, int64_t rows) const {
    if (!values) return 0;
    const int64_t count = rows * seq_len_;
    return values.dtype == DType::f64 ? ordered_sum<double>(on_host(values), count)
                                      : ordered_sum<float>(on_host(values), count);
}

LossSums StepReport::sums(int64_t rows) const {
    LossSums sums;
    sums.kl = host_sum(kl_, rows);
    sums.ce = host_sum(ce_, rows);
    sums.reverse_kl = host_sum(reverse_kl_, rows);
    for (const Tensor& values : features_) sums.feature += host_sum(values, rows);
    return sums;
}

double StepReport::gradient_norm() const {
    return std::sqrt(ordered_sum<double>(on_host(squares_), squares_.elements()));
}

}  // namespace minipuzzle::distill
