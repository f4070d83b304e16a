// The gradients of attention against the CPU in double, on inputs rounded to bf16.
#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_backward_plain.h"
#include "kernels/cuda/attention_plain.h"
#include "tests/gpu/attention_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

using Case = AttentionCase;

// Probabilities and score gradients are rounded to bf16 as operands, out (which delta is taken from) and the
// result when stored: 2^-9 / sqrt(3) in the mean each, 2.3e-3 for three of them. The first rows of a sequence
// have few terms, and where the gradient of the scores nearly cancels (T = 1: exactly) errors are those of
// its terms, which `size` stands for.
constexpr double kTolerance = 8e-3;

struct Gradients {
    std::vector<float> q, k, v;
    bool operator==(const Gradients&) const = default;
};

// One case's tensors on the device (out and lse by the plain forward) and the reference.
class Operands {
  public:
    Operands(Backend& gpu, const Case& sizes)
        : c(sizes),
          random_(sizes.time * 131 + sizes.head_dim),
          q_values_(normals(c.heads, c.q_deviation)),
          k_values_(normals(c.kv_heads)),
          v_values_(normals(c.kv_heads)),
          d_out_values_(normals(c.heads)),
          ids_(random_documents(c, random_)),
          q_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}, q_values_),
          k_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}, k_values_),
          v_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}, v_values_),
          document_(gpu, DType::i32, {c.batch, c.time}, ids_),
          out_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}),
          d_out_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}, d_out_values_),
          lse_(gpu, DType::f32, {c.batch, c.heads, c.time}),
          d_q_(gpu, DType::bf16, {c.batch, c.time, c.heads * c.head_dim}),
          d_k_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}),
          d_v_(gpu, DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim}) {
        if (c.head_dim > cuda::kAttentionPlainHeadDim) return;
        cuda::attention_forward_plain(cuda::Context{}, forward());
        MP_CUDA(cudaDeviceSynchronize());
    }

    AttentionForward forward() const {
        AttentionForward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        args.q = q_;
        args.k = k_;
        args.v = v_;
        if (c.new_document > 0) args.document = document_;
        args.out = out_;
        args.lse = lse_;
        return args;
    }

    // Sequences [begin, begin + count).
    AttentionBackward arguments(int64_t begin, int64_t count) const {
        const auto rows = [&](const DeviceTensor& tensor) { return tensor.view().slice(begin, count); };
        AttentionBackward args{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        args.q = rows(q_);
        args.k = rows(k_);
        args.v = rows(v_);
        if (c.new_document > 0) args.document = rows(document_);
        args.out = rows(out_);
        args.lse = rows(lse_);
        args.d_out = rows(d_out_);
        args.d_q = rows(d_q_);
        args.d_k = rows(d_k_);
        args.d_v = rows(d_v_);
        validate(args);
        return args;
    }
    void poison() {
        for (DeviceTensor* each : {&d_q_, &d_k_, &d_v_}) each->poison();
    }
    Gradients gradients() const { return {d_q_.download(), d_k_.download(), d_v_.download()}; }

    // Through the plain kernels, all sequences at once or one after the other.
    Gradients plain(Backend& gpu, bool together = true) {
        poison();
        const int64_t step = together ? c.batch : 1;
        for (int64_t b = 0; b < c.batch; b += step) {
            const AttentionBackward args = arguments(b, step);
            const int64_t bytes = cuda::attention_backward_plain_scratch_bytes(args);
            const DeviceTensor scratch(gpu, DType::f32, {bytes / 4});
            MP_CUDA(cudaDeviceSynchronize());
            cuda::Context context;
            context.scratch = scratch.view().data;
            context.scratch_capacity = bytes;
            cuda::attention_backward_plain(context, args);
            MP_CUDA(cudaDeviceSynchronize());
        }
        return gradients();
    }

    // Through the backend, from the out and lse of its own forward.
    Gradients dispatched(Backend& gpu, bool deterministic, bool together = true) {
        poison();
        for (DeviceTensor* each : {&out_, &lse_}) each->poison();
        gpu.run(forward());
        const int64_t step = together ? c.batch : 1;
        for (int64_t b = 0; b < c.batch; b += step) {
            AttentionBackward args = arguments(b, step);
            args.deterministic = deterministic;
            gpu.run(args);
        }
        return gradients();
    }

    struct Reference {
        std::vector<double> q, k, v;
    };
    Reference reference() const {
        Reference r{std::vector<double>(q_values_.size()), std::vector<double>(k_values_.size()),
                    std::vector<double>(k_values_.size())};
        std::vector<double> out(q_values_.size()), lse(c.batch * c.heads * c.time);
        const auto backend = make_cpu_backend(DType::f64, 0);
        const auto fill = [&](auto& args) {
            args.q = tensor(q_values_, {c.batch, c.time, c.heads * c.head_dim});
            args.k = tensor(k_values_, {c.batch, c.time, c.kv_heads * c.head_dim});
            args.v = tensor(v_values_, {c.batch, c.time, c.kv_heads * c.head_dim});
            if (c.new_document > 0) args.document = tensor(ids_, {c.batch, c.time});
            args.out = tensor(out, {c.batch, c.time, c.heads * c.head_dim});
            args.lse = tensor(lse, {c.batch, c.heads, c.time});
        };
        AttentionForward forward{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        fill(forward);
        backend->run(forward);
        AttentionBackward backward{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
        fill(backward);
        backward.d_out = tensor(d_out_values_, {c.batch, c.time, c.heads * c.head_dim});
        backward.d_q = tensor(r.q, {c.batch, c.time, c.heads * c.head_dim});
        backward.d_k = tensor(r.k, {c.batch, c.time, c.kv_heads * c.head_dim});
        backward.d_v = tensor(r.v, {c.batch, c.time, c.kv_heads * c.head_dim});
        backend->run(backward);
        return r;
    }

    const Case c;

  private:
    std::vector<double> normals(int64_t heads, double deviation = 1) {
        return rounded_to_bf16(random_.normals(c.batch * c.time * heads * c.head_dim, 0, deviation));
    }

    Random random_;
    std::vector<double> q_values_, k_values_, v_values_, d_out_values_;
    std::vector<int32_t> ids_;
    DeviceTensor q_, k_, v_, document_, out_, d_out_, lse_, d_q_, d_k_, d_v_;
};

// ||a - b|| over ||b||, the latter at least `size` in the mean square.
double error_of(const std::vector<float>& a, const std::vector<double>& b, double size) {
    double norm = 0;
    for (const double value : b) norm += value * value;
    const double least = size * std::sqrt(static_cast<double>(b.size()));
    return norm_error(a, b) * (norm > 0 ? std::sqrt(norm) / std::max(std::sqrt(norm), least) : 1 / least);
}

// Where the gradients differ most, by head and block of 16 tokens: what a failure is looked for with.
std::string worst_places(const std::vector<float>& a, const std::vector<double>& b, int64_t time,
                         int64_t heads, int64_t dim) {
    const int64_t batch = static_cast<int64_t>(b.size()) / (time * heads * dim), blocks = div_up(time, 16);
    std::vector<double> squares(batch * heads * blocks);
    for (size_t i = 0; i < b.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        const int64_t head = at / dim % heads, token = at / (dim * heads);
        const double d = a[i] - b[i];
        squares[(token / time * heads + head) * blocks + token % time / 16] += std::isnan(d) ? 1e30 : d * d;
    }
    std::vector<int64_t> order(squares.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return squares[i] > squares[j]; });
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(order.size(), 6); ++i) {
        const int64_t at = order[i];
        text += " (sequence " + std::to_string(at / (heads * blocks)) + ", head " +
                std::to_string(at / blocks % heads) + ", tokens from " + std::to_string(at % blocks * 16) +
                ": " + std::to_string(std::sqrt(squares[at])) + ")";
    }
    return text;
}

void check_gradients(const Gradients& found, const Operands::Reference& expected, const Case& c) {
    // An element of d_q or d_k is a sum of products of the other operand (1), Pr (whose squares sum up to 1
    // at most) and a difference of order sqrt(P), over sqrt(P): terms of order 1.
    constexpr double kTerms = 0.1;
    const double q = error_of(found.q, expected.q, kTerms * c.q_deviation);
    const double k = error_of(found.k, expected.k, kTerms * c.q_deviation);
    const double v = error_of(found.v, expected.v, 0);
    INFO("d_q" << (q < kTolerance ? "" : worst_places(found.q, expected.q, c.time, c.heads, c.head_dim))
               << "\nd_k"
               << (k < kTolerance ? "" : worst_places(found.k, expected.k, c.time, c.kv_heads, c.head_dim))
               << "\nd_v"
               << (v < kTolerance ? "" : worst_places(found.v, expected.v, c.time, c.kv_heads, c.head_dim)));
    CHECK(q < kTolerance);
    CHECK(k < kTolerance);
    CHECK(v < kTolerance);
}

void check_case(Backend& gpu, const Case& c) {
    INFO("B " << c.batch << " T " << c.time << " heads " << c.heads << "/" << c.kv_heads << " of "
              << c.head_dim << ", documents " << c.new_document);
    Operands operands(gpu, c);
    const Gradients found = operands.plain(gpu);
    check_gradients(found, operands.reference(), c);
    CHECK(operands.plain(gpu) == found);
    CHECK(operands.plain(gpu, false) == found);  // a sequence's bits do not depend on the others
}

}  // namespace

TEST_CASE("plain attention backward: small shapes", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const double new_document : {0.0, 0.1}) {
        check_case(*gpu, {2, 70, 2, 1, 128, new_document});
        check_case(*gpu, {1, 130, 2, 2, 32, new_document});
        check_case(*gpu, {2, 33, 1, 1, 13, new_document});
        check_case(*gpu, {1, 40, 2, 1, 192, new_document});
        check_case(*gpu, {1, 40, 2, 1, 256, new_document});
    }
}

TEST_CASE("plain attention backward: lengths around the blocks' edges, with and without documents", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 63, 64, 65, 127, 128, 129, 200, 517})
        for (const double new_document : {0.0, 0.02}) {
            check_case(*gpu, {2, time, 4, 2, 128, new_document});
            check_case(*gpu, {3, time, 6, 2, 32, new_document});
        }
}

TEST_CASE("plain attention backward: any head_dim up to 256", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {1, 7, 8, 16, 33, 40, 64, 80, 96, 100, 128, 136, 160, 192, 200, 255, 256})
        for (const double new_document : {0.0, 0.05})
            check_case(*gpu, {2, 150, 3, head_dim % 3 == 0 ? 3 : 1, head_dim, new_document});
    Operands wide(*gpu, {1, 2, 1, 1, 257});
    CHECK_THROWS_AS(wide.plain(*gpu), Error);
}

TEST_CASE("plain attention backward: many short documents, one long one, single tokens, sharp softmax",
          "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    check_case(*gpu, {1, 517, 8, 8, 64, 0.3});
    check_case(*gpu, {2, 1100, 4, 4, 128, 0.003});
    check_case(*gpu, {1, 300, 2, 1, 128, 1.0});
    check_case(*gpu, {1, 300, 2, 1, 128, 0, 30});
}

TEST_CASE("attention backward, dispatched, in a fixed order of summation", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const Case& c : {Case{2, 1024, 4, 1, 128}, Case{1, 2048, 4, 2, 64}, Case{2, 700, 4, 2, 128, 0.005},
                          Case{3, 512, 6, 2, 32, 0.01}, Case{2, 1, 2, 1, 128}, Case{2, 333, 8, 8, 128}}) {
        INFO("B " << c.batch << " T " << c.time << " heads " << c.heads << "/" << c.kv_heads << " of "
                  << c.head_dim << ", documents " << c.new_document);
        Operands operands(*gpu, c);
        const Gradients found = operands.dispatched(*gpu, true);
        check_gradients(found, operands.reference(), c);
        CHECK(operands.dispatched(*gpu, true) == found);
        CHECK(operands.dispatched(*gpu, true, false) == found);
    }
}

TEST_CASE("attention backward through cuDNN, from the lse of its forward", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // Nine sequences of 1024 are a launch of eight and one of one.
    for (const Case& c : {Case{9, 1024, 2, 1, 128}, Case{1, 2048, 4, 1, 128}, Case{1, 1280, 3, 3, 64},
                          Case{2, 1280, 6, 2, 80}, Case{1, 1024, 4, 2, 32}}) {
        INFO("B " << c.batch << " T " << c.time << " heads " << c.heads << "/" << c.kv_heads << " of "
                  << c.head_dim);
        Operands operands(*gpu, c);
        const auto expected = operands.reference();
        check_gradients(operands.dispatched(*gpu, false), expected, c);
        check_gradients(operands.dispatched(*gpu, false, false), expected, c);
    }
}

TEST_CASE("the gradients of published shapes may go through cuDNN, of documents and short rows not",
          "[gpu]") {
    if (!cuda_backend()) return;
    cuda::Attention attention;
    const auto through_cudnn = [&](const Case& c, bool deterministic = false) {
        AttentionBackward args{
            .heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim, .deterministic = deterministic};
        const auto shape_only = [](DType type, std::initializer_list<int64_t> extents) {
            return Tensor(nullptr, type, extents, DeviceKind::cuda);
        };
        args.q = args.out = args.d_out = args.d_q =
            shape_only(DType::bf16, {c.batch, c.time, c.heads * c.head_dim});
        args.k = args.v = args.d_k = args.d_v =
            shape_only(DType::bf16, {c.batch, c.time, c.kv_heads * c.head_dim});
        args.lse = shape_only(DType::f32, {c.batch, c.heads, c.time});
        if (c.new_document > 0) args.document = shape_only(DType::i32, {c.batch, c.time});
        return attention.through_cudnn(args);
    };
    CHECK(through_cudnn({1, 8192, 32, 8, 128}));
    CHECK(through_cudnn({4, 8192, 64, 8, 128}));
    CHECK(through_cudnn({1, 8192, 40, 8, 128}));
    CHECK(through_cudnn({8, 1024, 32, 8, 128}));
    CHECK(through_cudnn({4, 4096, 8, 8, 64}));
    CHECK_FALSE(through_cudnn({1, 8192, 32, 8, 128}, true));
    CHECK_FALSE(through_cudnn({1, 8192, 32, 8, 128, 0.1}));
    CHECK_FALSE(through_cudnn({1, 1023, 32, 8, 128}));
    CHECK_FALSE(through_cudnn({1, 1025, 32, 8, 128}));
    CHECK_FALSE(through_cudnn({1, 8192, 4, 2, 136}));
}
