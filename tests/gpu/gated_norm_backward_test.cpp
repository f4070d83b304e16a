// The gradient of the gated group norm on the device against the CPU in double.
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
    std::vector<double> y, zxbcdt, weight, d_out;
};

template <class T>
struct GatedGradients {
    std::vector<T> d_y, d_zxbcdt, d_weight;
};

GatedInput random_input(const GatedCase& c, uint64_t seed) {
    Random random(seed);
    return {rounded_to_bf16(random.normals(c.rows() * c.shape.inner())),
            rounded_to_bf16(random.normals(c.rows() * c.shape.projection(), 0, 3)),
            convert<double>(convert<float>(random.normals(c.shape.inner(), 1, 0.3))),
            rounded_to_bf16(random.normals(c.rows() * c.shape.inner()))};
}

// The gradients before the operation: NaN where it overwrites.
GatedGradients<double> before(const GatedCase& c, uint64_t seed) {
    Random random(seed);
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    GatedGradients<double> g{std::vector<double>(c.rows() * c.shape.inner(), kNan),
                             rounded_to_bf16(random.normals(c.rows() * c.shape.projection())),
                             convert<double>(convert<float>(random.normals(c.shape.inner())))};
    for (int64_t row = 0; row < c.rows(); ++row)
        std::fill_n(g.d_zxbcdt.begin() + row * c.shape.projection(), c.shape.inner(), kNan);
    return g;
}

GatedGradients<double> expected_gradients(const GatedCase& c, const GatedInput& in,
                                          GatedGradients<double> g) {
    const MambaShape& s = c.shape;
    make_cpu_backend(DType::f64, 0)
        ->run(GatedNormBackward{.shape = s,
                                .y = tensor(in.y, {c.batch, c.time, s.inner()}),
                                .zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, s.projection()}),
                                .weight = tensor(in.weight, {s.inner()}),
                                .d_out = tensor(in.d_out, {c.batch, c.time, s.inner()}),
                                .d_y = tensor(g.d_y, {c.batch, c.time, s.inner()}),
                                .d_zxbcdt = tensor(g.d_zxbcdt, {c.batch, c.time, s.projection()}),
                                .d_weight = tensor(g.d_weight, {s.inner()})});
    return g;
}

GatedGradients<float> device_gradients(Backend& gpu, const GatedCase& c, const GatedInput& in,
                                       const GatedGradients<double>& g, bool in_place = false) {
    const MambaShape& s = c.shape;
    const DeviceTensor y(gpu, DType::bf16, {c.batch, c.time, s.inner()}, in.y);
    const DeviceTensor zxbcdt(gpu, DType::bf16, {c.batch, c.time, s.projection()}, in.zxbcdt);
    const DeviceTensor weight(gpu, DType::f32, {s.inner()}, in.weight);
    const DeviceTensor d_out(gpu, DType::bf16, {c.batch, c.time, s.inner()}, in.d_out);
    const DeviceTensor beside(gpu, DType::bf16, {c.batch, c.time, s.inner()});
    const DeviceTensor d_zxbcdt(gpu, DType::bf16, {c.batch, c.time, s.projection()}, g.d_zxbcdt);
    const DeviceTensor d_weight(gpu, DType::f32, {s.inner()}, g.d_weight);
    const DeviceTensor& d_y = in_place ? d_out : beside;
    gpu.run(GatedNormBackward{.shape = s,
                              .y = y,
                              .zxbcdt = zxbcdt,
                              .weight = weight,
                              .d_out = d_out,
                              .d_y = d_y,
                              .d_zxbcdt = d_zxbcdt,
                              .d_weight = d_weight});
    return {d_y.download(), d_zxbcdt.download(), d_weight.download()};
}

void check(Backend& gpu, const GatedCase& c, const GatedInput& in) {
    const auto start = before(c, 7);
    const auto expected = expected_gradients(c, in, start);
    const auto actual = device_gradients(gpu, c, in, start);
    INFO("heads " << c.shape.heads << " head_dim " << c.shape.head_dim << " groups " << c.shape.groups
                  << " rows " << c.rows());
    // Beside the rounding: dq is a difference of terms of up to 20 and a gate is off by up to 16 * 2^-24 of
    // itself; both are multiplied by y and z of up to 12.
    CHECK(rounding_share(actual.d_y, expected.d_y, 1e-5) <= 1);
    CHECK(rounding_share(actual.d_zxbcdt, expected.d_zxbcdt, 3e-5) <= 1);
    CHECK(norm_error(actual.d_weight, expected.d_weight) <= 3e-6);
    const auto in_place = device_gradients(gpu, c, in, start, true);
    CHECK(in_place.d_y == actual.d_y);
    CHECK(in_place.d_zxbcdt == actual.d_zxbcdt);
    CHECK(in_place.d_weight == actual.d_weight);
}

}  // namespace

TEST_CASE("GPU: the gated norm's gradient at published sizes and odd ones, also in place", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const MambaShape shapes[] = {
        {128, 64, 128, 8, 4}, {256, 64, 256, 8, 4}, {128, 80, 128, 8, 4},
        {112, 64, 128, 8, 4}, {96, 80, 128, 8, 4},  {8, 32, 32, 2, 4},
        {16, 32, 64, 2, 4},   {12, 32, 32, 2, 4},  // odd pitch of z
        {2, 3, 2, 1, 4},      {4, 5, 3, 2, 4},      {64, 64, 16, 64, 4},
        {9, 72, 16, 9, 4},    {72, 80, 16, 8, 4},   {128, 64, 16, 1, 4},
        {320, 64, 16, 1, 4},  // a group too long for registers
    };
    for (const MambaShape& shape : shapes) {
        for (const int64_t time : {1, 5, 67}) {
            const GatedCase c{.shape = shape, .batch = 2, .time = time};
            check(*gpu, c, random_input(c, 3));
        }
    }
}

TEST_CASE("GPU: the gated norm's gradient over many rows", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const MambaShape& shape : {MambaShape{8, 32, 32, 2, 4}, MambaShape{16, 16, 16, 16, 4}}) {
        for (const int64_t time : {2051, 9000}) {
            const GatedCase c{.shape = shape, .batch = 2, .time = time};
            check(*gpu, c, random_input(c, 4));
        }
    }
}

TEST_CASE("GPU: the gated norm's gradient stays finite where the gate is far out or shut", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const GatedCase c{.shape = {8, 32, 32, 2, 4}};
    auto in = random_input(c, 4);
    for (size_t i = 0; i < in.zxbcdt.size(); ++i) in.zxbcdt[i] = i % 2 ? 900 : -900;
    check(*gpu, c, in);
    in.zxbcdt.assign(in.zxbcdt.size(),
                     0);  // q = 0: eps alone keeps the root, and d_z is 316 times dq * y / 2
    const auto start = before(c, 7);
    const auto expected = expected_gradients(c, in, start);
    const auto actual = device_gradients(*gpu, c, in, start);
    CHECK(rounding_share(actual.d_y, expected.d_y) <= 1);
    CHECK(rounding_share(actual.d_zxbcdt, expected.d_zxbcdt) <= 1);
    CHECK(actual.d_weight == convert<float>(start.d_weight));
}

TEST_CASE("GPU: the gated norm's gradient repeats, and a sequence's depends on it alone", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {13, 64}) {
        const GatedCase c{.shape = {16, head_dim, 16, 2, 4}, .batch = 3, .time = 37};
        const auto in = random_input(c, 9);
        const auto start = before(c, 2);
        const auto out = device_gradients(*gpu, c, in, start);
        const auto again = device_gradients(*gpu, c, in, start);
        CHECK(again.d_y == out.d_y);
        CHECK(again.d_zxbcdt == out.d_zxbcdt);
        CHECK(again.d_weight == out.d_weight);
        for (int64_t b = 0; b < c.batch; ++b) {
            const GatedCase alone{.shape = c.shape, .batch = 1, .time = c.time};
            const GatedInput one{part(in.y, b, c.batch), part(in.zxbcdt, b, c.batch), in.weight,
                                 part(in.d_out, b, c.batch)};
            GatedGradients<double> from = before(alone, 2);
            from.d_zxbcdt = part(start.d_zxbcdt, b, c.batch);
            const auto own = device_gradients(*gpu, alone, one, from);
            CHECK(own.d_y == part(out.d_y, b, c.batch));
            CHECK(own.d_zxbcdt == part(out.d_zxbcdt, b, c.batch));
        }
    }
}
