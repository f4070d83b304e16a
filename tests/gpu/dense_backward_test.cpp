// Backward of embedding, RMS norm and squared ReLU, and the feature losses, on the device against the CPU in
// double.
#include <cstring>

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

std::vector<double> rounded_to_float(const std::vector<double>& values) {
    return convert<double>(convert<float>(values));
}

// One RMS norm's backward on the host: inputs as the device holds them, results in double.
struct NormCase {
    int64_t rows, width;
    std::vector<double> x, weight, d_out, old_d_x, old_d_weight, d_x, d_weight;

    NormCase(int64_t row_count, int64_t columns, uint64_t seed)
        : rows(row_count),
          width(columns),
          x(rounded_to_bf16(Random(seed).normals(rows * width, 0, 1.5))),
          weight(rounded_to_float(Random(seed + 1).normals(width, 1, 0.3))),
          d_out(rounded_to_bf16(Random(seed + 2).normals(rows * width))),
          old_d_x(rounded_to_bf16(Random(seed + 3).normals(rows * width))),
          old_d_weight(rounded_to_float(Random(seed + 4).normals(width))),
          d_x(old_d_x),
          d_weight(old_d_weight) {
        twin()->run(RmsNormBackward{.x = tensor(x, {1, rows, width}),
                                    .weight = tensor(weight, {width}),
                                    .d_out = tensor(d_out, {1, rows, width}),
                                    .d_x = tensor(d_x, {1, rows, width}),
                                    .d_weight = tensor(d_weight, {width})});
    }
};

// The same on the device.
struct DeviceNorm {
    DeviceTensor x, weight, d_out, d_x, d_weight;

    DeviceNorm(Backend& gpu, const NormCase& c)
        : x(gpu, DType::bf16, {1, c.rows, c.width}, c.x),
          weight(gpu, DType::f32, {c.width}, c.weight),
          d_out(gpu, DType::bf16, {1, c.rows, c.width}, c.d_out),
          d_x(gpu, DType::bf16, {1, c.rows, c.width}, c.old_d_x),
          d_weight(gpu, DType::f32, {c.width}, c.old_d_weight) {}
    RmsNormBackward args() const {
        return {.x = x, .weight = weight, .d_out = d_out, .d_x = d_x, .d_weight = d_weight};
    }
};

// Results are sums of terms of both signs, so float32 arithmetic before the rounding is allowed for by an
// absolute share of the terms' size: 2^-24 of a few units, for widths up to 40000 not more than 1e-5.
constexpr double kTermNoise = 1e-5;

}  // namespace

TEST_CASE("GPU: RMS norm backward adds to d_x with one rounding, at every width", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {1,    7,    8,    33,   192,  256,  264,  512,   520,   1000, 1024,
                                1032, 3136, 4096, 4480, 5120, 8192, 8200, 16384, 16392, 40000}) {
        for (const int64_t rows : {int64_t{1}, width < 1100 ? int64_t{517} : int64_t{5}}) {
            const NormCase c(rows, width, 10);
            const DeviceNorm on(*gpu, c);
            gpu->run(on.args());
            INFO("width " << width << " rows " << rows);
            CHECK(rounding_share(on.d_x.download(), c.d_x, kTermNoise) <= 1);
            // Sums over rows in float32: at most 40 + 40 + 16 additions deep here, 2^-24 each.
            CHECK(relative_error(on.d_weight.download(), c.d_weight) < 6e-6);
        }
    }
}

TEST_CASE("GPU: RMS norm backward at any address gives nearly the same, and d_weight is optional",
          "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {64, 1024, 4096}) {
        const NormCase c(37, width, 20);
        const DeviceNorm on(*gpu, c), without(*gpu, c);
        std::vector<double> long_values(1, 3.0);
        long_values.insert(long_values.end(), c.old_d_x.begin(), c.old_d_x.end());
        const DeviceTensor odd(*gpu, DType::bf16, {37 * width + 1}, long_values);
        const DeviceNorm again(*gpu, c);
        gpu->run(on.args());
        RmsNormBackward args = again.args();
        args.d_x = shifted(odd).view({1, 37, width});
        gpu->run(args);
        args = without.args();
        args.d_weight = {};
        gpu->run(args);
        INFO("width " << width);
        CHECK(rounding_share(odd.download(1), c.d_x, kTermNoise) <= 1);
        CHECK(odd.download(0, 1)[0] == 3);
        CHECK(relative_error(again.d_weight.download(), c.d_weight) < 6e-6);
        CHECK(without.d_x.download() == on.d_x.download());
        CHECK(without.d_weight.download() == convert<float>(c.old_d_weight));
    }
}

TEST_CASE("GPU: RMS norm backward repeats, and a row's d_x is that of the row alone", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {192, 4096}) {
        constexpr int64_t kRows = 1500;
        const NormCase c(kRows, width, 30);
        const DeviceNorm first(*gpu, c), second(*gpu, c), alone(*gpu, c);
        gpu->run(first.args());
        gpu->run(second.args());
        CHECK(first.d_x.download() == second.d_x.download());
        CHECK(first.d_weight.download() == second.d_weight.download());
        CHECK(relative_error(first.d_weight.download(), c.d_weight) < 6e-6);
        for (const int64_t row : {int64_t{0}, int64_t{701}, kRows - 1}) {
            RmsNormBackward args = alone.args();
            for (Tensor* tensor : {&args.x, &args.d_out, &args.d_x})
                *tensor = tensor->view({kRows, 1, width}).slice(row, 1);
            gpu->run(args);
            CHECK(alone.d_x.download(row * width, width) == first.d_x.download(row * width, width));
        }
    }
}

TEST_CASE("GPU: squared ReLU backward rounds once, at every length and alignment", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t count : {1, 7, 8, 9, 8192, 8193, 100003}) {
        const auto x = rounded_to_bf16(Random(4).normals(count)),
                   d_out = rounded_to_bf16(Random(5).normals(count));
        std::vector<double> expected(count);
        twin()->run(SquaredReluBackward{
            .x = tensor(x, {count}), .d_out = tensor(d_out, {count}), .d_x = tensor(expected, {count})});
        const DeviceTensor values(*gpu, DType::bf16, {count}, x), d(*gpu, DType::bf16, {count}, d_out);
        const DeviceTensor d_x(*gpu, DType::bf16, {count}), long_d_x(*gpu, DType::bf16, {count + 1});
        INFO("count " << count);
        gpu->run(SquaredReluBackward{.x = values, .d_out = d, .d_x = d_x});
        CHECK(rounding_share(d_x.download(), expected) <= 1);
        gpu->run(SquaredReluBackward{.x = values, .d_out = d, .d_x = shifted(long_d_x)});
        CHECK(long_d_x.download(1) == d_x.download());
        CHECK(std::isnan(long_d_x.download(0, 1)[0]));
        gpu->run(SquaredReluBackward{.x = values, .d_out = d, .d_x = d});
        CHECK(d.download() == d_x.download());
    }
    const DeviceTensor odd(*gpu, DType::bf16, {3}, std::vector<double>{NAN, 2, -INFINITY});
    const DeviceTensor ones(*gpu, DType::bf16, {3}, std::vector<double>{1, 1, 1});
    gpu->run(SquaredReluBackward{.x = odd, .d_out = ones, .d_x = odd});
    const auto values = odd.download();
    CHECK(std::isnan(values[0]));
    CHECK(values[1] == 4);
    CHECK(values[2] == 0);
}

namespace {

// d_weight after one call, against the CPU's.
struct EmbeddingCase {
    std::vector<float> actual, again;
    std::vector<double> expected;
};

EmbeddingCase add_rows(Backend& gpu, const std::vector<int32_t>& tokens, int64_t vocabulary, int64_t width) {
    const auto rows = static_cast<int64_t>(tokens.size());
    const auto d_out = rounded_to_bf16(Random(7).normals(rows * width));
    const auto old = rounded_to_float(Random(8).normals(vocabulary * width));
    EmbeddingCase result{.actual = {}, .again = {}, .expected = old};
    twin()->run(EmbeddingBackward{.tokens = tensor(tokens, {1, rows}),
                                  .d_out = tensor(d_out, {1, rows, width}),
                                  .d_weight = tensor(result.expected, {vocabulary, width})});
    const DeviceTensor ids(gpu, DType::i32, {1, rows}, tokens), d(gpu, DType::bf16, {1, rows, width}, d_out);
    for (std::vector<float>* to : {&result.actual, &result.again}) {
        const DeviceTensor d_weight(gpu, DType::f32, {vocabulary, width}, old);
        gpu.run(EmbeddingBackward{.tokens = ids, .d_out = d, .d_weight = d_weight});
        *to = d_weight.download();
    }
    return result;
}

}  // namespace

TEST_CASE("GPU: embedding backward adds the rows of each token, repeatably", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : {1, 33, 192, 1028, 3136}) {
        for (const int64_t rows : {1, 31, 32, 33, 64, 257, 2000}) {
            for (const int64_t vocabulary : {1, 2, 40, 1000}) {
                if (width > 200 && (rows > 300 || vocabulary > 40)) continue;
                std::vector<int32_t> tokens(rows);
                for (int64_t i = 0; i < rows; ++i)
                    tokens[i] = static_cast<int32_t>(counter_random(9, i) % vocabulary);
                const EmbeddingCase c = add_rows(*gpu, tokens, vocabulary, width);
                INFO("width " << width << " rows " << rows << " vocabulary " << vocabulary);
                // Up to 2000 additions of 2^-24 of a sum of up to 150: sums within pieces and over them
                // are 32 + 63 deep.
                CHECK(relative_error(c.actual, c.expected) < 6e-6);
                CHECK(c.actual == c.again);
            }
        }
    }
}

TEST_CASE("GPU: embedding backward with frequent tokens among rare ones", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kRows = 5000, kVocab = 3000, kWidth = 64;
    std::vector<int32_t> tokens(kRows);
    for (int64_t i = 0; i < kRows; ++i) {
        const uint64_t bits = counter_random(11, i);
        const int64_t rare = static_cast<int64_t>((bits >> 8) % kVocab);
        tokens[i] = static_cast<int32_t>(bits % 4 < 2 ? 7 : bits % 4 == 2 ? kVocab - 1 : rare);
    }
    const EmbeddingCase c = add_rows(*gpu, tokens, kVocab, kWidth);
    CHECK(relative_error(c.actual, c.expected) < 6e-6);
    CHECK(c.actual == c.again);
}

TEST_CASE("GPU: embedding backward leaves tokens outside the vocabulary out", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kVocab = 8, kWidth = 16;
    const std::vector<int32_t> tokens = {-1, 3, 8, 3, 1 << 30, 0, -7};
    const std::vector<double> ones(7 * kWidth, 1.0), zeros(kVocab * kWidth, 0.0);
    const DeviceTensor ids(*gpu, DType::i32, {1, 7}, tokens), d(*gpu, DType::bf16, {1, 7, kWidth}, ones),
        d_weight(*gpu, DType::f32, {kVocab, kWidth}, zeros);
    gpu->run(EmbeddingBackward{.tokens = ids, .d_out = d, .d_weight = d_weight});
    std::vector<float> expected(kVocab * kWidth, 0);
    std::fill_n(expected.begin() + 3 * kWidth, kWidth, 2.0f);
    std::fill_n(expected.begin(), kWidth, 1.0f);
    CHECK(d_weight.download() == expected);
}

TEST_CASE("GPU: feature losses, at every width, with masked and zero rows", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse}) {
        for (const int64_t width : {1, 7, 8, 33, 192, 256, 264, 520, 1000, 1024, 1032, 3136, 4096, 5120, 8192,
                                    8200, 16384, 16392}) {
            constexpr int64_t kRows = 11;
            auto student = rounded_to_bf16(Random(40).normals(kRows * width));
            auto teacher = rounded_to_bf16(Random(41).normals(kRows * width, 0.3));
            std::fill_n(student.begin() + 2 * width, width, 0.0);
            std::fill_n(teacher.begin() + 3 * width, width, 0.0);
            std::copy_n(teacher.begin() + 4 * width, width, student.begin() + 4 * width);
            const auto old = rounded_to_bf16(Random(42).normals(kRows * width));
            std::vector<int32_t> targets(kRows, 1);
            targets[0] = targets[7] = -1;
            std::vector<double> value(kRows), d_student = old;
            twin()->run(FeatureLoss{.kind = kind,
                                    .student = tensor(student, {kRows, width}),
                                    .teacher = tensor(teacher, {kRows, width}),
                                    .targets = tensor(targets, {kRows}),
                                    .scale = 3,
                                    .value = tensor(value, {kRows}),
                                    .d_student = tensor(d_student, {kRows, width})});
            const DeviceTensor s(*gpu, DType::bf16, {kRows, width}, student),
                t(*gpu, DType::bf16, {kRows, width}, teacher), ids(*gpu, DType::i32, {kRows}, targets),
                d(*gpu, DType::bf16, {kRows, width}, old), values(*gpu, DType::f32, {kRows}),
                only_values(*gpu, DType::f32, {kRows});
            FeatureLoss args{.kind = kind,
                             .student = s,
                             .teacher = t,
                             .targets = ids,
                             .scale = 3,
                             .value = values,
                             .d_student = d};
            gpu->run(args);
            args.d_student = {};
            args.value = only_values;
            gpu->run(args);
            INFO("kind " << static_cast<int>(kind) << " width " << width);
            CHECK(relative_error(values.download(), value) < 3e-6);
            CHECK(values.download() == only_values.download());
            // The term's gradient is a difference of values of up to 6 times |teacher| / |teacher|^2.
            CHECK(rounding_share(d.download(), d_student, kTermNoise) <= 1);
            // Masked rows are untouched.
            CHECK(d.download(7 * width, width) ==
                  convert<float>(std::vector<double>(old.begin() + 7 * width, old.begin() + 8 * width)));
        }
    }
}

TEST_CASE("GPU: backward over more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    if (!gpu || !has_memory(*gpu, 4 * 2 * kTwoToThe31)) return;
    constexpr int64_t kWidth = 8192, kRows = kTwoToThe31 / kWidth + 3;
    const LargeTensor x(*gpu, {1, kRows, kWidth}, 5), d_out(*gpu, {1, kRows, kWidth}, 6),
        d_x(*gpu, {1, kRows, kWidth}, 7);
    const auto weight = rounded_to_float(Random(3).normals(kWidth, 1, 0.3));
    const DeviceTensor w(*gpu, DType::f32, {kWidth}, weight),
        d_weight(*gpu, DType::f32, {kWidth}, std::vector<double>(kWidth, 0.0));
    gpu->run(RmsNormBackward{.x = x, .weight = w, .d_out = d_out, .d_x = d_x, .d_weight = d_weight});
    for (const int64_t row : {int64_t{0}, kRows - 1}) {
        const int64_t begin = row * kWidth;
        const auto x_row = x.drawn(begin, kWidth), d_row = d_out.drawn(begin, kWidth);
        auto expected = d_x.drawn(begin, kWidth);
        twin()->run(RmsNormBackward{.x = tensor(x_row, {1, 1, kWidth}),
                                    .weight = tensor(weight, {kWidth}),
                                    .d_out = tensor(d_row, {1, 1, kWidth}),
                                    .d_x = tensor(expected, {1, 1, kWidth})});
        CHECK(rounding_share(d_x.now(begin, kWidth), expected, kTermNoise) <= 1);
    }
    for (const float v : d_weight.download()) CHECK(std::abs(v) < 6 * std::sqrt(static_cast<double>(kRows)));
}
