#include "kernels/backend.h"

namespace minipuzzle {

namespace {

// Memory is never given out: what a measuring arena wires has shapes only.
class MeasuringBackend final : public Backend {
  public:
    MeasuringBackend(DType compute_type, DeviceKind device) : compute_type_(compute_type), device_(device) {}

    std::string name() const override { return "measuring"; }
    DeviceKind device() const override { return device_; }
    DType compute_type() const override { return compute_type_; }
    std::byte* allocate(int64_t) override { return nullptr; }
    void free(std::byte*) noexcept override {}
    void copy(std::byte*, const std::byte*, int64_t) override {}
    void zero(const Tensor&) override {}
    void synchronize() override {}

    void run(const EmbeddingForward& args) override { validate(args); }
    void run(const EmbeddingBackward& args) override { validate(args); }
    void run(const RmsNormForward& args) override { validate(args); }
    void run(const RmsNormBackward& args) override { validate(args); }
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
    void run(const AbsoluteColumnSums& args) override { validate(args); }
    void run(const SquaredNorm& args) override {
        validate(args);
        if (args.out) *args.out = 0;
    }
    void run(const AdamW& args) override { validate(args); }

  private:
    DType compute_type_;
    DeviceKind device_;
};

}  // namespace

std::unique_ptr<Backend> make_measuring_backend(DType compute_type, DeviceKind device) {
    return std::make_unique<MeasuringBackend>(compute_type, device);
}

}  // namespace minipuzzle
