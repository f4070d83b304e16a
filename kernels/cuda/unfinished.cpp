#include "kernels/cuda/operations.h"

namespace minipuzzle::cuda {

namespace {
[[noreturn]] void missing(const char* operation) {
    fail_usage(std::string(operation) + " runs on the CPU in this version");
}
}  // namespace

void run(const Context&, const EmbeddingBackward&) { missing("EmbeddingBackward"); }
void run(const Context&, const RmsNormBackward&) { missing("RmsNormBackward"); }
void run(const Context&, const SquaredReluBackward&) { missing("SquaredReluBackward"); }
void run(const Context&, const ConvBackward&) { missing("ConvBackward"); }
void run(const Context&, const SsdBackward&) { missing("SsdBackward"); }
void run(const Context&, const GatedNormBackward&) { missing("GatedNormBackward"); }
void run(const Context&, const FeatureLoss&) { missing("FeatureLoss"); }
void run(const Context&, const GradientNorms&) { missing("GradientNorms"); }
void run(const Context&, const AdamW&) { missing("AdamW"); }
void run(const Context&, Attention&, const AttentionBackward&) { missing("AttentionBackward"); }
int64_t scratch_bytes(const EmbeddingBackward&) { return 0; }
int64_t scratch_bytes(const RmsNormBackward&) { return 0; }
int64_t scratch_bytes(const ConvBackward&) { return 0; }
int64_t scratch_bytes(const SsdBackward&) { return 0; }
int64_t scratch_bytes(const GatedNormBackward&) { return 0; }
int64_t scratch_bytes(const AttentionBackward&) { return 0; }
int64_t scratch_bytes(const GradientNorms&) { return 0; }
int64_t scratch_bytes(const AdamW&) { return 0; }

}  // namespace minipuzzle::cuda
