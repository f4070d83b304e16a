// The gated group norm on the device against the CPU in double.
#include "tests/gpu/dense_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct GatedCase {
    MambaShape shape;
    int64_t batch = 1, time = 5;

    int64_t rows() const { return batch * time; }
};

struct GatedInput {
    std::vector<double> y, zxbcdt, weight;
};

GatedInput random_input(const GatedCase& c, uint64_t seed) {
    Random random(seed);
    return {rounded_to_bf16(random.normals(c.rows() * c.shape.inner())),
            rounded_to_bf16(random.normals(c.rows() * c.shape.projection(), 0, 3)),
            convert<double>(convert<float>(random.normals(c.shape.inner(), 1, 0.3)))};
}

GatedNormForward arguments(const MambaShape& shape, const Tensor& y, const Tensor& zxbcdt,
                           const Tensor& weight, const Tensor& out) {
    return {.shape = shape, .y = y, .zxbcdt = zxbcdt, .weight = weight, .out = out};
}

std::vector<double> expected_output(const GatedCase& c, const GatedInput& in) {
    const MambaShape& s = c.shape;
    std::vector<double> out(in.y.size());
    make_cpu_backend(DType::f64, 0)
        ->run(arguments(s, tensor(in.y, {c.batch, c.time, s.inner()}),
                        tensor(in.zxbcdt, {c.batch, c.time, s.projection()}), tensor(in.weight, {s.inner()}),
                        tensor(out, {c.batch, c.time, s.inner()})));
    return out;
}

std::vector<float> device_output(Backend& gpu, const GatedCase& c, const GatedInput& in, bool in_place) {
    const MambaShape& s = c.shape;
    const DeviceTensor y(gpu, DType::bf16, {c.batch, c.time, s.inner()}, in.y);
    const DeviceTensor zxbcdt(gpu, DType::bf16, {c.batch, c.time, s.projection()}, in.zxbcdt);
    const DeviceTensor weight(gpu, DType::f32, {s.inner()}, in.weight);
    const DeviceTensor out(gpu, DType::bf16, {c.batch, c.time, s.inner()});
    const DeviceTensor& to = in_place ? y : out;
    gpu.run(arguments(s, y, zxbcdt, weight, to));
    return to.download();
}

}  // namespace

TEST_CASE("GPU: the gated norm rounds once, at published sizes and odd ones, also in place", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const MambaShape shapes[] = {
        {128, 64, 128, 8, 4}, {256, 64, 256, 8, 4}, {128, 80, 128, 8, 4},
        {112, 64, 128, 8, 4}, {96, 80, 128, 8, 4},  {8, 32, 32, 2, 4},
        {16, 32, 64, 2, 4},   {12, 32, 32, 2, 4},  // odd pitch of z
        {2, 3, 2, 1, 4},      {4, 5, 3, 2, 4},      {64, 64, 16, 64, 4},
        {9, 72, 16, 9, 4},    {320, 64, 16, 1, 4},  // a group too long for registers
    };
    for (const MambaShape& shape : shapes) {
        const GatedCase c{.shape = shape, .batch = 2, .time = 5};
        const auto in = random_input(c, 3);
        const auto out = device_output(*gpu, c, in, false);
        INFO("heads " << shape.heads << " head_dim " << shape.head_dim << " groups " << shape.groups);
        // A gate of z = -12 keeps 16 / 2^24 of relative error, below the slack of rounding_share.
        CHECK(rounding_share(out, expected_output(c, in)) <= 1);
        CHECK(device_output(*gpu, c, in, true) == out);
    }
}

TEST_CASE("GPU: the gated norm stays finite where the gate is far out or shut", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const GatedCase c{.shape = {8, 32, 32, 2, 4}};
    auto in = random_input(c, 4);
    for (size_t i = 0; i < in.zxbcdt.size(); ++i) in.zxbcdt[i] = i % 2 ? 900 : -900;
    CHECK(rounding_share(device_output(*gpu, c, in, false), expected_output(c, in)) <= 1);
    in.zxbcdt.assign(in.zxbcdt.size(), 0);  // q = 0: eps alone keeps the root
    CHECK(device_output(*gpu, c, in, false) == std::vector<float>(in.y.size()));
}

TEST_CASE("GPU: the gated norm's bits depend on the sequence alone", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {13, 64}) {
        const GatedCase c{.shape = {16, head_dim, 16, 2, 4}, .batch = 3, .time = 37};
        const auto in = random_input(c, 9);
        const auto out = device_output(*gpu, c, in, false);
        for (int64_t b = 0; b < c.batch; ++b) {
            const GatedCase alone{.shape = c.shape, .batch = 1, .time = c.time};
            const GatedInput one{part(in.y, b, c.batch), part(in.zxbcdt, b, c.batch), in.weight};
            CHECK(device_output(*gpu, alone, one, false) == part(out, b, c.batch));
        }
    }
}

TEST_CASE("GPU: the gated norm over more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    const GatedCase c{.shape = {128, 64, 128, 8, 4}, .batch = 1, .time = kTwoToThe31 / 8192 + 3};
    const int64_t inner = c.shape.inner(), pitch = c.shape.projection();
    if (!gpu || !has_memory(*gpu, c.time * (inner + pitch) * 2 + (int64_t{1} << 30))) return;
    const LargeTensor y(*gpu, {1, c.time, inner}, 1), z(*gpu, {1, c.time, pitch}, 2);
    const auto weight = convert<double>(convert<float>(Random(3).normals(inner, 1, 0.3)));
    gpu->run(arguments(c.shape, y, z, DeviceTensor(*gpu, DType::f32, {inner}, weight), y));
    for (const int64_t row : {int64_t{0}, c.time - 1}) {
        const GatedCase one{.shape = c.shape, .batch = 1, .time = 1};
        const GatedInput in{y.drawn(row * inner, inner), z.drawn(row * pitch, pitch), weight};
        CHECK(rounding_share(y.now(row * inner, inner), expected_output(one, in)) <= 1);
    }
}
