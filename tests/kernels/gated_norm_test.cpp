// The gated group norm against its definition.
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct GatedCase {
    MambaShape shape{.heads = 4, .head_dim = 5, .state = 3, .groups = 2, .conv_kernel = 4};
    int64_t batch = 2, time = 3;
    double eps = 1e-5;
};

template <class S>
struct GatedInput {
    std::vector<S> y, zxbcdt, weight;
};

GatedInput<double> random_input(const GatedCase& c, uint64_t seed) {
    Random random(seed);
    const int64_t rows = c.batch * c.time;
    return {random.normals(rows * c.shape.inner()), random.normals(rows * c.shape.projection(), 0, 3),
            random.normals(c.shape.inner(), 1)};
}

template <class S>
std::vector<S> gate_and_normalise(const GatedCase& c, const GatedInput<S>& in) {
    const int64_t inner = c.shape.inner(), width = inner / c.shape.groups;
    std::vector<S> out(in.y.size());
    for (int64_t r = 0; r < c.batch * c.time; ++r) {
        for (int64_t first = 0; first < inner; first += width) {
            std::vector<S> q(width);
            S sum = 0;
            for (int64_t i = 0; i < width; ++i) {
                const S z = in.zxbcdt[r * c.shape.projection() + first + i];
                q[i] = in.y[r * inner + first + i] * z / (S(1) + std::exp(-z));
                sum += q[i] * q[i];
            }
            for (int64_t i = 0; i < width; ++i) {
                out[r * inner + first + i] =
                    in.weight[first + i] * q[i] / std::sqrt(sum / S(width) + S(c.eps));
            }
        }
    }
    return out;
}

template <class T>
std::vector<T> run_forward(const GatedCase& c, const GatedInput<T>& in, int threads = 1) {
    const MambaShape& s = c.shape;
    std::vector<T> out(in.y.size(), T(NAN));
    GatedNormForward args;
    args.shape = s;
    args.eps = c.eps;
    args.y = tensor(in.y, {c.batch, c.time, s.inner()});
    args.zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, s.projection()});
    args.weight = tensor(in.weight, {s.inner()});
    args.out = tensor(out, {c.batch, c.time, s.inner()});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    return out;
}

// d_out is overwritten by d_y where `in_place`.
template <class T>
GatedInput<T> run_backward(const GatedCase& c, const GatedInput<T>& in, std::vector<T> d_out,
                           bool in_place = false, int threads = 1) {
    const MambaShape& s = c.shape;
    GatedInput<T> d{std::vector<T>(in.y.size(), T(NAN)), std::vector<T>(in.zxbcdt.size(), T(7)),
                    std::vector<T>(in.weight.size(), T(1))};
    GatedNormBackward args;
    args.shape = s;
    args.eps = c.eps;
    args.y = tensor(in.y, {c.batch, c.time, s.inner()});
    args.zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, s.projection()});
    args.weight = tensor(in.weight, {s.inner()});
    args.d_out = tensor(d_out, {c.batch, c.time, s.inner()});
    args.d_y = in_place ? args.d_out : tensor(d.y, {c.batch, c.time, s.inner()});
    args.d_zxbcdt = tensor(d.zxbcdt, {c.batch, c.time, s.projection()});
    args.d_weight = tensor(d.weight, {s.inner()});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    if (in_place) d.y = d_out;
    return d;
}

}  // namespace

TEST_CASE("The gated norm gates first and normalises each group by itself") {
    for (const int64_t groups : {1, 2, 4}) {
        GatedCase c;
        c.shape.groups = groups;
        auto in = random_input(c, 3);
        // zxbcdt's other parts grow with the groups, so the same y and z are laid out anew.
        CHECK(relative_error(run_forward(c, in), gate_and_normalise(c, in)) < 1e-14);
    }
    GatedCase two, whole;
    whole.shape.groups = 1;
    whole.shape.state = 2 * two.shape.state;  // the same projection, hence the same z
    REQUIRE(whole.shape.projection() == two.shape.projection());
    const auto in = random_input(two, 3);
    CHECK(relative_error(run_forward(two, in), gate_and_normalise(whole, in)) > 0.01);
}

TEST_CASE("The gated norm stays finite where the gate is far out or shut") {
    GatedCase c;
    auto in = random_input(c, 4);
    for (size_t i = 0; i < in.zxbcdt.size(); ++i) in.zxbcdt[i] = i % 2 ? 900 : -900;
    const auto out = run_forward(c, in);
    CHECK(relative_error(out, gate_and_normalise(c, in)) < 1e-14);
    in.zxbcdt.assign(in.zxbcdt.size(), 0);  // q = 0: eps alone keeps the root
    CHECK(relative_error(run_forward(c, in), std::vector<double>(out.size())) == 0);
}

TEST_CASE("The gated norm's gradients equal complex steps") {
    for (const int64_t groups : {1, 2}) {
        GatedCase c;
        c.shape.groups = groups;
        const auto in = random_input(c, 5);
        const auto d_out = Random(6).normals(static_cast<int64_t>(in.y.size()));
        using Complex = std::complex<double>;
        GatedInput<Complex> z{convert<Complex>(in.y), convert<Complex>(in.zxbcdt),
                              convert<Complex>(in.weight)};
        const auto loss = [&] { return weighted_sum(d_out, gate_and_normalise(c, z)); };
        auto d_weight = complex_step(z.weight, loss), d_z = complex_step(z.zxbcdt, loss);
        for (double& value : d_weight) value += 1;  // accumulates onto 1
        for (size_t i = 0; i < d_z.size(); ++i) {   // only z is written
            if (static_cast<int64_t>(i) % c.shape.projection() >= c.shape.inner()) d_z[i] = 7;
        }
        const auto d_y = complex_step(z.y, loss);
        for (const bool in_place : {false, true}) {
            const auto actual = run_backward(c, in, d_out, in_place);
            CHECK(relative_error(actual.y, d_y) < 1e-13);
            CHECK(relative_error(actual.zxbcdt, d_z) < 1e-13);
            CHECK(relative_error(actual.weight, d_weight) < 1e-13);
        }
    }
}

TEST_CASE("The gated norm in float agrees with double to rounding") {
    GatedCase c;
    c.shape.head_dim = 33;
    c.time = 70;
    const auto in = random_input(c, 7);
    const GatedInput<float> in32{convert<float>(in.y), convert<float>(in.zxbcdt), convert<float>(in.weight)};
    const GatedInput<double> rounded{convert<double>(in32.y), convert<double>(in32.zxbcdt),
                                     convert<double>(in32.weight)};
    constexpr double kEps = 6e-8;
    CHECK(relative_error(run_forward(c, in32), run_forward(c, rounded)) < 10 * kEps);
    const auto d_out = convert<float>(Random(8).normals(static_cast<int64_t>(in.y.size())));
    const auto d32 = run_backward(c, in32, d_out);
    const auto d64 = run_backward(c, rounded, convert<double>(d_out));
    CHECK(relative_error(d32.y, d64.y) < 20 * kEps);
    CHECK(relative_error(d32.zxbcdt, d64.zxbcdt) < 20 * kEps);
    CHECK(relative_error(d32.weight, d64.weight) < 20 * kEps);
}

TEST_CASE("The gated norm's bits depend on the sequence alone, not on threads or batch") {
    GatedCase c;  // odd sizes, so that rows start at every alignment
    c.shape.head_dim = 13;
    c.shape.state = 5;
    c.batch = 3;
    c.time = 131;
    const auto in64 = random_input(c, 9);
    const GatedInput<float> in{convert<float>(in64.y), convert<float>(in64.zxbcdt),
                               convert<float>(in64.weight)};
    const auto d_out = convert<float>(Random(8).normals(static_cast<int64_t>(in.y.size())));
    const auto out = run_forward(c, in, 1);
    const auto d = run_backward(c, in, d_out);
    for (const int threads : {2, 3}) {
        CHECK(run_forward(c, in, threads) == out);
        const auto again = run_backward(c, in, d_out, false, threads);
        CHECK(again.y == d.y);
        CHECK(again.zxbcdt == d.zxbcdt);
        CHECK(again.weight == d.weight);
    }
    for (int64_t b = 0; b < c.batch; ++b) {
        GatedCase alone = c;
        alone.batch = 1;
        const GatedInput<float> part{sequence(in.y, b, c.batch), sequence(in.zxbcdt, b, c.batch), in.weight};
        CHECK(run_forward(alone, part) == sequence(out, b, c.batch));
        const auto d_part = run_backward(alone, part, sequence(d_out, b, c.batch));
        CHECK(d_part.y == sequence(d.y, b, c.batch));
        CHECK(d_part.zxbcdt == sequence(d.zxbcdt, b, c.batch));
    }
}
