// The selective scan against the plain recurrence.
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// Both sums run over at most a few hundred terms of size one; double rounding, with the decays' exponents
// (up to about 1e3, so 1e3 * 2^-53 of relative error each) leaves 1e-12.
constexpr double kDoubleTolerance = 1e-12;

std::vector<int64_t> lengths(int64_t q) { return {1, 3, q - 1, q, q + 1, 2 * q, 3 * q + 5}; }

// Tokens [begin, end) of a [time, ..] tensor.
std::vector<double> rows(const std::vector<double>& values, int64_t time, int64_t begin, int64_t end) {
    const int64_t width = div_exact(static_cast<int64_t>(values.size()), time);
    return {values.begin() + begin * width, values.begin() + end * width};
}

}  // namespace

TEST_CASE("The chunked scan equals the recurrence at every length") {
    for (const int64_t groups : {1, 2}) {
        for (const int64_t chunk : {16, 40, 64}) {
            for (const int64_t time : lengths(chunk)) {
                ScanCase c;
                c.shape = {.heads = 4, .head_dim = 5, .state = 7, .groups = groups, .conv_kernel = 4};
                c.time = time;
                c.initial = time % 2 == 1;
                const auto in = random_input(c, 100 * chunk + time);
                const auto expected = scan_sequentially(c, in);
                const auto run = scan_in_chunks(c, in, chunk);
                INFO("groups " << groups << " chunk " << chunk << " time " << time);
                CHECK(relative_error(run.out.y, expected.y) < kDoubleTolerance);
                CHECK(relative_error(run.out.final_state, expected.final_state) < kDoubleTolerance);
            }
        }
    }
}

TEST_CASE("Documents packed in a row are scanned as if each were alone") {
    ScanCase packed;
    // Boundaries in the middle of a chunk of 8, at its edges (8, 16), twice in one chunk, at the last token.
    packed.document = {0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 7, 7, 9};
    packed.batch = 1;
    packed.time = static_cast<int64_t>(packed.document.size());
    const auto in = random_input(packed, 1);
    const auto expected = scan_sequentially(packed, in);
    for (const int64_t chunk : {1, 5, 8, 128}) {
        const auto run = scan_in_chunks(packed, in, chunk);
        CHECK(relative_error(run.out.y, expected.y) < kDoubleTolerance);
        CHECK(relative_error(run.out.final_state, expected.final_state) < kDoubleTolerance);
        // Tokens 8..15 are a document of their own.
        ScanCase alone = packed;
        alone.document.clear();
        alone.time = 8;
        alone.initial = false;
        auto part = in;
        part.xbc = rows(in.xbc, packed.time, 8, 16);
        part.zxbcdt = rows(in.zxbcdt, packed.time, 8, 16);
        const auto run_alone = scan_in_chunks(alone, part, chunk);
        CHECK(relative_error(run_alone.out.y, rows(run.out.y, packed.time, 8, 16)) < kDoubleTolerance);
    }
}

TEST_CASE("A document that opens a chunk finds a zero state, in the kept chunk states too") {
    ScanCase c;
    c.batch = 1;
    c.time = 8;
    c.document = {0, 0, 0, 0, 1, 1, 1, 1};
    const auto in = random_input(c, 2);
    const auto run = scan_in_chunks(c, in, 4);
    CHECK(sequence(run.chunk_states, 0, 2) == in.initial_state);
    CHECK(sequence(run.chunk_states, 1, 2) == std::vector<double>(c.states()));
}

TEST_CASE("A scan cut in two with its state carried over equals the whole") {
    ScanCase whole;
    whole.batch = 1;
    whole.time = 37;
    const auto in = random_input(whole, 3);
    const auto expected = scan_in_chunks(whole, in, 8);
    for (const int64_t cut : {1, 7, 8, 16, 36}) {
        ScanCase first = whole, second = whole;
        first.time = cut;
        second.time = whole.time - cut;
        auto head = in, tail = in;
        head.xbc = rows(in.xbc, whole.time, 0, cut);
        head.zxbcdt = rows(in.zxbcdt, whole.time, 0, cut);
        tail.xbc = rows(in.xbc, whole.time, cut, whole.time);
        tail.zxbcdt = rows(in.zxbcdt, whole.time, cut, whole.time);
        auto out = scan_in_chunks(first, head, 8).out;
        tail.initial_state = out.final_state;
        const auto rest = scan_in_chunks(second, tail, 8).out;
        out.y.insert(out.y.end(), rest.y.begin(), rest.y.end());
        CHECK(relative_error(out.y, expected.out.y) < kDoubleTolerance);
        CHECK(relative_error(rest.final_state, expected.out.final_state) < kDoubleTolerance);
        if (cut % 8 == 0) CHECK(out.y == expected.out.y);  // the same chunks: the same bits
    }
}

TEST_CASE("Step sizes are clamped to the time step limit and pass large values through") {
    ScanCase c;
    c.dt_min = 0.3;
    c.dt_max = 0.5;
    auto in = random_input(c, 4);
    CHECK(relative_error(scan_in_chunks(c, in, 4).out.y, scan_sequentially(c, in).y) < kDoubleTolerance);
    c.dt_min = 0;
    c.dt_max = INFINITY;
    in.dt_bias = {1000, 19.5, -40, -1000};  // softplus: identity, near it, 4e-18, zero
    const auto expected = scan_sequentially(c, in).y;
    CHECK(relative_error(scan_in_chunks(c, in, 4).out.y, expected) < kDoubleTolerance);
    // A step of 4e-18 is not rounded away: without D and history it is all that y holds.
    c.initial = false;
    c.time = 1;
    c.shape = {.heads = 1, .head_dim = 2, .state = 3, .groups = 1, .conv_kernel = 4};
    auto tiny = random_input(c, 5);
    tiny.dt_bias = {-40};
    tiny.d = {0};
    auto exact = scan_in_chunks(c, tiny, 4).out.y;
    for (int64_t r = 0; r < c.batch; ++r) {
        const double* x = tiny.xbc.data() + r * c.shape.conv_channels();
        const double step = std::exp(tiny.zxbcdt[(r + 1) * c.shape.projection() - 1] - 40);
        const double product = x[2] * x[5] + x[3] * x[6] + x[4] * x[7];
        CHECK(exact[2 * r] == Approx(step * x[0] * product).epsilon(1e-12).margin(0));
    }
}

TEST_CASE("Strong decay neither overflows nor loses the digits of later, weak decay") {
    ScanCase c;
    c.batch = 1;
    c.time = 100;
    auto in = random_input(c, 6);
    in.a_log.assign(4, std::log(7000.0));
    in.dt_bias.assign(4, 0.0);
    // A few steps of size ten carry the running sum to -1e5, the others decay by e^-0.07.
    for (int64_t t = 0; t < c.time; ++t) {
        for (int64_t h = 0; h < 4; ++h)
            in.zxbcdt[(t + 1) * c.shape.projection() - 4 + h] = t % 25 == 3 ? 10 : std::log(1e-5);
    }
    const auto in32 = in.to<float>();
    const auto expected = scan_sequentially(c, in32.to<double>()).y;
    // a_log's and the steps' float rounding enter the decays as a few eps; without the running sum's low
    // part its rounding alone, 2^-8 at 1e5, would give 1e-3.
    CHECK(relative_error(scan_in_chunks(c, in32, 128).out.y, expected) < 3e-6);
    // In double the running sum is rounded at 2^-53 * 1e5 = 1e-11.
    CHECK(relative_error(scan_in_chunks(c, in, 128).out.y, scan_sequentially(c, in).y) < 1e-10);
    const ScanOutput<float> d_out{std::vector<float>(expected.size(), 1.0f),
                                  std::vector<float>(c.states(), 1)};
    const auto d = scan_gradients(c, in32, d_out, 128);
    const auto d64 = scan_gradients(c, in32.to<double>(),
                                    {convert<double>(d_out.y), convert<double>(d_out.final_state)}, 128);
    CHECK(relative_error(d.xbc, d64.xbc) < 1e-5);
    CHECK(relative_error(d.a_log, d64.a_log) < 1e-5);
}

TEST_CASE("The scan and its gradients in float agree with double to rounding") {
    ScanCase c;
    c.shape = {.heads = 6, .head_dim = 16, .state = 24, .groups = 2, .conv_kernel = 4};
    c.time = 150;
    const auto in = random_input(c, 7).to<float>();
    const auto wide = in.to<double>();
    constexpr double kEps = 6e-8;
    const auto run = scan_in_chunks(c, in, 64);
    const auto exact = scan_in_chunks(c, wide, 64);
    // Sums of up to 64 + 24 terms; errors grow like their root, and the decays bring a few eps more.
    CHECK(relative_error(run.out.y, exact.out.y) < 30 * kEps);
    CHECK(relative_error(run.out.final_state, exact.out.final_state) < 30 * kEps);
    Random random(8);
    const ScanOutput<double> d_out{random.normals(static_cast<int64_t>(run.out.y.size())),
                                   random.normals(c.states())};
    const ScanOutput<float> d_out32{convert<float>(d_out.y), convert<float>(d_out.final_state)};
    const auto d = scan_gradients(c, in, d_out32, 64);
    const auto d64 =
        scan_gradients(c, wide, {convert<double>(d_out32.y), convert<double>(d_out32.final_state)}, 64);
    CHECK(relative_error(d.xbc, d64.xbc) < 60 * kEps);
    CHECK(relative_error(d.zxbcdt, d64.zxbcdt) < 60 * kEps);
    CHECK(relative_error(d.dt_bias, d64.dt_bias) < 60 * kEps);
    CHECK(relative_error(d.a_log, d64.a_log) < 60 * kEps);
    CHECK(relative_error(d.d, d64.d) < 60 * kEps);
    CHECK(relative_error(d.initial_state, d64.initial_state) < 60 * kEps);
}

namespace {

// Float results and gradients with 1, 2 and 3 threads and of every sequence alone must be the same bits.
void check_bits(const ScanCase& c, int64_t chunk) {
    const auto in = random_input(c, 9).to<float>();
    Random random(10);
    const ScanOutput<float> d_out{convert<float>(random.normals(c.batch * c.time * c.shape.inner())),
                                  convert<float>(random.normals(c.states()))};
    const auto run = scan_in_chunks(c, in, chunk);
    const auto d = scan_gradients(c, in, d_out, chunk);
    for (const int threads : {2, 3}) {
        const auto again = scan_in_chunks(c, in, chunk, threads);
        CHECK(again.out.y == run.out.y);
        CHECK(again.out.final_state == run.out.final_state);
        const auto d_again = scan_gradients(c, in, d_out, chunk, threads);
        CHECK(d_again.xbc == d.xbc);
        CHECK(d_again.zxbcdt == d.zxbcdt);
        CHECK(d_again.a_log == d.a_log);
        CHECK(d_again.dt_bias == d.dt_bias);
        CHECK(d_again.d == d.d);
        CHECK(d_again.initial_state == d.initial_state);
    }
    for (int64_t b = 0; b < c.batch; ++b) {
        ScanCase alone = c;
        alone.batch = 1;
        if (!c.document.empty()) alone.document = sequence(c.document, b, c.batch);
        auto part = in;
        part.xbc = sequence(in.xbc, b, c.batch);
        part.zxbcdt = sequence(in.zxbcdt, b, c.batch);
        part.initial_state = sequence(in.initial_state, b, c.batch);
        const auto run_part = scan_in_chunks(alone, part, chunk);
        CHECK(run_part.out.y == sequence(run.out.y, b, c.batch));
        CHECK(run_part.out.final_state == sequence(run.out.final_state, b, c.batch));
        const ScanOutput<float> d_out_part{sequence(d_out.y, b, c.batch),
                                           sequence(d_out.final_state, b, c.batch)};
        const auto d_part = scan_gradients(alone, part, d_out_part, chunk);
        CHECK(d_part.xbc == sequence(d.xbc, b, c.batch));
        CHECK(d_part.zxbcdt == sequence(d.zxbcdt, b, c.batch));
        CHECK(d_part.initial_state == sequence(d.initial_state, b, c.batch));
    }
}

}  // namespace

TEST_CASE("The scan's bits depend on the sequence alone, not on threads or batch") {
    ScanCase c;
    c.batch = 3;
    check_bits(c, 4);  // tiny products
    c.shape = {
        .heads = 6, .head_dim = 7, .state = 9, .groups = 3, .conv_kernel = 4};  // rows at every alignment
    c.time = 101;
    check_bits(c, 40);
    for (int64_t i = 0; i < c.batch * c.time; ++i)
        c.document.push_back(static_cast<int32_t>(i % c.time / (10 + i / c.time)));
    check_bits(c, 40);
}
