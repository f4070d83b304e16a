// CpuBackend: the reference implementation, float (the product) or double (gradient checks). One .cpp per
// family.
#pragma once

#include <Eigen/Dense>

#include "kernels/backend.h"
#include "kernels/cpu/parallel.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
// A row-major matrix in somebody else's memory; rows may lie further apart than they are wide.
template <class T>
using MatrixMap = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class T>
using ConstMatrixMap = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;

// Rows of a sequence that one product task takes. Counted from the sequence's start, so a row's bits depend
// on its sequence alone.
inline constexpr int64_t kRowBlock = 128;

template <class T>
class CpuBackend final : public Backend {
  public:
    explicit CpuBackend(int threads);

    std::string name() const override;
    DeviceKind device() const override { return DeviceKind::cpu; }
    DType compute_type() const override { return DTypeOf<T>::value; }
    std::byte* allocate(int64_t bytes) override;
    void free(std::byte* memory) noexcept override;
    int64_t available() const override { return std::numeric_limits<int64_t>::max(); }
    std::byte* allocate_pinned(int64_t bytes) override { return allocate(bytes); }
    void free_pinned(std::byte* memory) noexcept override { free(memory); }
    void copy(std::byte* to, const std::byte* from, int64_t bytes) override;
    std::unique_ptr<CopyQueue> make_copy_queue() override;
    void zero(const Tensor& tensor) override;
    void synchronize() override {}
    double elapsed_ms(const std::function<void()>& operations) override;
    std::unique_ptr<Backend> measuring() const override {
        return make_measuring_backend(compute_type(), DeviceKind::cpu);
    }
    void reserve_scratch(int64_t) override {}

    void run(const EmbeddingForward&) override;
    void run(const EmbeddingBackward&) override;
    void run(const RmsNormForward&) override;
    void run(const RmsNormBackward&) override;
    void run(const QuantizeRows&) override;
    void run(const LinearForward&) override;
    void run(const LinearBackward&) override;
    void run(const SquaredReluForward&) override;
    void run(const SquaredReluBackward&) override;
    void run(const Add&) override;
    void run(const ConvForward&) override;
    void run(const ConvBackward&) override;
    void run(const SsdForward&) override;
    void run(const SsdBackward&) override;
    void run(const GatedNormForward&) override;
    void run(const GatedNormBackward&) override;
    void run(const AttentionForward&) override;
    void run(const AttentionBackward&) override;
    void run(const VocabularyLoss&) override;
    void run(const CompareLogits&) override;
    void run(const FeatureLoss&) override;
    void run(const ActivationSums&) override;
    void run(const AccumulatePowers&) override;
    void run(const SquaredNorm&) override;
    void run(const RandomNormal&) override;
    void run(const GradientNorms&) override;
    void run(const AdamW&) override;

  private:
    ThreadPool pool_;
};

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
