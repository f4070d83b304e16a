// What the tests of the mixer's operations share: each operation written as its plain definition, token by
// token, on any scalar. With std::complex these serve as oracles for gradients too: the derivative of f at x
// is Im f(x + i h) / h, without cancellation for h as small as 1e-30.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ops.h"
#include "tests/kernels/testing.h"

namespace minipuzzle::testing {

// Sequence b of a tensor whose first axis is the batch.
template <class T>
std::vector<T> sequence(const std::vector<T>& values, int64_t b, int64_t batch) {
    const int64_t each = div_exact(static_cast<int64_t>(values.size()), batch);
    return std::vector<T>(values.begin() + b * each, values.begin() + (b + 1) * each);
}

inline double real(double value) { return value; }
inline double real(std::complex<double> value) { return value.real(); }

template <class S>
S weighted_sum(const std::vector<double>& weights, const std::vector<S>& values) {
    S sum = 0;
    for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * values[i];
    return sum;
}

// d loss(values) / d values by complex steps, where loss reads `values`.
template <class Loss>
std::vector<double> complex_step(std::vector<std::complex<double>>& values, const Loss& loss) {
    constexpr double kStep = 1e-30;
    std::vector<double> gradient(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        const std::complex<double> kept = values[i];
        values[i] = {kept.real(), kStep};
        gradient[i] = loss().imag() / kStep;
        values[i] = kept;
    }
    return gradient;
}

// ---- the selective scan

struct ScanCase {
    MambaShape shape{.heads = 4, .head_dim = 2, .state = 3, .groups = 2, .conv_kernel = 4};
    int64_t batch = 2, time = 11;
    double dt_min = 0, dt_max = INFINITY;
    std::vector<int32_t> document;  // empty: none
    bool initial = true;

    int64_t states() const { return batch * shape.inner() * shape.state; }
};

template <class S>
struct ScanInput {
    std::vector<S> xbc, zxbcdt, dt_bias, a_log, d, initial_state;

    template <class To>
    ScanInput<To> to() const {
        return {convert<To>(xbc),   convert<To>(zxbcdt), convert<To>(dt_bias),
                convert<To>(a_log), convert<To>(d),      convert<To>(initial_state)};
    }
};

template <class S>
struct ScanOutput {
    std::vector<S> y, final_state;
};

inline ScanInput<double> random_input(const ScanCase& c, uint64_t seed) {
    Random random(seed);
    const int64_t rows = c.batch * c.time;
    ScanInput<double> in;
    in.xbc = random.normals(rows * c.shape.conv_channels());
    in.zxbcdt = random.normals(rows * c.shape.projection());
    in.dt_bias = random.normals(c.shape.heads, -1);
    in.a_log = random.normals(c.shape.heads);
    in.d = random.normals(c.shape.heads);
    if (c.initial) in.initial_state = random.normals(c.states());
    return in;
}

template <class S>
S step_size(const ScanCase& c, S raw) {
    const S softplus = real(raw) > 20 ? raw : std::log(S(1) + std::exp(raw));
    if (real(softplus) < c.dt_min) return S(c.dt_min);
    return real(softplus) > c.dt_max ? S(c.dt_max) : softplus;
}

// S_t = exp(delta_t A) S_{t-1} + delta_t x_t (outer) B_t; y_t = S_t C_t + D x_t.
template <class S>
ScanOutput<S> scan_sequentially(const ScanCase& c, const ScanInput<S>& in) {
    const MambaShape& s = c.shape;
    const int64_t p_n = s.head_dim * s.state;
    ScanOutput<S> out{std::vector<S>(c.batch * c.time * s.inner()), in.initial_state};
    out.final_state.resize(c.states());
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t t = 0; t < c.time; ++t) {
            const int64_t row = b * c.time + t;
            const bool resets = !c.document.empty() && t > 0 && c.document[row] != c.document[row - 1];
            for (int64_t h = 0; h < s.heads; ++h) {
                const S* x = in.xbc.data() + row * s.conv_channels();
                const S* B = x + s.inner() + h / (s.heads / s.groups) * s.state;
                const S* C = B + s.groups * s.state;
                x += h * s.head_dim;
                const S delta =
                    step_size(c, in.zxbcdt[(row + 1) * s.projection() - s.heads + h] + in.dt_bias[h]);
                const S decay = resets ? S(0) : std::exp(-delta * std::exp(in.a_log[h]));
                S* state = out.final_state.data() + (b * s.heads + h) * p_n;
                for (int64_t p = 0; p < s.head_dim; ++p) {
                    S y = in.d[h] * x[p];
                    for (int64_t n = 0; n < s.state; ++n) {
                        S& value = state[p * s.state + n];
                        value = decay * value + delta * x[p] * B[n];
                        y += value * C[n];
                    }
                    out.y[row * s.inner() + h * s.head_dim + p] = y;
                }
            }
        }
    }
    return out;
}

// The operation under test, with the states that its backward needs.
template <class T>
struct ScanRun {
    ScanOutput<T> out;
    std::vector<T> chunk_states;
};

inline Tensor document_of(const ScanCase& c) {
    return c.document.empty() ? Tensor{} : tensor(c.document, {c.batch, c.time});
}

// What forward and backward read, as the operation takes it.
template <class Args, class T>
Args scan_args(const ScanCase& c, const ScanInput<T>& in, int64_t chunk) {
    const MambaShape& s = c.shape;
    Args args;
    args.shape = s;
    args.chunk = chunk;
    args.dt_min = c.dt_min;
    args.dt_max = c.dt_max;
    args.xbc = tensor(in.xbc, {c.batch, c.time, s.conv_channels()});
    args.zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, s.projection()});
    args.dt_bias = tensor(in.dt_bias, {s.heads});
    args.a_log = tensor(in.a_log, {s.heads});
    args.d = tensor(in.d, {s.heads});
    args.document = document_of(c);
    if (c.initial) args.initial_state = tensor(in.initial_state, {c.batch, s.heads, s.head_dim, s.state});
    return args;
}

template <class T>
ScanRun<T> scan_in_chunks(const ScanCase& c, const ScanInput<T>& in, int64_t chunk, int threads = 1) {
    const MambaShape& s = c.shape;
    const int64_t chunks = div_up(c.time, chunk);
    ScanRun<T> run;
    run.out.y.assign(c.batch * c.time * s.inner(), T(NAN));
    run.out.final_state.assign(c.states(), T(NAN));
    run.chunk_states.assign(chunks * c.states(), T(NAN));
    auto args = scan_args<SsdForward>(c, in, chunk);
    args.y = tensor(run.out.y, {c.batch, c.time, s.inner()});
    args.final_state = tensor(run.out.final_state, {c.batch, s.heads, s.head_dim, s.state});
    args.chunk_states = tensor(run.chunk_states, {c.batch, chunks * s.heads, s.head_dim, s.state});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    return run;
}

// Gradients of sum(d_out.y * y) + sum(d_out.final_state * final_state), in the layout of the inputs.
// Parameter gradients start from `before` (they accumulate), the others from `untouched`.
template <class T>
ScanInput<T> scan_gradients(const ScanCase& c, const ScanInput<T>& in, const ScanOutput<T>& d_out,
                            int64_t chunk, int threads = 1, T before = 0, T untouched = 0) {
    const MambaShape& s = c.shape;
    const int64_t chunks = div_up(c.time, chunk);
    const auto run = scan_in_chunks(c, in, chunk, threads);
    const std::vector<T> parameter(s.heads, before);
    ScanInput<T> d{std::vector<T>(in.xbc.size(), T(NAN)),
                   std::vector<T>(in.zxbcdt.size(), untouched),
                   parameter,
                   parameter,
                   parameter,
                   std::vector<T>(c.states(), T(NAN))};
    auto args = scan_args<SsdBackward>(c, in, chunk);
    args.chunk_states = tensor(run.chunk_states, {c.batch, chunks * s.heads, s.head_dim, s.state});
    args.d_y = tensor(d_out.y, {c.batch, c.time, s.inner()});
    if (!d_out.final_state.empty())
        args.d_final_state = tensor(d_out.final_state, {c.batch, s.heads, s.head_dim, s.state});
    args.d_xbc = tensor(d.xbc, {c.batch, c.time, s.conv_channels()});
    args.d_zxbcdt = tensor(d.zxbcdt, {c.batch, c.time, s.projection()});
    args.d_dt_bias = tensor(d.dt_bias, {s.heads});
    args.d_a_log = tensor(d.a_log, {s.heads});
    args.d_d = tensor(d.d, {s.heads});
    args.d_initial_state = tensor(d.initial_state, {c.batch, s.heads, s.head_dim, s.state});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    return d;
}

}  // namespace minipuzzle::testing
