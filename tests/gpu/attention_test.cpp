// Attention on the device: values against the CPU, which shapes go through cuDNN, and that a sequence's bits
// depend on that sequence alone.
#include "kernels/cuda/attention.h"

#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Shape {
    int64_t batch, length, heads, kv_heads, head_dim;
    bool lse = true;
};

AttentionForward arguments(const Shape& s) {
    return {.heads = s.heads, .kv_heads = s.kv_heads, .head_dim = s.head_dim};
}

std::vector<float> normals(uint64_t seed, int64_t count) {
    return rounded_to_bf16(convert<float>(Random(seed).normals(count)));
}

// q, k and v on the device, and everything that a run writes.
struct Operands {
    Operands(Backend& gpu, const Shape& s)
        : q_values(normals(1, s.batch * s.length * s.heads * s.head_dim)),
          k_values(normals(2, s.batch * s.length * s.kv_heads * s.head_dim)),
          v_values(normals(3, s.batch * s.length * s.kv_heads * s.head_dim)),
          q(gpu, DType::bf16, {s.batch, s.length, s.heads * s.head_dim}, q_values),
          k(gpu, DType::bf16, {s.batch, s.length, s.kv_heads * s.head_dim}, k_values),
          v(gpu, DType::bf16, {s.batch, s.length, s.kv_heads * s.head_dim}, v_values),
          out(gpu, DType::bf16, {s.batch, s.length, s.heads * s.head_dim}),
          lse(gpu, DType::f32, {s.batch, s.heads, s.length}) {}

    AttentionForward of(const Shape& s) const {
        AttentionForward args = arguments(s);
        args.q = q;
        args.k = k;
        args.v = v;
        args.out = out;
        if (s.lse) args.lse = lse;
        return args;
    }

    std::vector<float> q_values, k_values, v_values;
    DeviceTensor q, k, v, out, lse;
};

Tensor shape_only(std::initializer_list<int64_t> extents) {
    return Tensor(nullptr, DType::bf16, extents, DeviceKind::cuda);
}

bool through_cudnn(cuda::Attention& attention, const Shape& s, bool documents = false) {
    AttentionForward args = arguments(s);
    args.q = args.out = shape_only({s.batch, s.length, s.heads * s.head_dim});
    args.k = args.v = shape_only({s.batch, s.length, s.kv_heads * s.head_dim});
    if (documents) args.document = Tensor(nullptr, DType::i32, {s.batch, s.length}, DeviceKind::cuda);
    if (s.lse) args.lse = Tensor(nullptr, DType::f32, {s.batch, s.heads, s.length}, DeviceKind::cuda);
    return attention.through_cudnn(args);
}

}  // namespace

TEST_CASE("long rows match the CPU", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const Shape& s : {Shape{2, 1024, 4, 2, 64}, Shape{1, 1280, 6, 2, 128}, Shape{1, 1500, 3, 1, 32},
                           Shape{1, 1280, 2, 2, 80}, Shape{1, 2048, 4, 1, 128, false},
                           Shape{1, 1280, 2, 1, 8}, Shape{1, 1100, 2, 1, 36}, Shape{1, 1030, 2, 1, 160}}) {
        CAPTURE(s.batch, s.length, s.heads, s.kv_heads, s.head_dim, s.lse);
        const Operands on(*gpu, s);
        gpu->run(on.of(s));

        std::vector<float> out(on.q_values.size()), lse(s.batch * s.heads * s.length);
        AttentionForward args = arguments(s);
        args.q = tensor(on.q_values, {s.batch, s.length, s.heads * s.head_dim});
        args.k = tensor(on.k_values, {s.batch, s.length, s.kv_heads * s.head_dim});
        args.v = tensor(on.v_values, {s.batch, s.length, s.kv_heads * s.head_dim});
        args.out = tensor(out, {s.batch, s.length, s.heads * s.head_dim});
        args.lse = tensor(lse, {s.batch, s.heads, s.length});
        make_cpu_backend(DType::f32, 0)->run(args);
        // The weights are rounded to bf16 for their product with v, and so is the result: 2^-9 each.
        CHECK(norm_error(on.out.download(), out) < 2 * 0x1p-9);
        // float32 throughout: scores of order 10 are off by some 2^-24 of that.
        if (s.lse) CHECK(relative_error(on.lse.download(), lse) < 1e-5);
    }
}

TEST_CASE("the published shapes go through cuDNN, short rows and documents do not", "[gpu]") {
    if (!cuda_backend()) return;
    cuda::Attention attention;
    for (const bool lse : {false, true}) {
        CHECK(through_cudnn(attention, {1, 8192, 32, 8, 128, lse}));
        CHECK(through_cudnn(attention, {1, 8192, 64, 8, 128, lse}));
        CHECK(through_cudnn(attention, {1, 8192, 40, 8, 128, lse}));
        CHECK(through_cudnn(attention, {4, 1024, 32, 8, 128, lse}));
        CHECK(through_cudnn(attention, {4, 4096, 8, 8, 64, lse}));
    }
    CHECK_FALSE(through_cudnn(attention, {1, 1023, 32, 8, 128}));
    CHECK_FALSE(through_cudnn(attention, {1, 1025, 32, 8, 128}));
    CHECK_FALSE(through_cudnn(attention, {1, 8192, 32, 8, 128}, true));
    CHECK_FALSE(through_cudnn(attention, {1, 8192, 4, 2, 36}));
    CHECK_FALSE(through_cudnn(attention, {1, 8192, 4, 2, 136}));
}

TEST_CASE("a sequence's attention depends on that sequence alone", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const Shape& s : {Shape{3, 1024, 32, 8, 128}, Shape{3, 1280, 6, 2, 64},
                           Shape{3, 2560, 4, 2, 32, false}, Shape{3, 1111, 6, 2, 64}}) {
        CAPTURE(s.length, s.heads, s.head_dim);
        const Operands on(*gpu, s);
        const AttentionForward all = on.of(s);
        gpu->run(all);
        const auto out = on.out.download(), lse = on.lse.download();
        const int64_t size = s.length * s.heads * s.head_dim, rows = s.length * s.heads;
        for (int64_t b = 0; b < s.batch; ++b) {
            CAPTURE(b);
            const DeviceTensor alone(*gpu, DType::bf16, {1, s.length, s.heads * s.head_dim});
            const DeviceTensor alone_lse(*gpu, DType::f32, {1, s.heads, s.length});
            AttentionForward one = arguments(s);
            one.q = all.q.slice(b, 1);
            one.k = all.k.slice(b, 1);
            one.v = all.v.slice(b, 1);
            one.out = alone;
            if (s.lse) one.lse = alone_lse;
            gpu->run(one);
            CHECK(alone.download() ==
                  std::vector<float>(out.begin() + b * size, out.begin() + (b + 1) * size));
            if (s.lse)
                CHECK(alone_lse.download() ==
                      std::vector<float>(lse.begin() + b * rows, lse.begin() + (b + 1) * rows));
        }
    }
}
