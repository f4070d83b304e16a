// The plain scan against the CPU in double, on inputs rounded to bf16.
#include "kernels/cuda/ssd_plain.h"

#include "tests/gpu/gpu.h"
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// y: M, x' and S are rounded to bf16 as operands, y as a result: 2^-9 / sqrt(3) each in the mean, together
// about 2.3e-3; measured 1.6e-3 to 3.2e-3.
constexpr double kYTolerance = 8e-3;
// States are float32 sums of x' B: one rounding, and its sum over steps.
constexpr double kStateTolerance = 5e-3;

// A case on the device, its values rounded to what the device holds.
class PlainScan {
  public:
    PlainScan(Backend& gpu, const ScanCase& scan_case, const ScanInput<double>& in, int64_t chunk)
        : c(scan_case),
          chunk_(chunk),
          chunks_(div_up(c.time, chunk)),
          in_(rounded(in)),
          xbc_(gpu, DType::bf16, {c.batch, c.time, c.shape.conv_channels()}, in_.xbc),
          zxbcdt_(gpu, DType::bf16, {c.batch, c.time, c.shape.projection()}, in_.zxbcdt),
          dt_bias_(gpu, DType::f32, {c.shape.heads}, in_.dt_bias),
          a_log_(gpu, DType::f32, {c.shape.heads}, in_.a_log),
          d_(gpu, DType::f32, {c.shape.heads}, in_.d),
          document_(gpu, DType::i32, {c.batch, c.time}),
          initial_(gpu, DType::f32, {c.batch, c.shape.heads, c.shape.head_dim, c.shape.state}),
          y_(gpu, DType::bf16, {c.batch, c.time, c.shape.inner()}),
          final_(gpu, DType::f32, {c.batch, c.shape.heads, c.shape.head_dim, c.shape.state}),
          chunk_states_(gpu, DType::f32, {c.batch, chunks_ * c.shape.heads, c.shape.head_dim, c.shape.state}),
          sums_(gpu, DType::f32, {c.batch, c.time, c.shape.inner()}) {
        if (!c.document.empty()) document_.upload(c.document);
        if (c.initial) initial_.upload(in_.initial_state);
        MP_CUDA(cudaDeviceGetAttribute(&shared_memory_, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    }

    void run(int64_t begin, int64_t count, bool states = true) {
        const auto rows = [&](const DeviceTensor& tensor) { return tensor.view().slice(begin, count); };
        SsdForward args{.shape = c.shape, .chunk = chunk_, .dt_min = c.dt_min, .dt_max = c.dt_max};
        args.xbc = rows(xbc_);
        args.zxbcdt = rows(zxbcdt_);
        args.dt_bias = dt_bias_;
        args.a_log = a_log_;
        args.d = d_;
        if (!c.document.empty()) args.document = rows(document_);
        if (c.initial) args.initial_state = rows(initial_);
        args.y = rows(y_);
        if (states) {
            args.final_state = rows(final_);
            args.chunk_states = rows(chunk_states_);
        }
        validate(args);
        const Tensor& sums = sums_;
        REQUIRE(cuda::ssd_plain_scratch_bytes(args) <= sums.bytes());
        MP_CUDA(cudaDeviceSynchronize());
        cuda::ssd_forward_plain(cuda::Context{.shared_memory_per_block = shared_memory_,
                                              .scratch = sums.data,
                                              .scratch_capacity = sums.bytes()},
                                args);
        MP_CUDA(cudaDeviceSynchronize());
    }
    void poison() {
        for (DeviceTensor* tensor : {&y_, &final_, &chunk_states_, &sums_}) tensor->poison();
    }
    std::vector<float> y() const { return y_.download(); }
    std::vector<float> final_state() const { return final_.download(); }
    std::vector<float> chunk_states() const { return chunk_states_.download(); }
    ScanRun<double> reference() const { return scan_in_chunks(c, in_, chunk_, 0); }

    const ScanCase c;

  private:
    static ScanInput<double> rounded(ScanInput<double> in) {
        in.xbc = rounded_to_bf16(in.xbc);
        in.zxbcdt = rounded_to_bf16(in.zxbcdt);
        return in.to<float>().to<double>();
    }

    int64_t chunk_, chunks_;
    ScanInput<double> in_;
    DeviceTensor xbc_, zxbcdt_, dt_bias_, a_log_, d_, document_, initial_, y_, final_, chunk_states_, sums_;
    int shared_memory_ = 0;
};

void check_case(Backend& gpu, const ScanCase& c, const ScanInput<double>& in, int64_t chunk) {
    const MambaShape& s = c.shape;
    INFO("B " << c.batch << " T " << c.time << " H " << s.heads << " P " << s.head_dim << " N " << s.state
              << " G " << s.groups << " chunk " << chunk << ", documents " << !c.document.empty()
              << ", initial " << c.initial);
    PlainScan scan(gpu, c, in, chunk);
    scan.run(0, c.batch);
    const auto y = scan.y(), final_state = scan.final_state(), chunk_states = scan.chunk_states();
    const auto expected = scan.reference();
    CHECK(norm_error(y, expected.out.y) < kYTolerance);
    CHECK(norm_error(final_state, expected.out.final_state) < kStateTolerance);
    CHECK(norm_error(chunk_states, expected.chunk_states) < kStateTolerance);

    // A sequence's bits: alone, and again.
    scan.poison();
    for (int64_t b = 0; b < c.batch; ++b) scan.run(b, 1);
    CHECK(scan.y() == y);
    CHECK(scan.final_state() == final_state);
    CHECK(scan.chunk_states() == chunk_states);
    if (chunk % 64 != 0) return;  // steps then end elsewhere without chunk_states
    scan.poison();
    scan.run(0, c.batch, false);
    CHECK(scan.y() == y);
}

void check_case(Backend& gpu, const ScanCase& c, int64_t chunk = 64) {
    check_case(gpu, c, random_input(c, 3), chunk);
}

std::vector<int32_t> random_documents(int64_t batch, int64_t time, double new_document) {
    Random random(17);
    std::vector<int32_t> ids(batch * time);
    for (int64_t b = 0; b < batch; ++b) {
        int32_t id = 4;
        for (int64_t t = 0; t < time; ++t) {
            if (t > 0 && random.uniform() < new_document)
                id += 1 + static_cast<int32_t>(3 * random.uniform());
            ids[b * time + t] = id;
        }
    }
    return ids;
}

ScanCase scan_case(int64_t batch, int64_t time, const MambaShape& shape, double new_document = 0,
                   bool initial = true) {
    ScanCase c{.shape = shape, .batch = batch, .time = time, .initial = initial};
    if (new_document > 0) c.document = random_documents(batch, time, new_document);
    return c;
}

MambaShape shape(int64_t heads, int64_t head_dim, int64_t state, int64_t groups) {
    return {.heads = heads, .head_dim = head_dim, .state = state, .groups = groups, .conv_kernel = 4};
}

}  // namespace

TEST_CASE("plain scan: small shapes", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const double new_document : {0.0, 0.05}) {
        check_case(*gpu, scan_case(2, 130, shape(2, 32, 64, 1), new_document));
        check_case(*gpu, scan_case(1, 70, shape(2, 64, 128, 2), new_document));
        check_case(*gpu, scan_case(1, 70, shape(3, 17, 9, 1), new_document));
        check_case(*gpu, scan_case(1, 70, shape(1, 16, 300, 1), new_document));
    }
}

TEST_CASE("plain scan: lengths around the steps' edges, with and without documents and states", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t time : {1, 3, 63, 64, 65, 127, 128, 129, 200, 517})
        for (const double new_document : {0.0, 0.03}) {
            check_case(*gpu, scan_case(2, time, shape(4, 32, 32, 2), new_document), 128);
            check_case(*gpu, scan_case(2, time, shape(3, 64, 128, 1), new_document, time % 2 == 0), 64);
            check_case(*gpu, scan_case(2, time, shape(2, 16, 64, 2), new_document, time % 2 == 1), 256);
        }
}

TEST_CASE("plain scan: any head_dim and state", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t head_dim : {1, 5, 8, 40, 64, 80, 100, 128, 200})
        for (const int64_t state : {1, 7, 8, 24, 65, 128, 200, 256, 300, 600})
            check_case(*gpu, scan_case(1, 150, shape(2, head_dim, state, head_dim % 2 ? 1 : 2),
                                       state % 2 ? 0.04 : 0.0));
}

TEST_CASE("plain scan: any chunk of the states that are kept", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const int64_t chunk : {1, 5, 48, 64, 100, 192, 1000})
        check_case(*gpu, scan_case(2, 200, shape(2, 32, 64, 1), 0.02), chunk);
}

TEST_CASE("plain scan: steps at their limits, decays that vanish", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    ScanCase limited = scan_case(1, 300, shape(2, 64, 128, 1));
    limited.dt_min = 0.05;
    limited.dt_max = 0.3;
    check_case(*gpu, limited);
    // Running sums beyond 1e4 beside differences of 1e-2: digits that a single float32 would lose.
    for (const double new_document : {0.0, 0.02}) {
        const ScanCase c = scan_case(1, 300, shape(2, 64, 128, 1), new_document);
        ScanInput<double> in = random_input(c, 5);
        for (double& a_log : in.a_log) a_log = 4 + 0.5 * a_log;
        for (double& v : in.zxbcdt) v *= 8;
        check_case(*gpu, c, in, 128);
        for (double& a_log : in.a_log) a_log -= 12;  // nearly no decay
        check_case(*gpu, c, in, 128);
    }
}
