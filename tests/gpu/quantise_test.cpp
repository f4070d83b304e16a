// E4M3 codes and their scales on the device: bit for bit the CPU's where the arithmetic is the same, and
// within one rounding where it is not.
#include <fmt/format.h>

#include "tests/gpu/dense_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Codes {
    std::vector<uint8_t> codes;
    std::vector<float> scale;
};

// Codes and scales in device memory; every byte is 0xff, NaN in both, before it is written.
class DeviceCodes {
  public:
    DeviceCodes(Backend& gpu, std::initializer_list<int64_t> extents)
        : gpu_(gpu), codes_(gpu, DType::f8_e4m3, extents), scale_(gpu, DType::f32, {codes_.view().rows()}) {}
    const Tensor& codes() const { return codes_; }
    const Tensor& scale() const { return scale_; }
    Codes download() const {
        Codes all{std::vector<uint8_t>(codes().elements()), scale_.download()};
        gpu_.copy(reinterpret_cast<std::byte*>(all.codes.data()), codes().data, codes().bytes());
        return all;
    }

  private:
    Backend& gpu_;
    DeviceTensor codes_, scale_;
};

// The first difference as text, "" where there is none. All NaN are alike.
std::string difference(const Codes& a, const Codes& b) {
    if (a.codes.size() != b.codes.size() || a.scale.size() != b.scale.size()) return "sizes differ";
    for (size_t r = 0; r < a.scale.size(); ++r)
        if (a.scale[r] != b.scale[r] && !(std::isnan(a.scale[r]) && std::isnan(b.scale[r])))
            return fmt::format("scale {}: {} and {}", r, a.scale[r], b.scale[r]);
    const size_t width = a.codes.size() / std::max<size_t>(1, a.scale.size());
    for (size_t i = 0; i < a.codes.size(); ++i) {
        const bool both_nan = (a.codes[i] & 0x7f) == 0x7f && (b.codes[i] & 0x7f) == 0x7f;
        if (a.codes[i] != b.codes[i] && !both_nan)
            return fmt::format("row {}, element {}: {:#x} and {:#x}", i / width, i % width, a.codes[i],
                               b.codes[i]);
    }
    return "";
}

// Rows of ordinary values, and among the first a zero, a NaN, an infinite and a tiny one.
std::vector<float> odd_rows(int64_t rows, int64_t width) {
    auto x = rounded_to_bf16(convert<float>(Random(21).normals(rows * width, 0, 3)));
    const auto fill = [&](int64_t r, auto value) {
        for (int64_t i = 0; r < rows && i < width; ++i) value(x[r * width + i], i);
    };
    fill(1, [](float& v, int64_t) { v = 0; });
    fill(2, [&](float& v, int64_t i) { v = i == width / 2 ? NAN : v; });
    fill(3, [&](float& v, int64_t i) { v = i == width - 1 ? INFINITY : v; });
    fill(4, [](float& v, int64_t) { v *= 0x1p-125f; });
    fill(5, [](float& v, int64_t i) { v = i % 7 == 3 ? 1000 : v; });
    return rounded_to_bf16(x);
}

// On the CPU in float32.
template <class Run>
Codes on_cpu(int64_t rows, int64_t width, const Run& run) {
    Codes out{std::vector<uint8_t>(rows * width), std::vector<float>(rows)};
    run(*make_cpu_backend(DType::f32, 0), Tensor(out.codes.data(), DType::f8_e4m3, {1, rows, width}),
        tensor(out.scale, {rows}));
    return out;
}

// How far values made of codes are from `expected`, as a share of what is allowed: half of the last of four
// significant bits or half of the smallest subnormal, and a thousandth of it for the float32 arithmetic
// before.
double rounding_share(const Codes& actual, const std::vector<double>& expected) {
    const size_t width = expected.size() / actual.scale.size();
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double scale = actual.scale[i / width], value = e4m3_to_float(actual.codes[i]) * scale;
        const double allowed = 1.001 * std::max(std::abs(expected[i]) / 16, scale * 0x1p-10);
        const double share = std::abs(value - expected[i]) / allowed;
        worst = std::isnan(share) ? INFINITY : std::max(worst, share);
    }
    return worst;
}

// The largest relative error of scales against the largest magnitude of each row.
double scale_error(const Codes& actual, const std::vector<double>& expected) {
    const size_t width = expected.size() / actual.scale.size();
    double worst = 0;
    for (size_t r = 0; r < actual.scale.size(); ++r) {
        double largest = 0;
        for (size_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(expected[r * width + i]));
        const double error = std::abs(actual.scale[r] * 448 / largest - 1);
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    return worst;
}

Codes rows_of(const Codes& all, int64_t begin, int64_t count) {
    const auto width = static_cast<int64_t>(all.codes.size() / all.scale.size());
    return {
        std::vector<uint8_t>(all.codes.begin() + begin * width, all.codes.begin() + (begin + count) * width),
        std::vector<float>(all.scale.begin() + begin, all.scale.begin() + begin + count)};
}

constexpr int64_t kWidths[] = {1,    7,    8,    33,   192,   256,   264,   1000,  1024,  1032,
                               4096, 8192, 8200, 9000, 16384, 16392, 21504, 32768, 32776, 40000};

}  // namespace

TEST_CASE("GPU: every bf16 value up to 448 becomes the nearest E4M3", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // A row's largest is 448, so its scale is 1 and codes are those of the values themselves: once in the
    // kernel of whole vectors, once in the one for odd widths.
    constexpr uint16_t kLargest = 0x43e0;
    for (const int64_t padding : {int64_t{7}, int64_t{0}}) {
        std::vector<float> x;
        for (const float sign : {1.0f, -1.0f}) {
            for (int bits = 0; bits <= kLargest; ++bits)
                x.push_back(sign * bf16_to_float(static_cast<uint16_t>(bits)));
            x.insert(x.end(), padding, 0.0f);
        }
        const int64_t width = kLargest + 1 + padding;
        const DeviceTensor values(*gpu, DType::bf16, {2, width}, x);
        const DeviceCodes out(*gpu, {2, width});
        gpu->run(QuantizeRows{values, out.codes(), out.scale()});
        Codes expected{std::vector<uint8_t>(x.size()), {1, 1}};
        for (size_t i = 0; i < x.size(); ++i) expected.codes[i] = to_e4m3(x[i]);
        CHECK(difference(out.download(), expected) == "");
    }
}

TEST_CASE("GPU: rows are quantised as on the CPU, bit for bit, at every width", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : kWidths) {
        const int64_t rows = width < 1000 ? 37 : 7;
        const auto x = odd_rows(rows, width);
        const Tensor host = tensor(x, {1, rows, width});
        const DeviceTensor values(*gpu, DType::bf16, {1, rows, width}, x);
        const DeviceCodes out(*gpu, {1, rows, width});
        INFO("width " << width);
        gpu->run(QuantizeRows{values, out.codes(), out.scale()});
        CHECK(difference(out.download(), on_cpu(rows, width, [&](Backend& cpu, auto codes, auto scale) {
                             cpu.run(QuantizeRows{host, codes, scale});
                         })) == "");
        gpu->run(SquaredReluForward{values, out.codes(), out.scale()});
        CHECK(difference(out.download(), on_cpu(rows, width, [&](Backend& cpu, auto codes, auto scale) {
                             cpu.run(SquaredReluForward{host, codes, scale});
                         })) == "");
    }
}

TEST_CASE("GPU: a quantised RMS norm rounds once, at every width", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t width : kWidths) {
        const int64_t rows = width < 1000 ? 37 : 5;
        const auto x = rounded_to_bf16(Random(2).normals(rows * width, 0, 1.5));
        const auto weight = convert<double>(convert<float>(Random(3).normals(width, 1, 0.3)));
        std::vector<double> expected(x.size());
        make_cpu_backend(DType::f64, 0)
            ->run(RmsNormForward{.x = tensor(x, {1, rows, width}),
                                 .weight = tensor(weight, {width}),
                                 .out = tensor(expected, {1, rows, width})});
        const DeviceTensor w(*gpu, DType::f32, {width}, weight),
            values(*gpu, DType::bf16, {1, rows, width}, x);
        const DeviceCodes out(*gpu, {1, rows, width});
        gpu->run(RmsNormForward{.x = values, .weight = w, .out = out.codes(), .out_scale = out.scale()});
        INFO("width " << width);
        CHECK(rounding_share(out.download(), expected) <= 1);
        // A root, a quotient and three products of float32: a few of its roundings.
        CHECK(scale_error(out.download(), expected) < 2e-6);
    }
}

TEST_CASE("GPU: a quantised gated norm rounds once, at published sizes and odd ones", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const MambaShape shapes[] = {
        {128, 64, 128, 8, 4}, {256, 64, 256, 8, 4}, {128, 80, 128, 8, 4}, {112, 64, 128, 8, 4},
        {8, 32, 32, 2, 4},    {12, 32, 32, 2, 4},   {2, 3, 2, 1, 4},      {4, 5, 3, 2, 4},
        {64, 64, 16, 64, 4},  {9, 72, 16, 9, 4},    {320, 64, 16, 1, 4},
    };
    for (const MambaShape& s : shapes) {
        constexpr int64_t kBatch = 2, kTime = 5;
        Random random(3);
        const auto y = rounded_to_bf16(random.normals(kBatch * kTime * s.inner()));
        const auto z = rounded_to_bf16(random.normals(kBatch * kTime * s.projection(), 0, 3));
        const auto weight = convert<double>(convert<float>(random.normals(s.inner(), 1, 0.3)));
        std::vector<double> expected(y.size());
        make_cpu_backend(DType::f64, 0)
            ->run(GatedNormForward{.shape = s,
                                   .y = tensor(y, {kBatch, kTime, s.inner()}),
                                   .zxbcdt = tensor(z, {kBatch, kTime, s.projection()}),
                                   .weight = tensor(weight, {s.inner()}),
                                   .out = tensor(expected, {kBatch, kTime, s.inner()})});
        const DeviceTensor device_y(*gpu, DType::bf16, {kBatch, kTime, s.inner()}, y);
        const DeviceTensor device_z(*gpu, DType::bf16, {kBatch, kTime, s.projection()}, z);
        const DeviceTensor device_weight(*gpu, DType::f32, {s.inner()}, weight);
        const DeviceCodes out(*gpu, {kBatch, kTime, s.inner()});
        gpu->run(GatedNormForward{.shape = s,
                                  .y = device_y,
                                  .zxbcdt = device_z,
                                  .weight = device_weight,
                                  .out = out.codes(),
                                  .out_scale = out.scale()});
        INFO("heads " << s.heads << " head_dim " << s.head_dim << " groups " << s.groups);
        CHECK(rounding_share(out.download(), expected) <= 1);
        // The gate of the largest value is wide open: a sigmoid's error of 8 * 2^-24 and as much again.
        CHECK(scale_error(out.download(), expected) < 4e-6);
    }
}

TEST_CASE("GPU: a row's codes depend on that row alone, and repeat", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {13, 64}) {
        const MambaShape s{.heads = 16, .head_dim = head_dim, .state = 16, .groups = 2, .conv_kernel = 4};
        constexpr int64_t kTime = 37;
        const int64_t width = s.inner();
        const auto x = rounded_to_bf16(Random(5).normals(kTime * width));
        const auto z = rounded_to_bf16(Random(6).normals(kTime * s.projection()));
        const DeviceTensor weight(*gpu, DType::f32, {width}, Random(7).normals(width, 1, 0.3));
        const DeviceTensor all_x(*gpu, DType::bf16, {kTime, 1, width}, x),
            all_z(*gpu, DType::bf16, {kTime, 1, s.projection()}, z);
        // What the four operations make of `count` rows from `begin`.
        const auto outcomes = [&](int64_t begin, int64_t count) {
            const Tensor rows = all_x.view().slice(begin, count), gates = all_z.view().slice(begin, count);
            const DeviceCodes out(*gpu, {count, 1, width});
            std::vector<Codes> made;
            const auto run = [&](const auto& args) {
                gpu->run(args);
                made.push_back(out.download());
            };
            run(QuantizeRows{rows, out.codes(), out.scale()});
            run(SquaredReluForward{rows, out.codes(), out.scale()});
            run(RmsNormForward{rows, weight, 1e-5, out.codes(), out.scale()});
            run(GatedNormForward{s, rows, gates, weight, 1e-5, out.codes(), out.scale()});
            return made;
        };
        const auto together = outcomes(0, kTime), again = outcomes(0, kTime);
        for (size_t i = 0; i < together.size(); ++i) CHECK(difference(together[i], again[i]) == "");
        for (const int64_t row : {int64_t{0}, int64_t{17}, kTime - 1}) {
            const auto alone = outcomes(row, 1);
            for (size_t i = 0; i < alone.size(); ++i)
                CHECK(difference(alone[i], rows_of(together[i], row, 1)) == "");
        }
    }
}

TEST_CASE("GPU: rows beyond 2^31 elements are quantised", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    if (!gpu || !has_memory(*gpu, 4 * kTwoToThe31)) return;
    constexpr int64_t kWidth = 8192, kRows = kTwoToThe31 / kWidth + 3;
    const LargeTensor x(*gpu, {1, kRows, kWidth}, 5);
    const DeviceCodes out(*gpu, {1, kRows, kWidth});
    gpu->run(QuantizeRows{x, out.codes(), out.scale()});
    for (const int64_t row : {int64_t{0}, kRows - 1}) {
        Codes actual{std::vector<uint8_t>(kWidth), std::vector<float>(1)};
        gpu->copy(reinterpret_cast<std::byte*>(actual.codes.data()), out.codes().data + row * kWidth, kWidth);
        gpu->copy(reinterpret_cast<std::byte*>(actual.scale.data()), out.scale().data + row * 4, 4);
        CHECK(rounding_share(actual, x.drawn(row * kWidth, kWidth)) <= 1);
    }
}
