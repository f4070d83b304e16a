// The causal convolution with SiLU against its definition.
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct ConvCase {
    MambaShape shape{.heads = 2, .head_dim = 3, .state = 2, .groups = 1, .conv_kernel = 4};
    int64_t batch = 2, time = 9;
    std::vector<int32_t> document;
    bool initial = true, bias = true;

    int64_t channels() const { return shape.conv_channels(); }
    int64_t kept() const { return shape.conv_kernel - 1; }
};

template <class S>
struct ConvInput {
    std::vector<S> zxbcdt, weight, bias, initial_state;

    template <class To>
    ConvInput<To> to() const {
        return {convert<To>(zxbcdt), convert<To>(weight), convert<To>(bias), convert<To>(initial_state)};
    }
};

template <class S>
struct ConvOutput {
    std::vector<S> xbc, final_state;
};

ConvInput<double> random_input(const ConvCase& c, uint64_t seed) {
    Random random(seed);
    ConvInput<double> in;
    in.zxbcdt = random.normals(c.batch * c.time * c.shape.projection());
    in.weight = random.normals(c.channels() * c.shape.conv_kernel);
    in.bias = random.normals(c.channels());
    in.initial_state = random.normals(c.batch * c.channels() * c.kept());
    return in;
}

// The pre-conv value at token `from` (negative: before the row) as token t sees it.
template <class S>
S seen(const ConvCase& c, const ConvInput<S>& in, int64_t b, int64_t channel, int64_t from, int64_t t) {
    const auto document = [&](int64_t token) {
        return c.document.empty() ? 0 : c.document[b * c.time + std::max<int64_t>(token, 0)];
    };
    if (document(from) != document(t)) return 0;
    if (from < 0) {
        return c.initial ? in.initial_state[(b * c.channels() + channel) * c.kept() + c.kept() + from] : S(0);
    }
    return in.zxbcdt[(b * c.time + from) * c.shape.projection() + c.shape.inner() + channel];
}

template <class S>
ConvOutput<S> convolve(const ConvCase& c, const ConvInput<S>& in) {
    const int64_t taps = c.shape.conv_kernel;
    ConvOutput<S> out;
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t t = 0; t < c.time; ++t) {
            for (int64_t channel = 0; channel < c.channels(); ++channel) {
                S v = c.bias ? in.bias[channel] : S(0);
                for (int64_t k = 0; k < taps; ++k)
                    v += in.weight[channel * taps + k] * seen(c, in, b, channel, t - c.kept() + k, t);
                out.xbc.push_back(v / (S(1) + std::exp(-v)));
            }
        }
        for (int64_t channel = 0; channel < c.channels(); ++channel) {
            for (int64_t k = 0; k < c.kept(); ++k)
                out.final_state.push_back(seen(c, in, b, channel, c.time - c.kept() + k, c.time - 1));
        }
    }
    return out;
}

template <class Args, class T>
Args conv_args(const ConvCase& c, const ConvInput<T>& in) {
    Args args;
    args.shape = c.shape;
    args.zxbcdt = tensor(in.zxbcdt, {c.batch, c.time, c.shape.projection()});
    args.weight = tensor(in.weight, {c.channels(), c.shape.conv_kernel});
    if (c.bias) args.bias = tensor(in.bias, {c.channels()});
    if (!c.document.empty()) args.document = tensor(c.document, {c.batch, c.time});
    if (c.initial) args.initial_state = tensor(in.initial_state, {c.batch, c.channels(), c.kept()});
    return args;
}

template <class T>
ConvOutput<T> run_forward(const ConvCase& c, const ConvInput<T>& in, int threads = 1) {
    ConvOutput<T> out{std::vector<T>(c.batch * c.time * c.channels(), T(NAN)),
                      std::vector<T>(c.batch * c.channels() * c.kept(), T(NAN))};
    auto args = conv_args<ConvForward>(c, in);
    args.xbc = tensor(out.xbc, {c.batch, c.time, c.channels()});
    args.final_state = tensor(out.final_state, {c.batch, c.channels(), c.kept()});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    return out;
}

template <class T>
ConvInput<T> run_backward(const ConvCase& c, const ConvInput<T>& in, const std::vector<T>& d_xbc,
                          int threads = 1) {
    ConvInput<T> d{std::vector<T>(in.zxbcdt.size(), T(7)), std::vector<T>(in.weight.size(), T(1)),
                   std::vector<T>(in.bias.size(), T(1)), std::vector<T>(in.initial_state.size(), T(NAN))};
    auto args = conv_args<ConvBackward>(c, in);
    args.d_xbc = tensor(d_xbc, {c.batch, c.time, c.channels()});
    args.d_zxbcdt = tensor(d.zxbcdt, {c.batch, c.time, c.shape.projection()});
    args.d_weight = tensor(d.weight, {c.channels(), c.shape.conv_kernel});
    if (c.bias) args.d_bias = tensor(d.bias, {c.channels()});
    args.d_initial_state = tensor(d.initial_state, {c.batch, c.channels(), c.kept()});
    make_cpu_backend(DTypeOf<T>::value, threads)->run(args);
    return d;
}

void check(const ConvCase& c) {
    const auto in = random_input(c, 11 + c.time);
    const auto expected = convolve(c, in), actual = run_forward(c, in);
    INFO("time " << c.time << " documents " << !c.document.empty());
    CHECK(relative_error(actual.xbc, expected.xbc) < 1e-14);
    CHECK(actual.final_state == expected.final_state);

    const auto d_xbc = Random(3).normals(static_cast<int64_t>(actual.xbc.size()));
    const auto d = run_backward(c, in, d_xbc);
    auto z = in.to<std::complex<double>>();
    const auto loss = [&] { return weighted_sum(d_xbc, convolve(c, z).xbc); };
    auto d_rows = complex_step(z.zxbcdt, loss), d_weight = complex_step(z.weight, loss);
    auto d_bias = complex_step(z.bias, loss);
    const int64_t first = c.shape.inner(), end = first + c.channels();
    for (size_t i = 0; i < d_rows.size(); ++i) {  // only the x|B|C part is written
        const int64_t column = static_cast<int64_t>(i) % c.shape.projection();
        if (column < first || column >= end) d_rows[i] = 7;
    }
    for (double& value : d_weight) value += 1;  // accumulates onto 1
    for (double& value : d_bias) value += 1;
    CHECK(relative_error(d.zxbcdt, d_rows) < 1e-13);
    CHECK(relative_error(d.weight, d_weight) < 1e-13);
    CHECK(relative_error(d.bias, d_bias) < 1e-13);
    if (c.initial) CHECK(relative_error(d.initial_state, complex_step(z.initial_state, loss)) < 1e-13);
}

}  // namespace

TEST_CASE("The convolution and its gradients are exact at every length, shorter than the kernel too") {
    for (const int64_t time : {1, 2, 3, 4, 5, 9}) {
        for (const bool initial : {false, true}) {
            ConvCase c;
            c.time = time;
            c.initial = initial;
            c.bias = time != 5;
            check(c);
        }
    }
}

TEST_CASE("The convolution's taps stop at document boundaries") {
    ConvCase c;
    c.document = {0, 0, 1, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 7, 7};
    check(c);
    c.initial = false;
    check(c);
    c.time = 2;  // a boundary inside a row shorter than the kernel: nothing older is kept
    c.initial = true;
    c.document = {0, 1, 3, 3};
    check(c);
}

TEST_CASE("The convolution cut in two with its state carried over gives the same bits") {
    ConvCase whole;
    whole.batch = 1;
    whole.time = 9;
    const auto in = random_input(whole, 21);
    const auto expected = run_forward(whole, in);
    for (const int64_t cut : {1, 2, 5, 8}) {
        ConvCase first = whole, second = whole;
        first.time = cut;
        second.time = whole.time - cut;
        ConvInput<double> head = in, tail = in;
        head.zxbcdt.resize(cut * whole.shape.projection());
        tail.zxbcdt.erase(tail.zxbcdt.begin(), tail.zxbcdt.begin() + cut * whole.shape.projection());
        auto out = run_forward(first, head);
        tail.initial_state = out.final_state;
        const auto rest = run_forward(second, tail);
        out.xbc.insert(out.xbc.end(), rest.xbc.begin(), rest.xbc.end());
        CHECK(out.xbc == expected.xbc);
        CHECK(rest.final_state == expected.final_state);
    }
}

TEST_CASE("The convolution in float agrees with double to rounding") {
    ConvCase c;
    c.time = 200;
    const auto in = random_input(c, 31).to<float>();
    const auto rounded = in.to<double>();
    const auto d_xbc = convert<float>(Random(3).normals(c.batch * c.time * c.channels()));
    constexpr double kEps = 6e-8;
    CHECK(relative_error(run_forward(c, in).xbc, run_forward(c, rounded).xbc) < 10 * kEps);
    const auto d32 = run_backward(c, in, d_xbc);
    const auto d64 = run_backward(c, rounded, convert<double>(d_xbc));
    CHECK(relative_error(d32.zxbcdt, d64.zxbcdt) < 20 * kEps);
    // Sums of 32 terms in float, then in double.
    CHECK(relative_error(d32.weight, d64.weight) < 32 * kEps);
    CHECK(relative_error(d32.bias, d64.bias) < 32 * kEps);
}

TEST_CASE("The convolution's bits depend on the sequence alone, not on threads or batch") {
    ConvCase c;  // odd sizes over several channel blocks, so that rows start at every alignment
    c.shape = {.heads = 3, .head_dim = 37, .state = 11, .groups = 3, .conv_kernel = 4};
    c.batch = 3;
    c.time = 131;
    const auto in = random_input(c, 41).to<float>();
    const auto d_xbc = convert<float>(Random(3).normals(c.batch * c.time * c.channels()));
    const auto out = run_forward(c, in);
    const auto d = run_backward(c, in, d_xbc);
    for (const int threads : {2, 3}) {
        CHECK(run_forward(c, in, threads).xbc == out.xbc);
        const auto again = run_backward(c, in, d_xbc, threads);
        CHECK(again.zxbcdt == d.zxbcdt);
        CHECK(again.weight == d.weight);
        CHECK(again.bias == d.bias);
        CHECK(again.initial_state == d.initial_state);
    }
    for (int64_t b = 0; b < c.batch; ++b) {
        ConvCase alone = c;
        alone.batch = 1;
        auto part = in;
        part.zxbcdt = sequence(in.zxbcdt, b, c.batch);
        part.initial_state = sequence(in.initial_state, b, c.batch);
        CHECK(run_forward(alone, part).xbc == sequence(out.xbc, b, c.batch));
        const auto d_part = run_backward(alone, part, sequence(d_xbc, b, c.batch));
        CHECK(d_part.zxbcdt == sequence(d.zxbcdt, b, c.batch));
        CHECK(d_part.initial_state == sequence(d.initial_state, b, c.batch));
    }
}
