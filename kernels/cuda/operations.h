// The launchers of the CUDA backend, one per operation of ops.h; arguments were validated. bf16 storage,
// float32 accumulation, no atomics on floats: results repeat bit for bit and a sequence's bits depend on that
// sequence alone (not so where AttentionBackward is told that sums may come in any order). Each launcher
// states its ideal bytes and FLOPs in its source.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace minipuzzle::cuda {

class Products;   // products.h
class Attention;  // attention.h

void run(const Context&, const EmbeddingForward&);
void run(const Context&, const RmsNormForward&);
void run(const Context&, const QuantizeRows&);
void run(const Context&, const SquaredReluForward&);
void run(const Context&, const Add&);
void run(const Context&, const ConvForward&);
void run(const Context&, const SsdForward&);
void run(const Context&, const GatedNormForward&);
void run(const Context&, const ActivationSums&);
void run(const Context&, const AccumulatePowers&);
void run(const Context&, const SquaredNorm&);
void run(const Context&, const RandomNormal&);
void run(const Context&, const EmbeddingBackward&);
void run(const Context&, const RmsNormBackward&);
void run(const Context&, const SquaredReluBackward&);
void run(const Context&, const ConvBackward&);
void run(const Context&, const SsdBackward&);
void run(const Context&, const GatedNormBackward&);
void run(const Context&, const FeatureLoss&);
void run(const Context&, const GradientNorms&);
void run(const Context&, const AdamW&);
// These go through a library and keep its plans.
void run(const Context&, Products&, const LinearForward&);
void run(const Context&, Attention&, const AttentionForward&);
void run(const Context&, Products&, const CompareLogits&);
void run(const Context&, Products&, const LinearBackward&);
void run(const Context&, Attention&, const AttentionBackward&);
void run(const Context&, Products&, const VocabularyLoss&);

// Scratch memory of one call, from shapes alone (tensors may have no memory).
int64_t scratch_bytes(const SsdForward&);
int64_t scratch_bytes(const AttentionForward&);
int64_t scratch_bytes(const CompareLogits&);
int64_t scratch_bytes(const SquaredNorm&);
int64_t scratch_bytes(const EmbeddingBackward&);
int64_t scratch_bytes(const RmsNormBackward&);
int64_t scratch_bytes(const ConvBackward&);
int64_t scratch_bytes(const SsdBackward&);
int64_t scratch_bytes(const GatedNormBackward&);
int64_t scratch_bytes(const AttentionBackward&);
int64_t scratch_bytes(const VocabularyLoss&);
int64_t scratch_bytes(const GradientNorms&);
int64_t scratch_bytes(const AdamW&);

}  // namespace minipuzzle::cuda
