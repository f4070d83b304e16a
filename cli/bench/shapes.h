// The sizes that operations are measured at.
#pragma once

#include <fmt/format.h>

#include <string>

#include "cli/bench/operation.h"

namespace minipuzzle::cli::bench {

struct ModelSizes {
    std::string name;
    int64_t width, ffn;
    MambaShape mamba;
    int64_t heads, kv_heads, head_dim, vocabulary;
};

// Nemotron-H-8B and -56B, and a small model for the CPU.
ModelSizes sizes_8b();
ModelSizes sizes_56b();
ModelSizes sizes_small();

struct Batch {
    int64_t sequences, length;
    int64_t rows() const { return sequences * length; }
};

inline std::string describe(const std::string& model, Batch batch) {
    return fmt::format("{} B{} T{}", model, batch.sequences, batch.length);
}

struct ProductShape {
    std::string name;
    int64_t inputs, outputs;
    bool residual;
};
// in_proj, out_proj, up and down.
std::vector<ProductShape> product_shapes(const ModelSizes& model);

// Each adds its operations at one shape.
void add_embedding(Operations& list, const ModelSizes& model, Batch batch);
void add_rms_norm(Operations& list, const ModelSizes& model, Batch batch);
// in_proj, out_proj, up and down; the two that end a layer add the residual.
void add_products(Operations& list, const ModelSizes& model, Batch batch);
// Both gradients of each of them; d_weight accumulates.
void add_product_gradients(Operations& list, const ModelSizes& model, Batch batch);
// The same products of E4M3 codes, and what ends in codes: RMS norm, squared ReLU, gated norm and rows as
// they are.
void add_quantised_products(Operations& list, const ModelSizes& model, Batch batch);
void add_quantised_rows(Operations& list, const ModelSizes& model, Batch batch);
void add_squared_relu(Operations& list, const ModelSizes& model, Batch batch);
void add_add(Operations& list, const ModelSizes& model, Batch batch);
// Of FFN neurons, of the channels of Mamba heads and of KV heads.
void add_activation_sums(Operations& list, const ModelSizes& model, Batch batch);
void add_accumulate_powers(Operations& list, const ModelSizes& model, Batch batch);
void add_conv(Operations& list, const ModelSizes& model, Batch batch);
void add_ssd(Operations& list, const ModelSizes& model, Batch batch);
void add_ssd_backward(Operations& list, const ModelSizes& model, Batch batch);
void add_gated_norm(Operations& list, const ModelSizes& model, Batch batch);
void add_conv_backward(Operations& list, const ModelSizes& model, Batch batch);
void add_gated_norm_backward(Operations& list, const ModelSizes& model, Batch batch);
void add_attention(Operations& list, const ModelSizes& model, Batch batch);
void add_attention_backward(Operations& list, const ModelSizes& model, Batch batch, bool deterministic);
void add_embedding_backward(Operations& list, const ModelSizes& model, Batch batch);
void add_rms_norm_backward(Operations& list, const ModelSizes& model, Batch batch);
void add_squared_relu_backward(Operations& list, const ModelSizes& model, Batch batch);
// Cosine and squared error.
void add_feature_loss(Operations& list, const ModelSizes& model, Batch batch);
// Gradient norms and AdamW over some of the model's parameters.
void add_optimizer(Operations& list, const ModelSizes& model);
// The scoring head: a base and this many variants.
void add_compare_logits(Operations& list, const ModelSizes& model, int64_t rows, int variants);
// Forward KL against a teacher as wide, with both gradients.
void add_vocabulary_loss(Operations& list, const ModelSizes& model, int64_t rows);

template <class Args>
void add(Operations& list, const std::string& operation, const std::string& shape,
         typename OperationOf<Args>::Make make, typename OperationOf<Args>::CheckResult check) {
    list.push_back(std::make_unique<OperationOf<Args>>(operation, shape, std::move(make), std::move(check)));
}

}  // namespace minipuzzle::cli::bench
