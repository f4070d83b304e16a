// The plain backward scan against the CPU in double, on inputs rounded to bf16.
#include "kernels/cuda/ssd_plain.h"
#include "tests/gpu/ssd_backward_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// The plain kernels on the default stream.
void run_plain(Backend& gpu, const SsdBackward& args) {
    const DeviceTensor memory(gpu, DType::f32, {cuda::ssd_backward_plain_scratch_bytes(args) / 4});
    const Tensor& scratch = memory;
    int shared_memory = 0;
    MP_CUDA(cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    MP_CUDA(cudaDeviceSynchronize());
    cuda::ssd_backward_plain(cuda::Context{.shared_memory_per_block = shared_memory,
                                           .scratch = scratch.data,
                                           .scratch_capacity = scratch.bytes()},
                             args);
    MP_CUDA(cudaDeviceSynchronize());
}

void check_plain(Backend& gpu, const ScanCase& c, const ScanInput<double>& in, int64_t chunk,
                 bool final_state = true) {
    check_case(
        gpu, c, in, chunk, [&](const SsdBackward& args) { run_plain(gpu, args); }, final_state);
}

void check_plain(Backend& gpu, int64_t batch, int64_t time, const MambaShape& shape, int64_t chunk = 128,
                 const ScanOptions& options = {}) {
    const ScanCase c = scan_case(batch, time, shape, options);
    check_plain(gpu, c, random_input(c, 3), chunk, options.final_state);
}

}  // namespace

TEST_CASE("plain backward scan: small shapes", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const double new_document : {0.0, 0.05}) {
        check_plain(*gpu, 2, 130, shape(2, 32, 64, 1), 128, {.new_document = new_document});
        check_plain(*gpu, 1, 70, shape(2, 64, 128, 2), 128, {.new_document = new_document});
        check_plain(*gpu, 1, 70, shape(3, 17, 9, 1), 48, {.new_document = new_document});
        check_plain(*gpu, 1, 70, shape(1, 80, 136, 1), 64, {.new_document = new_document});
    }
}

TEST_CASE("plain backward scan: lengths around the steps' edges, with and without documents and states",
          "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 63, 64, 65, 127, 128, 129, 200, 517})
        for (const double new_document : {0.0, 0.03}) {
            check_plain(*gpu, 2, time, shape(4, 32, 32, 2), 128, {.new_document = new_document});
            check_plain(*gpu, 2, time, shape(3, 64, 128, 1), 64,
                        {.new_document = new_document, .initial = time % 2 == 0});
            check_plain(
                *gpu, 2, time, shape(2, 16, 64, 2), 256,
                {.new_document = new_document, .initial = time % 2 == 1, .final_state = time % 4 == 1});
        }
}

TEST_CASE("plain backward scan: any head_dim and state", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {1, 5, 8, 24, 40, 64, 80, 136, 200})
        for (const int64_t state : {1, 7, 8, 24, 40, 65, 128, 200, 256, 300})
            check_plain(*gpu, 1, 150, shape(2, head_dim, state, head_dim % 2 ? 1 : 2), 128,
                        {.new_document = state % 2 ? 0.04 : 0.0});
}

TEST_CASE("plain backward scan: any number of groups", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t groups : {1, 2, 3, 4, 6, 12})
        check_plain(*gpu, 3, 140, shape(12, 32, 64, groups), 64, {.new_document = 0.01});
}

TEST_CASE("plain backward scan: any chunk of the states that are given", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t chunk : {1, 5, 48, 64, 100, 192, 1000})
        check_plain(*gpu, 2, 200, shape(2, 32, 64, 1), chunk, {.new_document = 0.02});
}

TEST_CASE("plain backward scan: steps at their limits, decays that vanish", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    ScanCase limited = scan_case(1, 300, shape(2, 64, 128, 1));
    limited.dt_min = 0.05;
    limited.dt_max = 0.3;
    check_plain(*gpu, limited, random_input(limited, 3), 128);
    for (const double new_document : {0.0, 0.02}) {
        const ScanCase c = scan_case(1, 300, shape(2, 64, 128, 1), {.new_document = new_document});
        ScanInput<double> in = random_input(c, 5);
        for (double& a_log : in.a_log) a_log = 4 + 0.5 * a_log;
        for (double& v : in.zxbcdt) v *= 8;
        check_plain(*gpu, c, in, 128);
        for (double& a_log : in.a_log) a_log -= 12;  // nearly no decay
        check_plain(*gpu, c, in, 128);
    }
}

// The forward operation's own chunk states, whichever path it takes, and the backward operation behind the
// backend.
TEST_CASE("scan backward: from the states that the forward keeps", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const auto& [head_dim, state] : {std::pair{64, 128}, std::pair{32, 64}, std::pair{32, 32}})
        for (const double new_document : {0.0, 0.01})
            for (const int64_t chunk : {64, 128}) {
                const ScanCase c =
                    scan_case(2, 450, shape(4, head_dim, state, 2), {.new_document = new_document});
                INFO("P " << head_dim << " N " << state << " chunk " << chunk << ", documents "
                          << new_document);
                ScanInput<double> in = random_input(c, 11);
                in.xbc = rounded_to_bf16(in.xbc);
                in.zxbcdt = rounded_to_bf16(in.zxbcdt);
                in = in.to<float>().to<double>();
                const MambaShape& s = c.shape;
                const int64_t chunks = div_up(c.time, chunk);
                const DeviceTensor xbc(*gpu, DType::bf16, {c.batch, c.time, s.conv_channels()}, in.xbc);
                const DeviceTensor zxbcdt(*gpu, DType::bf16, {c.batch, c.time, s.projection()}, in.zxbcdt);
                const DeviceTensor dt_bias(*gpu, DType::f32, {s.heads}, in.dt_bias);
                const DeviceTensor a_log(*gpu, DType::f32, {s.heads}, in.a_log);
                const DeviceTensor d(*gpu, DType::f32, {s.heads}, in.d);
                const DeviceTensor initial(*gpu, DType::f32, {c.batch, s.heads, s.head_dim, s.state},
                                           in.initial_state);
                const DeviceTensor y(*gpu, DType::bf16, {c.batch, c.time, s.inner()});
                const DeviceTensor states(*gpu, DType::f32, {c.batch, chunks * s.heads, s.head_dim, s.state});
                DeviceTensor document(*gpu, DType::i32, {c.batch, c.time});
                if (!c.document.empty()) document.upload(c.document);
                SsdForward forward{.shape = s, .chunk = chunk, .dt_min = c.dt_min, .dt_max = c.dt_max};
                forward.xbc = xbc, forward.zxbcdt = zxbcdt, forward.dt_bias = dt_bias;
                forward.a_log = a_log, forward.d = d, forward.initial_state = initial;
                if (!c.document.empty()) forward.document = document;
                forward.y = y, forward.chunk_states = states;
                gpu->run(forward);

                ScanOutput<double> d_out;
                d_out.y = rounded_to_bf16(Random(7).normals(c.batch * c.time * s.inner()));
                const DeviceTensor d_y(*gpu, DType::bf16, {c.batch, c.time, s.inner()}, d_out.y);
                const DeviceTensor d_xbc(*gpu, DType::bf16, {c.batch, c.time, s.conv_channels()});
                const DeviceTensor d_zxbcdt(*gpu, DType::bf16, {c.batch, c.time, s.projection()});
                const std::vector<float> before(s.heads, kBefore);
                const DeviceTensor d_dt_bias(*gpu, DType::f32, {s.heads}, before);
                const DeviceTensor d_a_log(*gpu, DType::f32, {s.heads}, before);
                const DeviceTensor d_d(*gpu, DType::f32, {s.heads}, before);
                SsdBackward backward{.shape = s, .chunk = chunk, .dt_min = c.dt_min, .dt_max = c.dt_max};
                backward.xbc = xbc, backward.zxbcdt = zxbcdt, backward.dt_bias = dt_bias;
                backward.a_log = a_log, backward.d = d, backward.initial_state = initial;
                backward.document = forward.document, backward.chunk_states = states;
                backward.d_y = d_y, backward.d_xbc = d_xbc, backward.d_zxbcdt = d_zxbcdt;
                backward.d_dt_bias = d_dt_bias, backward.d_a_log = d_a_log, backward.d_d = d_d;
                gpu->run(backward);

                const auto expected = scan_gradients(c, in, d_out, chunk, 0, static_cast<double>(kBefore));
                Gradients out, right;
                take_apart(out, s, d_xbc.download(), d_zxbcdt.download());
                take_apart(right, s, expected.xbc, expected.zxbcdt);
                CHECK(norm_error(out.x, right.x) < kTolerance);
                CHECK(norm_error(out.b, right.b) < kTolerance);
                CHECK(norm_error(out.c, right.c) < kTolerance);
                CHECK(norm_error(out.dt, right.dt) < kDtTolerance);
                CHECK(parameter_error(d_dt_bias.download(), expected.dt_bias, right.dt) <
                      kParameterTolerance);
                CHECK(parameter_error(d_a_log.download(), expected.a_log, right.dt) < kParameterTolerance);
                CHECK(parameter_error(d_d.download(), expected.d, right.dt) < kParameterTolerance);
            }
}
