#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {

ModelSizes sizes_8b() {
    return {.name = "8B",
            .width = 4096,
            .ffn = 21504,
            .mamba = {.heads = 128, .head_dim = 64, .state = 128, .groups = 8, .conv_kernel = 4},
            .heads = 32,
            .kv_heads = 8,
            .head_dim = 128,
            .vocabulary = 131072};
}

ModelSizes sizes_56b() {
    return {.name = "56B",
            .width = 8192,
            .ffn = 32768,
            .mamba = {.heads = 256, .head_dim = 64, .state = 256, .groups = 8, .conv_kernel = 4},
            .heads = 64,
            .kv_heads = 8,
            .head_dim = 128,
            .vocabulary = 131072};
}

ModelSizes sizes_small() {
    return {.name = "small",
            .width = 256,
            .ffn = 1024,
            .mamba = {.heads = 16, .head_dim = 32, .state = 32, .groups = 2, .conv_kernel = 4},
            .heads = 8,
            .kv_heads = 2,
            .head_dim = 32,
            .vocabulary = 2048};
}

namespace {

Operations gpu_operations() {
    const ModelSizes small = sizes_8b(), large = sizes_56b();
    constexpr Batch one{1, 8192}, four{4, 8192}, long_one{1, 65536};
    Operations list;
    add_embedding(list, small, four);
    for (const ModelSizes& model : {small, large}) {
        add_products(list, model, one);
        add_quantised_products(list, model, one);
        add_quantised_rows(list, model, four);
    }
    add_ssd(list, small, one);
    add_ssd(list, large, one);
    add_ssd(list, small, four);
    add_ssd(list, small, long_one);
    add_ssd_backward(list, small, one);
    add_ssd_backward(list, large, one);
    add_ssd_backward(list, small, four);
    add_attention(list, small, one);
    for (const bool deterministic : {true, false}) add_attention_backward(list, small, one, deterministic);
    add_attention_backward(list, large, one, true);
    for (const ModelSizes& model : {small, large}) {
        add_rms_norm(list, model, four);
        add_conv(list, model, four);
        add_gated_norm(list, model, four);
        add_conv_backward(list, model, four);
        add_gated_norm_backward(list, model, four);
        add_squared_relu(list, model, four);
    }
    add_add(list, small, four);
    add_activation_sums(list, small, four);
    add_accumulate_powers(list, small, four);
    add_compare_logits(list, small, one.rows(), 0);
    add_compare_logits(list, small, one.rows(), 1);
    add_embedding_backward(list, small, four);
    for (const ModelSizes& model : {small, large}) {
        add_rms_norm_backward(list, model, four);
        add_squared_relu_backward(list, model, four);
        add_feature_loss(list, model, four);
    }
    add_optimizer(list, small);
    for (const ModelSizes& model : {small, large}) add_product_gradients(list, model, one);
    add_vocabulary_loss(list, small, one.rows());
    return list;
}

Operations cpu_operations() {
    const ModelSizes model = sizes_small();
    constexpr Batch batch{1, 512};
    Operations list;
    add_embedding(list, model, batch);
    add_products(list, model, batch);
    add_quantised_products(list, model, batch);
    add_quantised_rows(list, model, batch);
    add_ssd(list, model, batch);
    add_ssd_backward(list, model, batch);
    add_attention(list, model, batch);
    add_attention_backward(list, model, batch, true);
    add_rms_norm(list, model, batch);
    add_conv(list, model, batch);
    add_gated_norm(list, model, batch);
    add_conv_backward(list, model, batch);
    add_gated_norm_backward(list, model, batch);
    add_squared_relu(list, model, batch);
    add_add(list, model, batch);
    add_activation_sums(list, model, batch);
    add_accumulate_powers(list, model, batch);
    add_compare_logits(list, model, batch.rows(), 0);
    add_compare_logits(list, model, batch.rows(), 1);
    add_embedding_backward(list, model, batch);
    add_rms_norm_backward(list, model, batch);
    add_squared_relu_backward(list, model, batch);
    add_feature_loss(list, model, batch);
    add_optimizer(list, model);
    add_product_gradients(list, model, batch);
    add_vocabulary_loss(list, model, batch.rows());
    return list;
}

}  // namespace

Operations all_operations(DeviceKind device) {
    return device == DeviceKind::cpu ? cpu_operations() : gpu_operations();
}

}  // namespace minipuzzle::cli::bench
