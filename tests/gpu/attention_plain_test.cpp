// The plain attention kernel against the CPU in double, on inputs rounded to bf16.
#include "kernels/cuda/attention_plain.h"

#include "tests/gpu/attention_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

using Case = AttentionCase;

// out: the probabilities and the result are rounded to bf16 once each, 2^-9 of a value at most and 2^-9 /
// sqrt(3) in the mean, together 1.6e-3; measured 1.6e-3 to 2.4e-3, short rows the most.
constexpr double kOutTolerance = 6e-3;
// lse: sums of float32 products; the approximate exponential errs by 2^-22.
constexpr double kLseTolerance = 1e-5;

// One case's tensors on the device and the reference.
class PlainAttention {
  public:
    PlainAttention(Backend& gpu, const Case& sizes)
        : c(sizes),
          random_(sizes.time * 131 + sizes.head_dim),
          q_values_(
              rounded_to_bf16(random_.normals(c.batch * c.time * c.heads * c.head_dim, 0, c.q_deviation))),
          k_values_(rounded_to_bf16(random_.normals(c.batch * c.time * c.kv_heads * c.head_dim))),
          v_values_(rounded_to_bf16(random_.normals(c.batch * c.time * c.kv_heads * c.head_dim))),
          ids_(random_documents(c, random_)),
          q_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}, q_values_),
          k_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}, k_values_),
          v_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}, v_values_),
          document_(gpu, DType::i32, {c.batch, c.time}, ids_),
          out_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}),
          lse_(gpu, DType::f32, {c.batch, c.heads, c.time}) {}

    // Sequences [begin, begin + count) on the device, into poisoned outputs.
    void run(int64_t begin, int64_t count, bool lse = true) {
        const auto rows = [&](const DeviceTensor& tensor) { return tensor.view().slice(begin, count); };
        AttentionForward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        args.q = rows(q_);
        args.k = rows(k_);
        args.v = rows(v_);
        if (c.new_document > 0) args.document = rows(document_);
        args.out = rows(out_);
        if (lse) args.lse = rows(lse_);
        validate(args);
        MP_CUDA(cudaDeviceSynchronize());
        cuda::attention_forward_plain(cuda::Context{}, args);
        MP_CUDA(cudaDeviceSynchronize());
    }
    void poison() {
        out_.poison();
        lse_.poison();
    }
    std::vector<float> out() const { return out_.download(); }
    std::vector<float> lse() const { return lse_.download(); }

    struct Reference {
        std::vector<double> out, lse;
    };
    Reference reference() const {
        Reference r{std::vector<double>(q_values_.size()), std::vector<double>(c.batch * c.heads * c.time)};
        AttentionForward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        args.q = tensor(q_values_, {c.batch, c.time, c.heads * c.head_dim});
        args.k = tensor(k_values_, {c.batch, c.time, c.kv_heads * c.head_dim});
        args.v = tensor(v_values_, {c.batch, c.time, c.kv_heads * c.head_dim});
        if (c.new_document > 0) args.document = tensor(ids_, {c.batch, c.time});
        args.out = tensor(r.out, {c.batch, c.time, c.heads * c.head_dim});
        args.lse = tensor(r.lse, {c.batch, c.heads, c.time});
        make_cpu_backend(DType::f64, 0)->run(args);
        return r;
    }

    const Case c;

  private:
    Random random_;
    std::vector<double> q_values_, k_values_, v_values_;
    std::vector<int32_t> ids_;
    DeviceTensor q_, k_, v_, document_, out_, lse_;
};

void check_case(Backend& gpu, const Case& c) {
    INFO("B " << c.batch << " T " << c.time << " heads " << c.heads << "/" << c.kv_heads << " of "
              << c.head_dim << ", documents " << c.new_document);
    PlainAttention attention(gpu, c);
    attention.run(0, c.batch);
    const auto out = attention.out(), lse = attention.lse();
    const auto expected = attention.reference();
    CHECK(norm_error(out, expected.out) < kOutTolerance);
    CHECK(norm_error(lse, expected.lse) < kLseTolerance);

    // A sequence's bits: alone, again, and without lse.
    attention.poison();
    for (int64_t b = 0; b < c.batch; ++b) attention.run(b, 1);
    CHECK(attention.out() == out);
    CHECK(attention.lse() == lse);
    attention.poison();
    attention.run(0, c.batch, false);
    CHECK(attention.out() == out);
}

}  // namespace

TEST_CASE("plain attention: small shapes", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const double new_document : {0.0, 0.1}) {
        check_case(*gpu, {2, 70, 2, 1, 128, new_document});
        check_case(*gpu, {1, 130, 2, 2, 32, new_document});
        check_case(*gpu, {2, 33, 1, 1, 13, new_document});
    }
}

TEST_CASE("plain attention: lengths around the blocks' edges, with and without documents", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 63, 64, 65, 127, 128, 129, 200, 517})
        for (const double new_document : {0.0, 0.02}) {
            check_case(*gpu, {2, time, 4, 2, 128, new_document});
            check_case(*gpu, {3, time, 6, 1, 32, new_document});
        }
}

TEST_CASE("plain attention: any head_dim up to 256", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {1, 7, 8, 16, 33, 40, 64, 80, 96, 100, 128, 136, 160, 192, 200, 255, 256})
        for (const double new_document : {0.0, 0.05})
            check_case(*gpu, {2, 150, 3, head_dim % 3 == 0 ? 3 : 1, head_dim, new_document});
    PlainAttention wide(*gpu, {1, 2, 1, 1, 257});
    CHECK_THROWS_AS(wide.run(0, 1), Error);
}

TEST_CASE("plain attention: many short documents, one long one, single tokens, sharp softmax", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    check_case(*gpu, {1, 517, 8, 8, 64, 0.3});
    check_case(*gpu, {2, 1100, 4, 4, 128, 0.003});
    check_case(*gpu, {1, 300, 2, 1, 128, 1.0});
    check_case(*gpu, {1, 300, 2, 1, 128, 0, 30});
}
