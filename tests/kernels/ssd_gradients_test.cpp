// The gradients of the selective scan against complex steps through the plain recurrence.
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

using Complex = std::complex<double>;

// Complex steps are exact to rounding; the sums have at most a few thousand terms of size one to ten.
constexpr double kTolerance = 1e-11;

ScanOutput<double> random_output_gradient(const ScanCase& c, uint64_t seed) {
    Random random(seed);
    return {random.normals(c.batch * c.time * c.shape.inner()), random.normals(c.states())};
}

// Every gradient of the chunked scan against complex steps. Parameter gradients are started at 1, to see that
// they accumulate, and the foreign columns of d_zxbcdt at 7, to see that they stay.
void check_gradients(const ScanCase& c, int64_t chunk, bool with_final_state = true) {
    const auto in = random_input(c, 17 * c.time + chunk);
    auto d_out = random_output_gradient(c, 5);
    if (!with_final_state) d_out.final_state.clear();
    const auto actual = scan_gradients(c, in, d_out, chunk, 1, 1.0, 7.0);

    auto z = in.to<Complex>();
    const auto loss = [&] {
        const auto out = scan_sequentially(c, z);
        return weighted_sum(d_out.y, out.y) + weighted_sum(d_out.final_state, out.final_state);
    };
    const auto plus_one = [](std::vector<double> values) {
        for (double& value : values) value += 1;
        return values;
    };
    auto d_dt = complex_step(z.zxbcdt, loss);
    for (size_t i = 0; i < d_dt.size(); ++i) {
        const int64_t column = static_cast<int64_t>(i) % c.shape.projection();
        if (column < c.shape.projection() - c.shape.heads) d_dt[i] = 7;
    }
    INFO("time " << c.time << " chunk " << chunk << " groups " << c.shape.groups);
    CHECK(relative_error(actual.xbc, complex_step(z.xbc, loss)) < kTolerance);
    CHECK(relative_error(actual.zxbcdt, d_dt) < kTolerance);
    CHECK(relative_error(actual.dt_bias, plus_one(complex_step(z.dt_bias, loss))) < kTolerance);
    CHECK(relative_error(actual.a_log, plus_one(complex_step(z.a_log, loss))) < kTolerance);
    CHECK(relative_error(actual.d, plus_one(complex_step(z.d, loss))) < kTolerance);
    if (c.initial)
        CHECK(relative_error(actual.initial_state, complex_step(z.initial_state, loss)) < kTolerance);
}

}  // namespace

TEST_CASE("The scan's gradients are exact for whole and partial chunks, one or more groups") {
    for (const int64_t groups : {1, 2, 4}) {
        for (const auto& [time, chunk] :
             {std::pair<int64_t, int64_t>{1, 4}, {3, 4}, {8, 4}, {11, 4}, {11, 16}}) {
            ScanCase c;
            c.shape.groups = groups;
            c.time = time;
            check_gradients(c, chunk);
        }
    }
}

TEST_CASE("The scan's gradients are exact where a chunk spans several tiles") {
    ScanCase c;
    c.shape = {.heads = 2, .head_dim = 2, .state = 3, .groups = 1, .conv_kernel = 2};
    c.batch = 1;
    c.time = 83;
    check_gradients(c, 70);
}

TEST_CASE("The scan's gradients are exact without initial state and without final gradient") {
    ScanCase c;
    c.initial = false;
    check_gradients(c, 4, false);
}

TEST_CASE("The scan's gradients are exact for documents packed in a row") {
    ScanCase c;
    // Boundaries in the middle of a chunk, at a chunk's edge, twice within a chunk, and at the last token.
    c.document = {0, 0, 1, 1, 2, 2, 2, 3, 5, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1};
    check_gradients(c, 4);
    check_gradients(c, 16);
    c.initial = false;
    check_gradients(c, 4);
}

TEST_CASE("The scan's gradients are zero where the step size is clamped, and exact elsewhere") {
    ScanCase c;
    c.dt_min = 0.2;
    c.dt_max = 0.6;
    const auto in = random_input(c, 17 * c.time + 4);
    const auto d = scan_gradients(c, in, random_output_gradient(c, 5), 4);
    int64_t low = 0, high = 0, inside = 0;
    for (int64_t r = 0; r < c.batch * c.time; ++r) {
        for (int64_t h = 0; h < c.shape.heads; ++h) {
            const int64_t at = (r + 1) * c.shape.projection() - c.shape.heads + h;
            const double softplus = std::log1p(std::exp(in.zxbcdt[at] + in.dt_bias[h]));
            const bool clamped = softplus < c.dt_min || softplus > c.dt_max;
            CHECK((d.zxbcdt[at] == 0) == clamped);
            (softplus < c.dt_min ? low : softplus > c.dt_max ? high : inside) += 1;
        }
    }
    CHECK(std::min({low, high, inside}) > 5);
    check_gradients(c, 4);
}
