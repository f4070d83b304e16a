// The backward scan behind the backend, at the shapes that have a path of their own on 9.0a, against the CPU
// in double on inputs rounded to bf16. Tolerances: ssd_backward_testing.h.
#include "tests/gpu/ssd_backward_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

constexpr int64_t kChunk = 128;  // the fast path's

// As in a model: x, B and C after SiLU, step sizes around 0.01 to 1, A between -1 and -16.
ScanInput<double> model_input(const ScanCase& c, double dt_spread = 1) {
    Random random(11);
    ScanInput<double> in = random_input(c, 5);
    for (double& value : in.xbc) value /= 1 + std::exp(-value);
    for (double& value : in.zxbcdt) value *= dt_spread;
    in.dt_bias = random.normals(c.shape.heads, -3, 1);
    for (double& value : in.a_log) value = std::log(1 + 15 * random.uniform());
    return in;
}

void check(Backend& gpu, const ScanCase& c, const ScanInput<double>& in, bool final_state = true) {
    check_case(
        gpu, c, in, kChunk, [&](const SsdBackward& args) { gpu.run(args); }, final_state);
}
void check(Backend& gpu, int64_t batch, int64_t time, const MambaShape& shape,
           const ScanOptions& options = {}) {
    const ScanCase c = scan_case(batch, time, shape, options);
    check(gpu, c, model_input(c), options.final_state);
}

}  // namespace

TEST_CASE("GPU: backward scan, small", "[gpu][memcheck]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const double new_document : {0.0, 0.03}) {
        check(*gpu, 1, 130, shape(4, 64, 128, 2), {.new_document = new_document});
        check(*gpu, 1, 130, shape(2, 80, 64, 1), {.new_document = new_document});
        check(*gpu, 2, 70, shape(6, 32, 64, 2), {.new_document = new_document});
    }
}

TEST_CASE("GPU: the backward scan is the CPU's at every length", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 15, 16, 63, 64, 65, 127, 128, 129, 256, 400})
        check(*gpu, 2, time, shape(4, 64, 128, 2), {.initial = time % 2 == 1, .final_state = time % 4 == 1});
}

TEST_CASE("GPU: the backward scan is the CPU's at every size with a path of its own", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {32, 64, 80})
        for (const int64_t state : {64, 128, 256})
            for (const double new_document : {0.0, 0.01, 0.3})
                check(*gpu, 2, 390, shape(12, head_dim, state, 2), {.new_document = new_document});
}

TEST_CASE("GPU: the backward scan at sizes without one", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    check(*gpu, 2, 200, shape(4, 32, 32, 2), {.new_document = 0.01});
    check(*gpu, 1, 130, shape(6, 5, 7, 3));
    const ScanCase c = scan_case(1, 300, shape(4, 64, 128, 2));
    check_case(*gpu, c, model_input(c), 64, [&](const SsdBackward& args) { gpu->run(args); });
}

TEST_CASE("GPU: the backward scan with clamped steps, strong and weak decays", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    ScanCase clamped = scan_case(2, 300, shape(4, 64, 128, 2));
    clamped.dt_min = 0.02;
    clamped.dt_max = 0.3;
    check(*gpu, clamped, model_input(clamped, 3));
    for (const double new_document : {0.0, 0.02}) {
        const ScanCase c = scan_case(2, 300, shape(4, 64, 128, 2), {.new_document = new_document});
        check(*gpu, c, model_input(c, 6));
        ScanInput<double> weak = model_input(c);
        for (double& a_log : weak.a_log) a_log -= 10;
        check(*gpu, c, weak);
    }
}

TEST_CASE("GPU: the backward scan of many heads and chunks", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    check(*gpu, 1, 1024, shape(16, 64, 128, 2));
    check(*gpu, 1, 640, shape(32, 64, 256, 4), {.new_document = 0.005});
}
