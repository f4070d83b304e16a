// The attention backward on tensor cores of compute capability 9.0a, against the CPU in double on the same
// inputs, and at 8192 tokens against single rows of the gradients in double.
#include "kernels/cuda/attention_backward_hopper.h"

#include "kernels/cuda/attention_plain.h"
#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

constexpr int64_t kDim = 128;

// Two roundings to bf16, each of 2^-8 of a value at most and 1.6e-3 in the mean: P or dS as an operand, and
// the result. Together 2.3e-3, which is what was measured.
constexpr double kTolerance = 4e-3;
// What float32 leaves where a gradient vanishes (a first token's d_q is exactly 0): dP and delta are sums of
// 128 products of order 1, each rounded at 2^-24 of about 10.
constexpr double kFloor = 1e-5;

// ||a - b|| over the tolerance: below 1 where it is met.
double excess(const std::vector<float>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = static_cast<double>(a[i]) - b[i];
        difference += d * d;
        size += b[i] * b[i];
    }
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    return std::sqrt(difference) / (kTolerance * std::sqrt(size) + kFloor * std::sqrt(a.size()));
}

struct Case {
    int64_t batch, time, heads, kv_heads;
};

struct Gradients {
    std::vector<float> q, k, v;
    bool operator==(const Gradients&) const = default;
};

// Scratch memory of a call, poisoned, and the context with it.
class Scratch {
  public:
    Scratch(Backend& gpu, int64_t bytes) : memory_(gpu, DType::f32, {std::max<int64_t>(bytes / 4, 1)}) {
        context_.hopper_code = true;
        context_.scratch = memory_.view().data;
        context_.scratch_capacity = memory_.view().bytes();
    }
    const cuda::Context& context() const { return context_; }

  private:
    DeviceTensor memory_;
    cuda::Context context_;
};

// One case's tensors on the device; the forward's results come from the plain kernel.
class Attention {
  public:
    Attention(Backend& gpu, const Case& sizes)
        : c(sizes),
          gpu_(gpu),
          random_(sizes.time * 131 + sizes.heads),
          q_values_(values(c.heads)),
          k_values_(values(c.kv_heads)),
          v_values_(values(c.kv_heads)),
          d_out_values_(values(c.heads)),
          q_(gpu, DType::bf16, {c.batch, c.time, c.heads * kDim}, q_values_),
          k_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * kDim}, k_values_),
          v_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * kDim}, v_values_),
          d_out_(gpu, DType::bf16, {c.batch, c.time, c.heads * kDim}, d_out_values_),
          out_(gpu, DType::bf16, {c.batch, c.time, c.heads * kDim}),
          lse_(gpu, DType::f32, {c.batch, c.heads, c.time}),
          d_q_(gpu, DType::bf16, {c.batch, c.time, c.heads * kDim}),
          d_k_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * kDim}),
          d_v_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * kDim}) {
        AttentionForward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = kDim};
        args.q = q_;
        args.k = k_;
        args.v = v_;
        args.out = out_;
        args.lse = lse_;
        MP_CUDA(cudaDeviceSynchronize());
        cuda::attention_forward_plain(cuda::Context{}, args);
        MP_CUDA(cudaDeviceSynchronize());
        out_values_ = out_.download();
        lse_values_ = lse_.download();
    }

    // Sequences [begin, begin + count) into the outputs as they are.
    void run(int64_t begin, int64_t count) {
        const auto rows = [&](const DeviceTensor& tensor) { return tensor.view().slice(begin, count); };
        AttentionBackward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = kDim};
        args.q = rows(q_);
        args.k = rows(k_);
        args.v = rows(v_);
        args.out = rows(out_);
        args.lse = rows(lse_);
        args.d_out = rows(d_out_);
        args.d_q = rows(d_q_);
        args.d_k = rows(d_k_);
        args.d_v = rows(d_v_);
        validate(args);
        REQUIRE(cuda::may_use_hopper_backward(args));
        const Scratch scratch(gpu_, cuda::attention_backward_hopper_scratch_bytes(args));
        MP_CUDA(cudaDeviceSynchronize());
        cuda::attention_backward_hopper(scratch.context(), args);
        MP_CUDA(cudaDeviceSynchronize());
    }
    void poison() {
        d_q_.poison();
        d_k_.poison();
        d_v_.poison();
    }
    Gradients run_all() {
        poison();
        run(0, c.batch);
        return gradients();
    }
    Gradients gradients() const { return {d_q_.download(), d_k_.download(), d_v_.download()}; }

    struct Reference {
        std::vector<double> q, k, v;
    };
    // The CPU's, from the device's own out and lse.
    Reference reference() const {
        const auto out = convert<double>(out_values_), lse = convert<double>(lse_values_);
        Reference r{std::vector<double>(q_values_.size()), std::vector<double>(k_values_.size()),
                    std::vector<double>(v_values_.size())};
        AttentionBackward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = kDim};
        args.q = tensor(q_values_, {c.batch, c.time, c.heads * kDim});
        args.k = tensor(k_values_, {c.batch, c.time, c.kv_heads * kDim});
        args.v = tensor(v_values_, {c.batch, c.time, c.kv_heads * kDim});
        args.out = tensor(out, {c.batch, c.time, c.heads * kDim});
        args.lse = tensor(lse, {c.batch, c.heads, c.time});
        args.d_out = tensor(d_out_values_, {c.batch, c.time, c.heads * kDim});
        args.d_q = tensor(r.q, {c.batch, c.time, c.heads * kDim});
        args.d_k = tensor(r.k, {c.batch, c.time, c.kv_heads * kDim});
        args.d_v = tensor(r.v, {c.batch, c.time, c.kv_heads * kDim});
        make_cpu_backend(DType::f64, 0)->run(args);
        return r;
    }

    // P and dS of one query and key of the first sequence, in double.
    struct Weight {
        double p, d_s;
    };
    Weight weight(int64_t query, int64_t key, int64_t head) const {
        const int64_t kv_head = head / (c.heads / c.kv_heads), at = (query * c.heads + head) * kDim,
                      at_key = (key * c.kv_heads + kv_head) * kDim;
        double score = 0, d_p = 0, delta = 0;
        for (int64_t i = 0; i < kDim; ++i) {
            score += q_values_[at + i] * k_values_[at_key + i];
            d_p += d_out_values_[at + i] * v_values_[at_key + i];
            delta += d_out_values_[at + i] * static_cast<double>(out_values_[at + i]);
        }
        const double scale = 1 / std::sqrt(static_cast<double>(kDim));
        const double p = std::exp(score * scale - static_cast<double>(lse_values_[head * c.time + query]));
        return {p, p * (d_p - delta) * scale};
    }
    std::vector<double> d_q_row(int64_t query, int64_t head) const {
        const int64_t kv_head = head / (c.heads / c.kv_heads);
        std::vector<double> row(kDim);
        for (int64_t key = 0; key <= query; ++key) {
            const Weight w = weight(query, key, head);
            for (int64_t i = 0; i < kDim; ++i)
                row[i] += w.d_s * k_values_[(key * c.kv_heads + kv_head) * kDim + i];
        }
        return row;
    }
    // Those of d_k and of d_v.
    std::pair<std::vector<double>, std::vector<double>> key_rows(int64_t key, int64_t kv_head) const {
        const int64_t group = c.heads / c.kv_heads;
        std::vector<double> d_k(kDim), d_v(kDim);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            for (int64_t query = key; query < c.time; ++query) {
                const Weight w = weight(query, key, head);
                for (int64_t i = 0; i < kDim; ++i) {
                    const int64_t at = (query * c.heads + head) * kDim + i;
                    d_k[i] += w.d_s * q_values_[at];
                    d_v[i] += w.p * d_out_values_[at];
                }
            }
        return {d_k, d_v};
    }

    const Case c;

  private:
    std::vector<double> values(int64_t heads) {
        return rounded_to_bf16(random_.normals(c.batch * c.time * heads * kDim));
    }

    Backend& gpu_;
    Random random_;
    std::vector<double> q_values_, k_values_, v_values_, d_out_values_;
    std::vector<float> out_values_, lse_values_;
    DeviceTensor q_, k_, v_, d_out_, out_, lse_, d_q_, d_k_, d_v_;
};

void check_case(Backend& gpu, const Case& c) {
    INFO("B " << c.batch << " T " << c.time << " heads " << c.heads << "/" << c.kv_heads);
    Attention attention(gpu, c);
    const Gradients found = attention.run_all();
    const auto expected = attention.reference();
    CHECK(excess(found.q, expected.q) < 1);
    CHECK(excess(found.k, expected.k) < 1);
    CHECK(excess(found.v, expected.v) < 1);

    // A sequence's bits when it runs alone.
    attention.poison();
    for (int64_t b = 0; b < c.batch; ++b) attention.run(b, 1);
    CHECK(attention.gradients() == found);
}

// The first device, where it runs the code compiled for 9.0a; null otherwise.
Backend* hopper_backend() {
    Backend* gpu = cuda_backend();
    if (gpu && !cuda::runs_hopper_code(nullptr)) {
        WARN("skipped: a GPU case (no code for 9.0a)");
        return nullptr;
    }
    return gpu;
}

std::vector<float> part(const std::vector<float>& values, int64_t begin) {
    return {values.begin() + begin, values.begin() + begin + kDim};
}

}  // namespace

TEST_CASE("attention backward on Hopper: small shapes", "[gpu][memcheck]") {
    Backend* gpu = hopper_backend();
    if (!gpu) return;
    check_case(*gpu, {2, 70, 4, 2});
    check_case(*gpu, {1, 130, 2, 1});
    check_case(*gpu, {1, 1, 2, 2});
}

TEST_CASE("attention backward on Hopper: lengths around the blocks' edges, groups of heads", "[gpu]") {
    Backend* gpu = hopper_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 63, 64, 65, 127, 128, 129, 192, 200, 512})
        for (const int64_t batch : {1, 3}) {
            check_case(*gpu, {batch, time, 4, 2});
            check_case(*gpu, {batch, time, 8, 1});
            check_case(*gpu, {batch, time, 2, 2});
        }
}

TEST_CASE("attention backward on Hopper: rows of 8192 tokens", "[gpu]") {
    Backend* gpu = hopper_backend();
    if (!gpu) return;
    Attention attention(*gpu, {1, 8192, 4, 1});
    const Gradients found = attention.run_all();
    for (const int64_t t : {0, 63, 64, 127, 128, 1000, 4095, 4096, 8000, 8191}) {
        INFO("token " << t);
        for (const int64_t head : {0, 3})
            CHECK(excess(part(found.q, (t * 4 + head) * kDim), attention.d_q_row(t, head)) < 1);
        const auto [d_k, d_v] = attention.key_rows(t, 0);
        CHECK(excess(part(found.k, t * kDim), d_k) < 1);
        CHECK(excess(part(found.v, t * kDim), d_v) < 1);
    }
}

TEST_CASE("attention backward on Hopper: twenty runs give the same bits", "[gpu]") {
    Backend* gpu = hopper_backend();
    if (!gpu) return;
    Attention attention(*gpu, {4, 1024, 8, 2});
    const Gradients first = attention.run_all();
    for (int i = 1; i < 20; ++i) CHECK(attention.run_all() == first);
}

TEST_CASE("attention backward on Hopper: what it takes", "[gpu]") {
    AttentionBackward args{.heads = 4, .kv_heads = 2, .head_dim = kDim};
    args.q = Tensor(nullptr, DType::bf16, {1, 100, 4 * kDim}, DeviceKind::cuda);
    CHECK(cuda::may_use_hopper_backward(args));
    // Statistics of two steps of 64 rows, two floats a row and head.
    CHECK(cuda::attention_backward_hopper_scratch_bytes(args) == 128 * 4 * 2 * 4);
    args.document = Tensor(nullptr, DType::i32, {1, 100}, DeviceKind::cuda);
    CHECK(!cuda::may_use_hopper_backward(args));
    args.document = {};
    args.head_dim = 64;
    CHECK(!cuda::may_use_hopper_backward(args));
    args.head_dim = kDim;
    args.q.data = reinterpret_cast<std::byte*>(uintptr_t{8});
    CHECK(!cuda::may_use_hopper_backward(args));
}
