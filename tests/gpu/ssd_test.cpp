// The selective scan on the device against the CPU's, on inputs rounded to bf16 first.
#include "tests/gpu/gpu.h"
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// Of y's terms, the scores' weights, the decayed x and the state are rounded to bf16 (relative error 2^-9 at
// most, 2^-9 / sqrt(3) on average) and y itself once more; the roundings are independent, and sums keep their
// relative size: sqrt(3) * 2^-9 / sqrt(3) = 2.0e-3 of y's norm on average. The states see x's rounding only.
// Twice that is allowed.
constexpr double kTolerance = 4e-3;

struct Scan {
    MambaShape shape;
    int64_t batch = 2, time = 200, chunk = 128;
    bool documents = false, initial = true, states = true;
    double dt_spread = 1;  // larger: decays over the whole range, and state that does not outlive a chunk
};

std::string describe(const Scan& c) {
    return "B " + std::to_string(c.batch) + " T " + std::to_string(c.time) + " H " +
           std::to_string(c.shape.heads) + " P " + std::to_string(c.shape.head_dim) + " G " +
           std::to_string(c.shape.groups) + " N " + std::to_string(c.shape.state) + " chunk " +
           std::to_string(c.chunk) + (c.documents ? " documents" : "");
}

// Boundaries within chunks of 64, at their edges, several in one, and documents longer than several chunks.
std::vector<int32_t> random_documents(const Scan& c, Random& random) {
    std::vector<int32_t> documents(c.batch * c.time);
    for (int64_t b = 0; b < c.batch; ++b) {
        int32_t id = static_cast<int32_t>(b);
        for (int64_t t = 0; t < c.time; ++t) {
            const double share = t % 64 == 0 ? 0.3 : 0.01;
            if (t > 0 && random.uniform() < share) id += 1 + static_cast<int32_t>(3 * random.uniform());
            documents[b * c.time + t] = id;
        }
    }
    return documents;
}

struct Input {
    ScanCase scan;
    ScanInput<double> values;
};

// As in a model: x, B and C after SiLU, step sizes around 0.01 to 1, A between -1 and -16.
Input random_scan(const Scan& c, uint64_t seed) {
    Random random(seed);
    Input in;
    in.scan = {.shape = c.shape, .batch = c.batch, .time = c.time, .initial = c.initial};
    if (c.documents) in.scan.document = random_documents(c, random);
    ScanInput<double>& v = in.values;
    const int64_t rows = c.batch * c.time;
    v.xbc = random.normals(rows * c.shape.conv_channels());
    for (double& value : v.xbc) value /= 1 + std::exp(-value);
    // Only the dt part is read; the rest is poison.
    v.zxbcdt.assign(rows * c.shape.projection(), NAN);
    for (int64_t row = 1; row <= rows; ++row)
        for (int64_t h = 1; h <= c.shape.heads; ++h)
            v.zxbcdt[row * c.shape.projection() - h] = c.dt_spread * random.normal();
    v.dt_bias = random.normals(c.shape.heads, -3, 1);
    for (int64_t h = 0; h < c.shape.heads; ++h) v.a_log.push_back(std::log(1 + 15 * random.uniform()));
    v.d = random.normals(c.shape.heads);
    if (c.initial) v.initial_state = random.normals(in.scan.states());
    v.xbc = rounded_to_bf16(v.xbc);
    v.zxbcdt = rounded_to_bf16(v.zxbcdt);
    for (auto* precise : {&v.dt_bias, &v.a_log, &v.d, &v.initial_state})
        *precise = convert<double>(convert<float>(*precise));
    return in;
}

struct Output {
    std::vector<float> y, final_state, chunk_states;
    bool operator==(const Output&) const = default;
};

// Sequences [first, first + count) of the batch.
Output scan_on_device(Backend& gpu, const Scan& c, const Input& in, int64_t first, int64_t count) {
    const MambaShape& s = c.shape;
    const ScanInput<double>& v = in.values;
    const auto part = [&](const std::vector<double>& values) {
        const int64_t each = div_exact(static_cast<int64_t>(values.size()), c.batch);
        return std::vector<double>(values.begin() + first * each, values.begin() + (first + count) * each);
    };
    const int64_t chunks = div_up(c.time, c.chunk);
    const DeviceTensor xbc(gpu, DType::bf16, {count, c.time, s.conv_channels()}, part(v.xbc));
    const DeviceTensor zxbcdt(gpu, DType::bf16, {count, c.time, s.projection()}, part(v.zxbcdt));
    const DeviceTensor dt_bias(gpu, DType::f32, {s.heads}, v.dt_bias),
        a_log(gpu, DType::f32, {s.heads}, v.a_log);
    const DeviceTensor d(gpu, DType::f32, {s.heads}, v.d);
    const DeviceTensor document(gpu, DType::i32, {count, c.time});
    const DeviceTensor initial(gpu, DType::f32, {count, s.heads, s.head_dim, s.state});
    const DeviceTensor y(gpu, DType::bf16, {count, c.time, s.inner()});
    const DeviceTensor final_state(gpu, DType::f32, {count, s.heads, s.head_dim, s.state});
    const DeviceTensor chunk_states(gpu, DType::f32, {count, chunks * s.heads, s.head_dim, s.state});
    SsdForward args{.shape = s, .chunk = c.chunk, .dt_min = in.scan.dt_min, .dt_max = in.scan.dt_max};
    args.xbc = xbc, args.zxbcdt = zxbcdt, args.dt_bias = dt_bias, args.a_log = a_log, args.d = d, args.y = y;
    if (c.documents) {
        const auto begin = in.scan.document.begin() + first * c.time;
        const_cast<DeviceTensor&>(document).upload(std::vector<int32_t>(begin, begin + count * c.time));
        args.document = document;
    }
    if (c.initial) {
        const_cast<DeviceTensor&>(initial).upload(part(v.initial_state));
        args.initial_state = initial;
    }
    if (c.states) args.final_state = final_state, args.chunk_states = chunk_states;
    gpu.run(args);
    return {y.download(), c.states ? final_state.download() : std::vector<float>{},
            c.states ? chunk_states.download() : std::vector<float>{}};
}

void check_scan(Backend& gpu, const Scan& c, uint64_t seed) {
    INFO(describe(c));
    const Input in = random_scan(c, seed);
    const auto expected = scan_in_chunks(in.scan, in.values.to<float>(), c.chunk, 0);
    const Output out = scan_on_device(gpu, c, in, 0, c.batch);
    CHECK(norm_error(out.y, expected.out.y) < kTolerance);
    if (!c.states) return;
    CHECK(norm_error(out.final_state, expected.out.final_state) < kTolerance);
    CHECK(norm_error(out.chunk_states, expected.chunk_states) < kTolerance);
}

MambaShape shape_of(int64_t heads, int64_t head_dim, int64_t groups, int64_t state) {
    return {.heads = heads, .head_dim = head_dim, .state = state, .groups = groups, .conv_kernel = 4};
}

}  // namespace

TEST_CASE("GPU: the scan is the CPU's at every length", "[gpu][memcheck]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 63, 64, 65, 127, 128, 129, 200})
        check_scan(*gpu, {.shape = shape_of(4, 64, 2, 128), .time = time, .initial = time % 2 == 1},
                   1 + time);
}

TEST_CASE("GPU: the scan is the CPU's at every size with a path of its own, with and without documents",
          "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const bool documents : {false, true}) {
        for (const int64_t head_dim : {32, 64, 80}) {
            for (const int64_t state : {64, 128, 256}) {
                Scan c{.shape = shape_of(8, head_dim, 2, state), .documents = documents};
                c.time = documents ? 1000 : 300;
                c.chunk = documents ? 64 : 192;
                check_scan(*gpu, c, 10 * head_dim + state);
            }
        }
    }
}

TEST_CASE("GPU: the scan is the CPU's at sizes and chunks without one", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    check_scan(*gpu, {.shape = shape_of(8, 32, 2, 32), .time = 300, .documents = true}, 1);
    check_scan(*gpu, {.shape = shape_of(6, 64, 2, 128), .time = 130}, 2);  // an odd number of heads a group
    check_scan(*gpu, {.shape = shape_of(6, 5, 3, 7), .time = 50, .chunk = 16}, 3);
    check_scan(*gpu, {.shape = shape_of(4, 64, 2, 128), .time = 200, .chunk = 100, .documents = true}, 4);
}

TEST_CASE("GPU: a scan in segments is the CPU's, also where decays are strong", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {2048, 2500, 4100}) {
        for (const bool documents : {false, true}) {
            for (const auto& [head_dim, state] :
                 {std::pair{64, 128}, std::pair{80, 128}, std::pair{64, 256}}) {
                Scan c{.shape = shape_of(8, head_dim, 2, state), .time = time, .documents = documents};
                if (time == 2500) c.dt_spread = 6;
                check_scan(*gpu, c, time + state);
            }
        }
    }
}

TEST_CASE("GPU: step sizes are clamped in the scan", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Scan c{.shape = shape_of(4, 64, 2, 128), .dt_spread = 3};
    Input in = random_scan(c, 5);
    in.scan.dt_min = 0.02;
    in.scan.dt_max = 0.3;
    const auto expected = scan_in_chunks(in.scan, in.values.to<float>(), c.chunk, 0);
    CHECK(norm_error(scan_on_device(*gpu, c, in, 0, c.batch).y, expected.out.y) < kTolerance);
}

TEST_CASE("GPU: a sequence's scan has the same bits alone, in any company and again", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t state : {128, 256}) {
        const Scan c{.shape = shape_of(16, 64, 2, state),
                     .batch = 3,
                     .time = 2500,
                     .documents = true,
                     .states = state == 128};
        INFO(describe(c));
        const Input in = random_scan(c, 6);
        const Output all = scan_on_device(*gpu, c, in, 0, 3);
        for (int again = 0; again < 3; ++again) CHECK(scan_on_device(*gpu, c, in, 0, 3) == all);
        for (int64_t b = 0; b < 3; ++b) CHECK(scan_on_device(*gpu, c, in, b, 1).y == sequence(all.y, b, 3));
    }
}

// Some heads of a long scan, against the CPU's of these heads alone.
TEST_CASE("GPU: the scan of 8192 tokens", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const auto& [heads, state] : {std::pair{32, 128}, std::pair{32, 256}, std::pair{128, 128}}) {
        const Scan c{.shape = shape_of(heads, 64, heads / 16, state),
                     .batch = 1,
                     .time = 8192,
                     .initial = false,
                     .states = false};
        INFO(describe(c));
        const Input in = random_scan(c, 7);
        const Output out = scan_on_device(*gpu, c, in, 0, 1);
        for (const int64_t head : {0, 1, heads / 2, heads - 1}) {
            // A scan of one head: its columns of x and dt, its group's B and C.
            const MambaShape &s = c.shape, one = shape_of(1, 64, 1, state);
            const int64_t group = head / (s.heads / s.groups);
            ScanCase alone{.shape = one, .batch = 1, .time = c.time, .initial = false};
            ScanInput<double> v;
            v.dt_bias = {in.values.dt_bias[head]}, v.a_log = {in.values.a_log[head]},
            v.d = {in.values.d[head]};
            v.zxbcdt.assign(c.time * one.projection(), 0);
            std::vector<float> y;
            for (int64_t t = 0; t < c.time; ++t) {
                const double* row = in.values.xbc.data() + t * s.conv_channels();
                const double *x = row + head * 64, *b = row + s.inner() + group * state,
                             *cc = b + s.groups * state;
                v.xbc.insert(v.xbc.end(), x, x + 64);
                v.xbc.insert(v.xbc.end(), b, b + state);
                v.xbc.insert(v.xbc.end(), cc, cc + state);
                v.zxbcdt[(t + 1) * one.projection() - 1] =
                    in.values.zxbcdt[(t + 1) * s.projection() - s.heads + head];
                const auto begin = out.y.begin() + t * s.inner() + head * 64;
                y.insert(y.end(), begin, begin + 64);
            }
            CHECK(norm_error(y, scan_in_chunks(alone, v.to<float>(), 128, 0).out.y) < kTolerance);
        }
    }
}
