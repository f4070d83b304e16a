// The gradient of the causal convolution with SiLU on the device against the CPU in double.
#include "tests/gpu/conv_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct ConvInput {
    std::vector<double> zxbcdt, weight, bias, initial_state, d_xbc;
};

// Also what the gradients are before the operation.
template <class T>
struct ConvGradients {
    std::vector<T> d_zxbcdt, d_weight, d_bias, d_initial_state;
};

ConvInput random_input(const ConvCase& c, uint64_t seed) {
    Random random(seed);
    const auto normals = [&](int64_t count) { return rounded_to_bf16(random.normals(count)); };
    return {normals(c.batch * c.time * c.shape.projection()), normals(c.channels() * c.shape.conv_kernel),
            normals(c.channels()), normals(c.batch * c.channels() * c.kept()),
            normals(c.batch * c.time * c.channels())};
}

// What accumulates starts from numbers, what is overwritten from NaN.
ConvGradients<double> before(const ConvCase& c, uint64_t seed) {
    Random random(seed);
    const auto precise = [&](int64_t count) {
        return convert<double>(convert<float>(random.normals(count)));
    };
    ConvGradients<double> g{
        rounded_to_bf16(random.normals(c.batch * c.time * c.shape.projection())),
        precise(c.channels() * c.shape.conv_kernel), precise(c.channels()),
        std::vector<double>(c.batch * c.channels() * c.kept(), std::numeric_limits<double>::quiet_NaN())};
    for (int64_t row = 0; row < c.batch * c.time; ++row)
        std::fill_n(g.d_zxbcdt.begin() + row * c.shape.projection() + c.shape.inner(), c.channels(),
                    std::numeric_limits<double>::quiet_NaN());
    return g;
}

ConvGradients<double> expected_gradients(const ConvCase& c, const ConvInput& in, ConvGradients<double> g) {
    ConvBackward args{.shape = c.shape,
                      .zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, c.shape.projection()}),
                      .weight = tensor(in.weight, {c.channels(), c.shape.conv_kernel}),
                      .d_xbc = tensor(in.d_xbc, {c.batch, c.time, c.channels()}),
                      .d_zxbcdt = tensor(g.d_zxbcdt, {c.batch, c.time, c.shape.projection()}),
                      .d_weight = tensor(g.d_weight, {c.channels(), c.shape.conv_kernel})};
    if (c.bias) {
        args.bias = tensor(in.bias, {c.channels()});
        args.d_bias = tensor(g.d_bias, {c.channels()});
    }
    if (!c.document.empty()) args.document = tensor(c.document, {c.batch, c.time});
    if (c.initial) {
        args.initial_state = tensor(in.initial_state, {c.batch, c.channels(), c.kept()});
        args.d_initial_state = tensor(g.d_initial_state, {c.batch, c.channels(), c.kept()});
    }
    make_cpu_backend(DType::f64, 0)->run(args);
    return g;
}

ConvGradients<float> device_gradients(Backend& gpu, const ConvCase& c, const ConvInput& in,
                                      const ConvGradients<double>& g) {
    const int64_t pitch = c.shape.projection(), channels = c.channels(), taps = c.shape.conv_kernel;
    const DeviceTensor zxbcdt(gpu, DType::bf16, {c.batch, c.time, pitch}, in.zxbcdt);
    const DeviceTensor weight(gpu, DType::bf16, {channels, taps}, in.weight);
    const DeviceTensor bias(gpu, DType::bf16, {channels}, in.bias);
    const DeviceTensor initial(gpu, DType::bf16, {c.batch, channels, c.kept()}, in.initial_state);
    const DeviceTensor d_xbc(gpu, DType::bf16, {c.batch, c.time, channels}, in.d_xbc);
    const DeviceTensor d_zxbcdt(gpu, DType::bf16, {c.batch, c.time, pitch}, g.d_zxbcdt);
    const DeviceTensor d_weight(gpu, DType::f32, {channels, taps}, g.d_weight);
    const DeviceTensor d_bias(gpu, DType::f32, {channels}, g.d_bias);
    const DeviceTensor d_initial(gpu, DType::bf16, {c.batch, channels, c.kept()});
    const std::vector<int32_t> one_document(c.batch * c.time, 0);
    const DeviceTensor document(gpu, DType::i32, {c.batch, c.time},
                                c.document.empty() ? one_document : c.document);
    ConvBackward args{.shape = c.shape,
                      .zxbcdt = zxbcdt,
                      .weight = weight,
                      .d_xbc = d_xbc,
                      .d_zxbcdt = d_zxbcdt,
                      .d_weight = d_weight};
    if (c.bias) args.bias = bias, args.d_bias = d_bias;
    if (!c.document.empty()) args.document = document;
    if (c.initial) args.initial_state = initial, args.d_initial_state = d_initial;
    gpu.run(args);
    return {d_zxbcdt.download(), d_weight.download(), d_bias.download(), d_initial.download()};
}

void check(Backend& gpu, const ConvCase& c) {
    const auto in = random_input(c, 11 + c.time);
    const auto start = before(c, 5);
    const auto expected = expected_gradients(c, in, start);
    const auto actual = device_gradients(gpu, c, in, start);
    INFO("heads " << c.shape.heads << " head_dim " << c.shape.head_dim << " taps " << c.shape.conv_kernel
                  << " time " << c.time << " documents " << !c.document.empty() << " initial " << c.initial);
    // Up to Kc terms weight * d_xbc * silu'(v) of up to 20, each off by a few 2^-24 and by the sigmoid's
    // (|v| + 4) * 2^-24, may cancel.
    const double noise = 1e-5 * static_cast<double>(c.shape.conv_kernel + 1);
    CHECK(rounding_share(actual.d_zxbcdt, expected.d_zxbcdt, noise) <= 1);
    if (c.initial) CHECK(rounding_share(actual.d_initial_state, expected.d_initial_state, noise) <= 1);
    // Sums in float32 of terms that are off by some 2^-24: errors grow as sqrt(tokens), like the sums.
    CHECK(norm_error(actual.d_weight, expected.d_weight) <= 3e-6);
    CHECK(norm_error(actual.d_bias, expected.d_bias) <= 3e-6);
}

const MambaShape kVectors{8, 32, 32, 2, 4}, kScalars{5, 33, 31, 1, 4};  // kScalars: odd rows for vectors

}  // namespace

TEST_CASE("GPU: the convolution's gradient at every length, shorter than the kernel and beyond a run",
          "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape :
         // Of the last one x|B|C has rows for vectors, but begins where none fits.
         {kVectors, kScalars, MambaShape{2, 3, 2, 1, 4}, MambaShape{12, 32, 32, 2, 4},
          MambaShape{2, 5, 3, 1, 4}}) {
        for (const int64_t time : {1, 2, 3, 4, 5, 9, 31, 32, 33, 34, 64, 67, 135}) {
            for (const bool initial : {false, true}) {
                ConvCase c{.shape = shape, .time = time, .initial = initial, .bias = time != 5};
                check(*gpu, c);
                for (const int64_t every : {2, 9}) {
                    c.document = documents(c, every);
                    check(*gpu, c);
                }
            }
        }
    }
}

TEST_CASE("GPU: the convolution's gradient at published sizes and over long runs", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape :
         {MambaShape{128, 64, 128, 8, 4}, MambaShape{256, 64, 256, 8, 4}, MambaShape{128, 80, 128, 8, 4},
          MambaShape{112, 64, 128, 8, 4}, MambaShape{96, 80, 128, 8, 4}}) {
        ConvCase c{.shape = shape, .batch = 1, .time = 70, .initial = false};
        check(*gpu, c);
        c.document = documents(c, 20);
        check(*gpu, c);
    }
    // Enough warps for runs of 64, 128 and 256 tokens, with a part of one at the end.
    struct Size {
        int64_t batch, time;
    };
    for (const auto& [batch, time] : {Size{4096, 70}, Size{2800, 261}, Size{2750, 517}}) {
        ConvCase c{.shape = {1, 2, 1, 1, 4}, .batch = batch, .time = time};
        check(*gpu, c);
        c.document = documents(c, 50);
        check(*gpu, c);
    }
}

TEST_CASE("GPU: the convolution's gradient with other numbers of taps", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t taps : {1, 2, 3, 5, 8}) {
        MambaShape shape = kVectors;
        shape.conv_kernel = taps;
        for (const int64_t time : {1, 3, 40}) {
            ConvCase c{.shape = shape, .time = time};
            check(*gpu, c);
            c.document = documents(c, 4);
            check(*gpu, c);
        }
    }
}

TEST_CASE("GPU: the convolution's gradient repeats, and a sequence's depends on it alone", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape : {kVectors, kScalars}) {
        ConvCase c{.shape = shape, .batch = 3, .time = 167};
        c.document = documents(c, 30);
        const auto in = random_input(c, 21);
        const auto start = before(c, 6);
        const auto out = device_gradients(*gpu, c, in, start);
        const auto again = device_gradients(*gpu, c, in, start);
        CHECK(again.d_zxbcdt == out.d_zxbcdt);
        CHECK(again.d_initial_state == out.d_initial_state);
        CHECK(again.d_weight == out.d_weight);
        CHECK(again.d_bias == out.d_bias);
        for (int64_t b = 0; b < c.batch; ++b) {
            ConvCase alone = c;
            alone.batch = 1;
            alone.document = part(c.document, b, c.batch);
            const ConvInput one{part(in.zxbcdt, b, c.batch), in.weight, in.bias,
                                part(in.initial_state, b, c.batch), part(in.d_xbc, b, c.batch)};
            ConvGradients<double> from = start;
            from.d_zxbcdt = part(start.d_zxbcdt, b, c.batch);
            const auto own = device_gradients(*gpu, alone, one, from);
            CHECK(own.d_zxbcdt == part(out.d_zxbcdt, b, c.batch));
            CHECK(own.d_initial_state == part(out.d_initial_state, b, c.batch));
        }
    }
}

TEST_CASE("GPU: the convolution's gradient over more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    const MambaShape shape{128, 64, 128, 8, 4};
    const int64_t channels = shape.conv_channels(), pitch = shape.projection(),
                  time = kTwoToThe31 / channels + 5;
    if (!gpu || !has_memory(*gpu, time * (channels + 2 * pitch) * 2 + (int64_t{2} << 30))) return;
    const LargeTensor zxbcdt(*gpu, {1, time, pitch}, 1), d_xbc(*gpu, {1, time, channels}, 2);
    const LargeTensor d_zxbcdt(*gpu, {1, time, pitch}, 3);
    // The last tokens alone, with the three before them as initial state.
    ConvCase end{.shape = shape, .batch = 1, .time = 4};
    auto in = random_input(end, 3);
    const DeviceTensor d_weight(*gpu, DType::f32, {channels, 4}, std::vector<float>(channels * 4));
    gpu->run(ConvBackward{.shape = shape,
                          .zxbcdt = zxbcdt,
                          .weight = DeviceTensor(*gpu, DType::bf16, {channels, 4}, in.weight),
                          .bias = DeviceTensor(*gpu, DType::bf16, {channels}, in.bias),
                          .d_xbc = d_xbc,
                          .d_zxbcdt = d_zxbcdt,
                          .d_weight = d_weight});
    const int64_t first = time - end.time;
    in.zxbcdt = zxbcdt.drawn(first * pitch, end.time * pitch);
    in.d_xbc = d_xbc.drawn(first * channels, end.time * channels);
    for (int64_t k = 0; k < 3; ++k) {
        const auto row = zxbcdt.drawn((first - 3 + k) * pitch + shape.inner(), channels);
        for (int64_t c = 0; c < channels; ++c) in.initial_state[c * 3 + k] = row[c];
    }
    auto start = before(end, 4);
    start.d_zxbcdt = d_zxbcdt.drawn(first * pitch, end.time * pitch);
    const auto expected = expected_gradients(end, in, start);
    CHECK(rounding_share(d_zxbcdt.now(first * pitch, end.time * pitch), expected.d_zxbcdt, 5e-5) <= 1);
}
