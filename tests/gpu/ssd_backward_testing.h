// What the cases of the backward scan share: a scan on the device with its reference, the CPU's in double.
#pragma once

#include <functional>

#include "tests/gpu/gpu.h"
#include "tests/kernels/mamba_testing.h"

namespace minipuzzle::testing {

// Gradients taken apart: those of different size would hide each other in one norm.
struct Gradients {
    std::vector<float> x, b, c, dt, dt_bias, a_log, d, initial;
    bool operator==(const Gradients&) const = default;
};

template <class T>
void take_apart(Gradients& to, const MambaShape& s, const std::vector<T>& xbc, const std::vector<T>& zxbcdt) {
    const int64_t b = s.inner(), c = b + s.groups * s.state;
    const int64_t rows = static_cast<int64_t>(xbc.size()) / s.conv_channels();
    const auto add = [](std::vector<float>& part, const T* from, int64_t count) {
        part.insert(part.end(), from, from + count);
    };
    for (int64_t row = 0; row < rows; ++row) {
        const T* of_row = xbc.data() + row * s.conv_channels();
        add(to.x, of_row, b);
        add(to.b, of_row + b, c - b);
        add(to.c, of_row + c, c - b);
        add(to.dt, zxbcdt.data() + (row + 1) * s.projection() - s.heads, s.heads);
    }
}

// What parameter gradients hold before, as they accumulate.
inline constexpr float kBefore = 0.25f;

// A case on the device, its values rounded to what the device holds.
class BackwardScan {
  public:
    BackwardScan(Backend& gpu, const ScanCase& scan_case, const ScanInput<double>& in, int64_t chunk,
                 bool final_state)
        : c(scan_case),
          chunk_(chunk),
          final_given_(final_state),
          in_(rounded(in)),
          d_out_(random_gradients(c, final_state)),
          xbc_(gpu, DType::bf16, {c.batch, c.time, c.shape.conv_channels()}, in_.xbc),
          zxbcdt_(gpu, DType::bf16, {c.batch, c.time, c.shape.projection()}, in_.zxbcdt),
          dt_bias_(gpu, DType::f32, {c.shape.heads}, in_.dt_bias),
          a_log_(gpu, DType::f32, {c.shape.heads}, in_.a_log),
          d_(gpu, DType::f32, {c.shape.heads}, in_.d),
          document_(gpu, DType::i32, {c.batch, c.time}),
          chunk_states_(gpu, DType::f32,
                        {c.batch, div_up(c.time, chunk) * c.shape.heads, c.shape.head_dim, c.shape.state},
                        scan_in_chunks(c, in_, chunk, 0).chunk_states),
          d_y_(gpu, DType::bf16, {c.batch, c.time, c.shape.inner()}, d_out_.y),
          d_final_(gpu, DType::f32, {c.batch, c.shape.heads, c.shape.head_dim, c.shape.state}),
          d_xbc_(gpu, DType::bf16, {c.batch, c.time, c.shape.conv_channels()}),
          d_zxbcdt_(gpu, DType::bf16, {c.batch, c.time, c.shape.projection()}),
          d_dt_bias_(gpu, DType::f32, {c.shape.heads}),
          d_a_log_(gpu, DType::f32, {c.shape.heads}),
          d_d_(gpu, DType::f32, {c.shape.heads}),
          d_initial_(gpu, DType::f32, {c.batch, c.shape.heads, c.shape.head_dim, c.shape.state}) {
        if (!c.document.empty()) document_.upload(c.document);
        if (final_state) d_final_.upload(d_out_.final_state);
    }

    // Of sequences [begin, begin + count).
    Gradients run(int64_t begin, int64_t count, const std::function<void(const SsdBackward&)>& operation) {
        for (DeviceTensor* tensor : {&d_xbc_, &d_zxbcdt_, &d_initial_}) tensor->poison();
        for (DeviceTensor* tensor : {&d_dt_bias_, &d_a_log_, &d_d_})
            tensor->upload(std::vector<float>(c.shape.heads, kBefore));
        const SsdBackward args = arguments(begin, count);
        validate(args);
        operation(args);
        return results(begin, count);
    }

    Gradients reference() const {
        const auto d = scan_gradients(c, in_, d_out_, chunk_, 0, static_cast<double>(kBefore));
        Gradients all;
        take_apart(all, c.shape, d.xbc, d.zxbcdt);
        all.dt_bias = convert<float>(d.dt_bias);
        all.a_log = convert<float>(d.a_log);
        all.d = convert<float>(d.d);
        if (c.initial) all.initial = convert<float>(d.initial_state);
        return all;
    }

    const ScanCase c;

  private:
    static ScanInput<double> rounded(ScanInput<double> in) {
        in.xbc = rounded_to_bf16(in.xbc);
        in.zxbcdt = rounded_to_bf16(in.zxbcdt);
        return in.to<float>().to<double>();
    }
    static ScanOutput<double> random_gradients(const ScanCase& c, bool final_state) {
        Random random(29);
        ScanOutput<double> d_out;
        d_out.y = rounded_to_bf16(random.normals(c.batch * c.time * c.shape.inner()));
        if (final_state) d_out.final_state = convert<double>(convert<float>(random.normals(c.states())));
        return d_out;
    }

    SsdBackward arguments(int64_t begin, int64_t count) const {
        const auto rows = [&](const DeviceTensor& tensor) { return tensor.view().slice(begin, count); };
        SsdBackward args{.shape = c.shape, .chunk = chunk_, .dt_min = c.dt_min, .dt_max = c.dt_max};
        args.xbc = rows(xbc_);
        args.zxbcdt = rows(zxbcdt_);
        args.dt_bias = dt_bias_;
        args.a_log = a_log_;
        args.d = d_;
        if (!c.document.empty()) args.document = rows(document_);
        args.chunk_states = rows(chunk_states_);
        args.d_y = rows(d_y_);
        if (final_given_) args.d_final_state = rows(d_final_);
        args.d_xbc = rows(d_xbc_);
        args.d_zxbcdt = rows(d_zxbcdt_);
        args.d_dt_bias = d_dt_bias_;
        args.d_a_log = d_a_log_;
        args.d_d = d_d_;
        if (c.initial) args.d_initial_state = rows(d_initial_);
        return args;
    }

    Gradients results(int64_t begin, int64_t count) const {
        const auto rows = [&](const DeviceTensor& tensor) {
            const int64_t each = tensor.view().elements() / c.batch;
            return tensor.download(begin * each, count * each);
        };
        const auto d_zxbcdt = rows(d_zxbcdt_);
        const int64_t projection = c.shape.projection();
        bool untouched = true;
        for (size_t i = 0; i < d_zxbcdt.size(); ++i)
            if (static_cast<int64_t>(i) % projection < projection - c.shape.heads)
                untouched = untouched && std::isnan(d_zxbcdt[i]);
        CHECK(untouched);
        Gradients out;
        take_apart(out, c.shape, rows(d_xbc_), d_zxbcdt);
        out.dt_bias = d_dt_bias_.download();
        out.a_log = d_a_log_.download();
        out.d = d_d_.download();
        if (c.initial) out.initial = rows(d_initial_);
        return out;
    }

    int64_t chunk_;
    bool final_given_;
    ScanInput<double> in_;
    ScanOutput<double> d_out_;
    DeviceTensor xbc_, zxbcdt_, dt_bias_, a_log_, d_, document_, chunk_states_, d_y_, d_final_, d_xbc_,
        d_zxbcdt_, d_dt_bias_, d_a_log_, d_d_, d_initial_;
};

// Of the sums' operands the two states, M, W and the scores are rounded to bf16, and activations' gradients
// once more as results: 2^-9 / sqrt(3) = 1.1e-3 each in the mean, of which up to three meet in one result.
// dt's is a sum of two terms, direct and by way of the decays, that may cancel to a part of their size.
inline constexpr double kTolerance = 6e-3, kDtTolerance = 1.2e-2;
// Parameters' gradients are sums over tokens that may cancel: their errors are held against the tokens'
// terms, which are of the size of dt's gradients, and to dt's tolerance.
inline constexpr double kParameterTolerance = kDtTolerance;
// S's gradient: one operand is rounded per step.
inline constexpr double kStateTolerance = 4e-3;

inline std::vector<int32_t> random_documents(int64_t batch, int64_t time, double new_document) {
    Random random(17);
    std::vector<int32_t> ids(batch * time);
    for (int64_t b = 0; b < batch; ++b) {
        int32_t id = 4;
        for (int64_t t = 0; t < time; ++t) {
            // An id may come again after another.
            if (t > 0 && random.uniform() < new_document) id = (id + 1) % 3;
            ids[b * time + t] = id;
        }
    }
    return ids;
}

template <class Expected>
double parameter_error(const std::vector<float>& out, const std::vector<Expected>& expected,
                       const std::vector<float>& d_dt) {
    double difference = 0, size = 0;
    for (size_t h = 0; h < out.size(); ++h) {
        difference += std::pow(static_cast<double>(out[h]) - static_cast<double>(expected[h]), 2);
        size += std::pow(static_cast<double>(expected[h]), 2);
    }
    for (const float value : d_dt) size += static_cast<double>(value) * static_cast<double>(value);
    return std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::sqrt(difference / size);
}

struct ScanOptions {
    double new_document = 0;  // the share of tokens that open one
    bool initial = true, final_state = true;
};

inline ScanCase scan_case(int64_t batch, int64_t time, const MambaShape& shape,
                          const ScanOptions& options = {}) {
    ScanCase c{.shape = shape, .batch = batch, .time = time, .initial = options.initial};
    if (options.new_document > 0) c.document = random_documents(batch, time, options.new_document);
    return c;
}

inline MambaShape shape(int64_t heads, int64_t head_dim, int64_t state, int64_t groups) {
    return {.heads = heads, .head_dim = head_dim, .state = state, .groups = groups, .conv_kernel = 4};
}

inline void check_case(Backend& gpu, const ScanCase& c, const ScanInput<double>& in, int64_t chunk,
                       const std::function<void(const SsdBackward&)>& operation, bool final_state = true) {
    const MambaShape& s = c.shape;
    INFO("B " << c.batch << " T " << c.time << " H " << s.heads << " P " << s.head_dim << " N " << s.state
              << " G " << s.groups << " chunk " << chunk << ", documents " << !c.document.empty()
              << ", initial " << c.initial << ", final " << final_state);
    BackwardScan scan(gpu, c, in, chunk, final_state);
    const Gradients out = scan.run(0, c.batch, operation), expected = scan.reference();
    CHECK(norm_error(out.x, expected.x) < kTolerance);
    CHECK(norm_error(out.b, expected.b) < kTolerance);
    CHECK(norm_error(out.c, expected.c) < kTolerance);
    CHECK(norm_error(out.dt, expected.dt) < kDtTolerance);
    CHECK(parameter_error(out.dt_bias, expected.dt_bias, expected.dt) < kParameterTolerance);
    CHECK(parameter_error(out.a_log, expected.a_log, expected.dt) < kParameterTolerance);
    CHECK(parameter_error(out.d, expected.d, expected.dt) < kParameterTolerance);
    CHECK(norm_error(out.initial, expected.initial) < kStateTolerance);

    // Again, and a sequence's bits alone.
    CHECK(scan.run(0, c.batch, operation) == out);
    Gradients alone;
    for (int64_t b = 0; b < c.batch; ++b) {
        const Gradients one = scan.run(b, 1, operation);
        const auto add = [](std::vector<float>& to, const std::vector<float>& from) {
            to.insert(to.end(), from.begin(), from.end());
        };
        add(alone.x, one.x), add(alone.b, one.b), add(alone.c, one.c);
        add(alone.dt, one.dt), add(alone.initial, one.initial);
    }
    alone.dt_bias = out.dt_bias, alone.a_log = out.a_log, alone.d = out.d;
    CHECK(alone == out);
}

}  // namespace minipuzzle::testing
