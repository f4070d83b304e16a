// The causal convolution with SiLU on the device against the CPU in double.
#include "tests/gpu/conv_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct ConvInput {
    std::vector<double> zxbcdt, weight, bias, initial_state;
};

template <class T>
struct ConvOutput {
    std::vector<T> xbc, final_state;
};

ConvInput random_input(const ConvCase& c, uint64_t seed) {
    Random random(seed);
    const auto normals = [&](int64_t count) { return rounded_to_bf16(random.normals(count)); };
    return {normals(c.batch * c.time * c.shape.projection()), normals(c.channels() * c.shape.conv_kernel),
            normals(c.channels()), normals(c.batch * c.channels() * c.kept())};
}

ConvOutput<double> expected_output(const ConvCase& c, const ConvInput& in) {
    ConvOutput<double> out{std::vector<double>(c.batch * c.time * c.channels()),
                           std::vector<double>(c.batch * c.channels() * c.kept())};
    ConvForward args{.shape = c.shape,
                     .zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, c.shape.projection()}),
                     .weight = tensor(in.weight, {c.channels(), c.shape.conv_kernel}),
                     .xbc = tensor(out.xbc, {c.batch, c.time, c.channels()})};
    if (c.bias) args.bias = tensor(in.bias, {c.channels()});
    if (!c.document.empty()) args.document = tensor(c.document, {c.batch, c.time});
    if (c.initial) args.initial_state = tensor(in.initial_state, {c.batch, c.channels(), c.kept()});
    args.final_state = tensor(out.final_state, {c.batch, c.channels(), c.kept()});
    make_cpu_backend(DType::f64, 0)->run(args);
    return out;
}

ConvOutput<float> device_output(Backend& gpu, const ConvCase& c, const ConvInput& in) {
    const DeviceTensor zxbcdt(gpu, DType::bf16, {c.batch, c.time, c.shape.projection()}, in.zxbcdt);
    const DeviceTensor weight(gpu, DType::bf16, {c.channels(), c.shape.conv_kernel}, in.weight);
    const DeviceTensor bias(gpu, DType::bf16, {c.channels()}, in.bias);
    const DeviceTensor initial(gpu, DType::bf16, {c.batch, c.channels(), c.kept()}, in.initial_state);
    const DeviceTensor xbc(gpu, DType::bf16, {c.batch, c.time, c.channels()});
    const DeviceTensor final_state(gpu, DType::bf16, {c.batch, c.channels(), c.kept()});
    const std::vector<int32_t> one_document(c.batch * c.time, 0);
    const DeviceTensor document(gpu, DType::i32, {c.batch, c.time},
                                c.document.empty() ? one_document : c.document);
    ConvForward args{
        .shape = c.shape, .zxbcdt = zxbcdt, .weight = weight, .xbc = xbc, .final_state = final_state};
    if (c.bias) args.bias = bias;
    if (!c.document.empty()) args.document = document;
    if (c.initial) args.initial_state = initial;
    gpu.run(args);
    return {xbc.download(), final_state.download()};
}

void check(Backend& gpu, const ConvCase& c) {
    const auto in = random_input(c, 11 + c.time);
    const auto expected = expected_output(c, in);
    const auto actual = device_output(gpu, c, in);
    INFO("heads " << c.shape.heads << " head_dim " << c.shape.head_dim << " taps " << c.shape.conv_kernel
                  << " time " << c.time << " documents " << !c.document.empty());
    // Products of bf16 are exact in float32; Kc + 1 additions of terms up to 20 may cancel: 2^-24 * 20 * (Kc
    // + 1).
    const double noise = 1.2e-6 * static_cast<double>(c.shape.conv_kernel + 1);
    CHECK(rounding_share(actual.xbc, expected.xbc, noise) <= 1);
    CHECK(convert<double>(actual.final_state) == expected.final_state);
}

const MambaShape kVectors{8, 32, 32, 2, 4}, kScalars{12, 32, 32, 2, 4};  // 12 heads: odd rows for vectors

}  // namespace

TEST_CASE("GPU: the convolution at every length, shorter than the kernel and beyond a run", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape : {kVectors, kScalars, MambaShape{2, 3, 2, 1, 4}}) {
        for (const int64_t time : {1, 2, 3, 4, 5, 9, 31, 32, 33, 64, 67, 100}) {
            for (const bool initial : {false, true}) {
                ConvCase c{.shape = shape, .time = time, .initial = initial, .bias = time != 5};
                check(*gpu, c);
                c.document = documents(c, time > 32 ? 9 : 2);
                check(*gpu, c);
            }
        }
    }
}

TEST_CASE("GPU: the convolution at published sizes", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape : {MambaShape{128, 64, 128, 8, 4}, MambaShape{256, 64, 256, 8, 4},
                                    MambaShape{128, 80, 128, 8, 4}, MambaShape{112, 64, 128, 8, 4}}) {
        check(*gpu, {.shape = shape, .batch = 1, .time = 70, .initial = false});
    }
}

TEST_CASE("GPU: the convolution with other numbers of taps", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t taps : {1, 2, 3, 5, 7}) {
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

TEST_CASE("GPU: the convolution's bits depend on the sequence alone, cut in two or in company",
          "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape : {kVectors, kScalars}) {
        const ConvCase c{.shape = shape, .batch = 3, .time = 67};
        const auto in = random_input(c, 21);
        const auto out = device_output(*gpu, c, in);
        for (int64_t b = 0; b < c.batch; ++b) {
            ConvCase alone = c, head = c, tail = c;
            alone.batch = head.batch = tail.batch = 1;
            ConvInput one = in;
            one.zxbcdt = part(in.zxbcdt, b, c.batch);
            one.initial_state = part(in.initial_state, b, c.batch);
            CHECK(device_output(*gpu, alone, one).xbc == part(out.xbc, b, c.batch));

            head.time = 35;
            tail.time = c.time - head.time;
            ConvInput first = one, second = one;
            const auto cut = one.zxbcdt.begin() + head.time * shape.projection();
            first.zxbcdt.assign(one.zxbcdt.begin(), cut);
            second.zxbcdt.assign(cut, one.zxbcdt.end());
            auto joined = device_output(*gpu, head, first);
            second.initial_state = convert<double>(joined.final_state);
            const auto rest = device_output(*gpu, tail, second);
            joined.xbc.insert(joined.xbc.end(), rest.xbc.begin(), rest.xbc.end());
            CHECK(joined.xbc == part(out.xbc, b, c.batch));
            CHECK(rest.final_state == part(out.final_state, b, c.batch));
        }
    }
}

TEST_CASE("GPU: the convolution over more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    const MambaShape shape{128, 64, 128, 8, 4};
    const int64_t channels = shape.conv_channels(), pitch = shape.projection(),
                  time = kTwoToThe31 / channels + 5;
    if (!gpu || !has_memory(*gpu, time * (channels + pitch) * 2 + (int64_t{1} << 30))) return;
    const LargeTensor zxbcdt(*gpu, {1, time, pitch}, 1), xbc(*gpu, {1, time, channels}, 2);
    ConvCase end{.shape = shape, .batch = 1, .time = 4, .initial = false};
    auto in = random_input(end, 3);
    gpu->run(ConvForward{.shape = shape,
                         .zxbcdt = zxbcdt,
                         .weight = DeviceTensor(*gpu, DType::bf16, {channels, 4}, in.weight),
                         .bias = DeviceTensor(*gpu, DType::bf16, {channels}, in.bias),
                         .xbc = xbc});
    for (const int64_t first : {int64_t{0}, time - end.time}) {  // the fourth token of each sees all its taps
        in.zxbcdt = zxbcdt.drawn(first * pitch, end.time * pitch);
        const auto expected = part(expected_output(end, in).xbc, 3, end.time);
        CHECK(rounding_share(xbc.now((first + 3) * channels, channels), expected, 6e-6) <= 1);
    }
}
