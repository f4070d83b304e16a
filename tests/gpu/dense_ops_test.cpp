// Embedding, RMS norm, element-wise operations, sums and random numbers on the device against the CPU in
// double.
#include "tests/gpu/dense_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

std::unique_ptr<Backend> twin() { return make_cpu_backend(DType::f64, 0); }

// A tensor's memory from its second element on, which no vector load fits.
Tensor shifted(const DeviceTensor& tensor) {
    Tensor view = tensor.view();
    view.shape[view.rank - 1] -= 1;
    view.data += bytes_of(view.dtype);
    return view;
}

std::vector<double> normalised(const std::vector<double>& x, const std::vector<double>& weight,
                               int64_t rows) {
    const int64_t width = static_cast<int64_t>(weight.size());
    std::vector<double> out(x.size());
    twin()->run(RmsNormForward{.x = tensor(x, {1, rows, width}),
                               .weight = tensor(weight, {width}),
                               .out = tensor(out, {1, rows, width})});
    return out;
}

}  // namespace

TEST_CASE("GPU: embedding copies rows, and marks tokens outside the vocabulary", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {1, 33, 192, 4096}) {
        constexpr int64_t kVocab = 9;
        const auto weight = rounded_to_bf16(Random(1).normals(kVocab * width));
        const std::vector<int32_t> tokens = {3, 0, 8, 3, -1, 9};
        const DeviceTensor ids(*gpu, DType::i32, {2, 3}, tokens),
            table(*gpu, DType::bf16, {kVocab, width}, weight);
        const DeviceTensor out(*gpu, DType::bf16, {2, 3, width});
        gpu->run(EmbeddingForward{.tokens = ids, .weight = table, .out = out});
        const auto rows = out.download();
        bool copied = true, marked = true;
        for (int64_t i = 0; i < 4 * width; ++i)
            copied &= rows[i] == weight[tokens[i / width] * width + i % width];
        for (int64_t i = 4 * width; i < 6 * width; ++i) marked &= std::isnan(rows[i]);
        INFO("width " << width);
        CHECK(copied);
        CHECK(marked);
    }
}

TEST_CASE("GPU: RMS norm rounds once, at every width, also in place", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {1, 7, 8, 33, 192, 256, 264, 1000, 1024, 1032, 3136, 4096, 4480, 5120, 8192,
                                8200, 16384, 16392, 40000}) {
        const int64_t rows = width < 1000 ? 37 : 5;
        const auto x = rounded_to_bf16(Random(2).normals(rows * width, 0, 1.5));
        const auto weight = convert<double>(convert<float>(Random(3).normals(width, 1, 0.3)));
        const auto expected = normalised(x, weight, rows);
        const DeviceTensor w(*gpu, DType::f32, {width}, weight),
            values(*gpu, DType::bf16, {1, rows, width}, x);
        const DeviceTensor out(*gpu, DType::bf16, {1, rows, width});
        gpu->run(RmsNormForward{.x = values, .weight = w, .out = out});
        gpu->run(RmsNormForward{.x = values, .weight = w, .out = values});
        INFO("width " << width);
        CHECK(rounding_share(out.download(), expected) <= 1);
        CHECK(values.download() == out.download());
    }
}

TEST_CASE("GPU: squared ReLU and addition round once, at every length and alignment", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t count : {1, 7, 8, 9, 8192, 8193, 100003}) {
        const auto a = rounded_to_bf16(Random(4).normals(count)),
                   b = rounded_to_bf16(Random(5).normals(count));
        std::vector<double> squared(count), sum(count);
        twin()->run(SquaredReluForward{.x = tensor(a, {count}), .out = tensor(squared, {count})});
        twin()->run(Add{.a = tensor(a, {count}), .b = tensor(b, {count}), .out = tensor(sum, {count})});
        const DeviceTensor x(*gpu, DType::bf16, {count}, a), y(*gpu, DType::bf16, {count}, b);
        const DeviceTensor out(*gpu, DType::bf16, {count}), long_out(*gpu, DType::bf16, {count + 1});
        INFO("count " << count);
        gpu->run(SquaredReluForward{.x = x, .out = out});
        CHECK(rounding_share(out.download(), squared) <= 1);
        gpu->run(SquaredReluForward{.x = x, .out = shifted(long_out)});
        CHECK(long_out.download(1) == out.download());
        CHECK(std::isnan(long_out.download(0, 1)[0]));
        gpu->run(Add{.a = x, .b = y, .out = out});
        CHECK(rounding_share(out.download(), sum) <= 1);
        gpu->run(Add{.a = x, .b = y, .out = y});
        CHECK(y.download() == out.download());
        gpu->run(SquaredReluForward{.x = x, .out = x});
        CHECK(rounding_share(x.download(), squared) <= 1);
    }
    const DeviceTensor odd(*gpu, DType::bf16, {3}, std::vector<double>{NAN, INFINITY, -INFINITY});
    gpu->run(SquaredReluForward{.x = odd, .out = odd});
    const auto values = odd.download();
    CHECK(std::isnan(values[0]));
    CHECK(values[1] == INFINITY);
    CHECK(values[2] == 0);
}

TEMPLATE_TEST_CASE_SIG("GPU: the squared norm is a double's, repeats, and shows what is not finite",
                       "[gpu][small]", ((DType kType), kType), DType::bf16, DType::f32) {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t count : {1, 3, 8, 100, 16385, 1000003}) {
        auto x = Random(7).normals(count);
        x = kType == DType::bf16 ? rounded_to_bf16(x) : convert<double>(convert<float>(x));
        double expected = 0, actual = -1, again = -1;
        for (const double v : x) expected += v * v;
        const DeviceTensor values(*gpu, kType, {count}, x);
        gpu->run(SquaredNorm{.x = values, .out = &actual});
        gpu->run(SquaredNorm{.x = values, .out = &again});
        CHECK(std::abs(actual - expected) <= 1e-13 * static_cast<double>(count) * expected);
        CHECK(actual == again);
        if (count > 1) {
            gpu->run(SquaredNorm{.x = shifted(values), .out = &actual});
            CHECK(std::abs(actual + x[0] * x[0] - expected) <= 1e-13 * static_cast<double>(count) * expected);
        }
        for (const double odd : {double{NAN}, double{INFINITY}}) {
            x[count / 2] = odd;
            gpu->run(SquaredNorm{.x = DeviceTensor(*gpu, kType, {count}, x), .out = &actual});
            CHECK(!std::isfinite(actual));
        }
    }
    // Squares beyond float32.
    double actual = 0;
    gpu->run(SquaredNorm{.x = DeviceTensor(*gpu, kType, {2}, std::vector<double>{0x1p100, 0x1p-100}),
                         .out = &actual});
    CHECK(actual == 0x1p200);
}

TEST_CASE("GPU: normal deviates are the CPU's, to a last bit", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kCount = 100003;
    constexpr double kScale = 0.02;
    const DeviceTensor floats(*gpu, DType::f32, {kCount}), halves(*gpu, DType::bf16, {kCount});
    gpu->run(RandomNormal{.out = floats, .key = 77, .scale = kScale});
    gpu->run(RandomNormal{.out = halves, .key = 77, .scale = kScale});
    const auto f = floats.download(), h = halves.download();
    int64_t unlike = 0;
    std::vector<double> expected(kCount);
    for (int64_t i = 0; i < kCount; ++i) {
        expected[i] = kScale * counter_normal(77, i);
        unlike += f[i] != static_cast<float>(expected[i]);
    }
    CHECK(rounding_share(h, expected) <= 1);
    // The device's double logarithm and cosine are within 2 units of 2^-53: one float32 in 2^27 rounds
    // otherwise.
    CHECK(unlike <= 2);
}

TEST_CASE("GPU: operands of more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    if (!gpu || !has_memory(*gpu, 3 * 2 * kTwoToThe31)) return;
    constexpr int64_t kWidth = 8192, kRows = kTwoToThe31 / kWidth + 3;
    const LargeTensor x(*gpu, {1, kRows, kWidth}, 5);
    const auto weight = convert<double>(convert<float>(Random(3).normals(kWidth, 1, 0.3)));
    const DeviceTensor w(*gpu, DType::f32, {kWidth}, weight);
    const int64_t ends[] = {0, (kRows - 2) * kWidth};
    {
        const LargeTensor out(*gpu, {1, kRows, kWidth}, 6);
        gpu->run(Add{.a = x, .b = out, .out = out});
        for (const int64_t begin : ends) {
            const auto a = x.drawn(begin, kWidth), b = out.drawn(begin, kWidth);
            std::vector<double> sum(kWidth);
            for (int64_t i = 0; i < kWidth; ++i) sum[i] = a[i] + b[i];
            CHECK(rounding_share(out.now(begin, kWidth), sum) <= 1);
        }
        gpu->run(SquaredReluForward{.x = x, .out = out});
        for (const int64_t begin : ends) {
            auto squares = x.drawn(begin, kWidth);
            for (double& v : squares) v = v < 0 ? 0 : v * v;
            CHECK(rounding_share(out.now(begin, kWidth), squares) <= 1);
        }
    }
    double whole = 0, first = 0, rest = 0;
    const Tensor& all = x;
    const Tensor flat = all.view({kRows, kWidth});
    gpu->run(SquaredNorm{.x = flat, .out = &whole});
    gpu->run(SquaredNorm{.x = flat.slice(0, 5), .out = &first});
    gpu->run(SquaredNorm{.x = flat.slice(5, kRows - 5), .out = &rest});
    CHECK(std::abs(first + rest - whole) < 1e-12 * whole);
    gpu->run(RmsNormForward{.x = x, .weight = w, .out = x});
    for (const int64_t begin : ends)
        CHECK(rounding_share(x.now(begin, kWidth), normalised(x.drawn(begin, kWidth), weight, 1)) <= 1);
}
