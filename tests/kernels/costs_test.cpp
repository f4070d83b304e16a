#include "kernels/costs.h"

#include "tests/kernels/testing.h"

using namespace minipuzzle;

namespace {

Tensor bf16(std::initializer_list<int64_t> extents) { return Tensor(nullptr, DType::bf16, extents); }
Tensor f32(std::initializer_list<int64_t> extents) { return Tensor(nullptr, DType::f32, extents); }
Tensor i32(std::initializer_list<int64_t> extents) { return Tensor(nullptr, DType::i32, extents); }

}  // namespace

// Shapes of Nemotron-H-8B; numbers worked out by hand.
TEST_CASE("costs count each tensor once, and what is not read not at all") {
    const MambaShape s{.heads = 128, .head_dim = 64, .state = 128, .groups = 8, .conv_kernel = 4};
    const Tensor zxbcdt = bf16({1, 8192, 18560}), xbc = bf16({1, 8192, 10240}), inner = bf16({1, 8192, 8192});

    const Cost embedding = cost(EmbeddingForward{i32({1, 10}), bf16({131072, 4096}), bf16({1, 10, 4096})});
    CHECK(embedding.bytes == 10 * (4 + 2 * 4096 * 2));
    CHECK(embedding.flops == 0);

    const Cost linear =
        cost(LinearForward{.x = bf16({2, 3, 5}), .weight = bf16({7, 5}), .out = bf16({2, 3, 7})});
    CHECK(linear.bytes == 2 * (30 + 35 + 42));
    CHECK(linear.flops == 2 * 6 * 5 * 7);

    const Tensor codes(nullptr, DType::f8_e4m3, {2, 3, 5}), matrix(nullptr, DType::f8_e4m3, {7, 5});
    const Cost coded = cost(LinearForward{
        .x = codes, .weight = matrix, .out = bf16({2, 3, 7}), .x_scale = f32({6}), .weight_scale = f32({7})});
    CHECK(coded.bytes == 30 + 35 + 2 * 42 + 4 * (6 + 7));
    CHECK(coded.quantised_flops == 2 * 6 * 5 * 7);
    CHECK(coded.flops == 0);
    CHECK(cost(QuantizeRows{bf16({2, 3, 5}), codes, f32({6})}).bytes == 2 * 30 + 30 + 4 * 6);

    const Cost conv = cost(ConvForward{.shape = s, .zxbcdt = zxbcdt, .weight = bf16({10240, 4}), .xbc = xbc});
    CHECK(conv.bytes == 2 * (2 * 8192.0 * 10240 + 4 * 10240));

    const Cost norm =
        cost(GatedNormForward{.shape = s, .y = inner, .zxbcdt = zxbcdt, .weight = f32({8192}), .out = inner});
    CHECK(norm.bytes == 3 * 2 * 8192.0 * 8192 + 4 * 8192);

    SsdForward ssd{.shape = s,
                   .xbc = xbc,
                   .zxbcdt = zxbcdt,
                   .dt_bias = f32({128}),
                   .a_log = f32({128}),
                   .d = f32({128}),
                   .y = inner};
    CHECK(cost(ssd).bytes == 8192 * 2.0 * (10240 + 8192 + 128) + 3 * 4 * 128);
    // 4 H P N + 129 (H P + G N) a token.
    CHECK(cost(ssd).flops == 8192.0 * (4 * 8192 * 128 + 129 * (8192 + 1024)));
}

TEST_CASE("attention costs the causal half, the scoring head a product a model") {
    const AttentionForward attention{.heads = 4,
                                     .kv_heads = 2,
                                     .head_dim = 8,
                                     .q = bf16({3, 5, 32}),
                                     .k = bf16({3, 5, 16}),
                                     .v = bf16({3, 5, 16}),
                                     .out = bf16({3, 5, 32})};
    CHECK(cost(attention).bytes == 2 * 3 * 5 * (32 + 16 + 16 + 32));
    // Pairs of a query and a key before or at it: 15; a product and a sum for each of 8 columns, twice.
    CHECK(cost(attention).flops == 3 * 4 * 15 * 8 * 4);

    const LmHead base{bf16({6, 10}), bf16({50, 10})}, other{bf16({6, 20}), bf16({50, 20})};
    CompareLogits head{.base = base, .targets = i32({6}), .base_loss = f32({6})};
    CHECK(cost(head).flops == 2 * 6 * 10 * 50);
    CHECK(cost(head).bytes == 2 * (60 + 500) + 4 * 12);
    head.variants = {{.variant = other, .loss = f32({6}), .kl = f32({6})}};
    CHECK(cost(head).flops == 2 * 6 * 10 * 50 + 2 * 6 * 20 * 50);
    CHECK(cost(head).bytes == 2 * (60 + 500) + 4 * 12 + 2 * (120 + 1000) + 4 * 12);
}
