// MeasuringBackend: validates every operation and does nothing else. A device whose operations need scratch
// memory derives from it and counts.
#pragma once

#include <algorithm>

#include "kernels/backend.h"

namespace minipuzzle {

class MeasuringBackend : public Backend {
  public:
    MeasuringBackend(DType compute_type, DeviceKind device) : compute_type_(compute_type), device_(device) {}

    std::string name() const override { return "measuring"; }
    DeviceKind device() const override { return device_; }
    DType compute_type() const override { return compute_type_; }
    // Memory is never given out: what a measuring arena wires has shapes only.
    std::byte* allocate(int64_t) override { return nullptr; }
    void free(std::byte*) noexcept override {}
    int64_t available() const override;
    std::byte* allocate_pinned(int64_t) override { return nullptr; }
    void free_pinned(std::byte*) noexcept override {}
    void copy(std::byte*, const std::byte*, int64_t) override {}
    std::unique_ptr<CopyQueue> make_copy_queue() override;
    void zero(const Tensor&) override {}
    void synchronize() override {}
    double elapsed_ms(const std::function<void()>& operations) override {
        operations();
        return 0;
    }
    std::unique_ptr<Backend> measuring() const override;
    void reserve_scratch(int64_t) override {}
    int64_t scratch_bytes() const override { return scratch_; }

    void run(const EmbeddingForward& args) override { validate(args); }
    void run(const EmbeddingBackward& args) override { validate(args); }
    void run(const RmsNormForward& args) override { validate(args); }
    void run(const RmsNormBackward& args) override { validate(args); }
    void run(const QuantizeRows& args) override { validate(args); }
    void run(const LinearForward& args) override { validate(args); }
    void run(const LinearBackward& args) override { validate(args); }
    void run(const SquaredReluForward& args) override { validate(args); }
    void run(const SquaredReluBackward& args) override { validate(args); }
    void run(const Add& args) override { validate(args); }
    void run(const ConvForward& args) override { validate(args); }
    void run(const ConvBackward& args) override { validate(args); }
    void run(const SsdForward& args) override { validate(args); }
    void run(const SsdBackward& args) override { validate(args); }
    void run(const GatedNormForward& args) override { validate(args); }
    void run(const GatedNormBackward& args) override { validate(args); }
    void run(const AttentionForward& args) override { validate(args); }
    void run(const AttentionBackward& args) override { validate(args); }
    void run(const VocabularyLoss& args) override { validate(args); }
    void run(const CompareLogits& args) override { validate(args); }
    void run(const FeatureLoss& args) override { validate(args); }
    void run(const ActivationSums& args) override { validate(args); }
    void run(const AccumulatePowers& args) override { validate(args); }
    void run(const SquaredNorm& args) override {
        validate(args);
        if (args.out) *args.out = 0;
    }
    void run(const RandomNormal& args) override { validate(args); }
    void run(const GradientNorms& args) override { validate(args); }
    void run(const AdamW& args) override { validate(args); }

  protected:
    void need_scratch(int64_t bytes) { scratch_ = std::max(scratch_, bytes); }

  private:
    DType compute_type_;
    DeviceKind device_;
    int64_t scratch_ = 0;
};

}  // namespace minipuzzle
