#include "runtime/hybrid_model.h"

#include <cmath>
#include <limits>

#include "kernels/random.h"
#include "tests/catch.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;

namespace {

constexpr int64_t kBatch = 2, kLength = 9;

Architecture one_layer(const Layer& layer) {
    Architecture architecture;
    architecture.vocab = 11;
    architecture.width = 6;
    architecture.layers = {layer};
    architecture.dt_max = std::numeric_limits<double>::infinity();
    return architecture;
}

// One layer in double with random weights, its input, and the gradient of sum(out * probe).
struct LayerCheck {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f64, 2);
    Architecture architecture;
    WeightMemory weights, gradients;
    DeviceArena arena = DeviceArena::sized(*backend, 1 << 22);
    HybridModel model;
    Tensor in, out, probe, d_hidden, document;

    explicit LayerCheck(const Layer& layer)
        : architecture(one_layer(layer)),
          weights(random_weights(*backend, architecture, 7, 0.5)),
          gradients(*backend, architecture, true),
          model(*backend, arena, architecture, weights.weights()) {
        for (Tensor* tensor : {&in, &out, &probe, &d_hidden}) *tensor = arena.take("t", {kBatch, kLength, 6});
        document = arena.take("document", {kBatch, kLength}, DType::i32);
        for (int64_t i = 0; i < kBatch * kLength; ++i) document.as<int32_t>()[i] = i % kLength >= 4 ? 1 : 0;
        CounterRandom random(3, "input");
        for (int64_t i = 0; i < in.elements(); ++i) {
            in.as<double>()[i] = random.normal(i);
            probe.as<double>()[i] = random.normal(1000 + i);
        }
    }
    double value() {
        model.apply(0, in, out, document);
        double sum = 0;
        for (int64_t i = 0; i < out.elements(); ++i) sum += out.as<double>()[i] * probe.as<double>()[i];
        return sum;
    }
    // d value / d x by central differences; the truncation error is of order step^2.
    double slope(double& x) {
        constexpr double kStep = 1e-5;
        const double at = x;
        x = at + kStep;
        const double above = value();
        x = at - kStep;
        const double below = value();
        x = at;
        return (above - below) / (2 * kStep);
    }
    void check() {
        backend->copy(d_hidden.data, probe.data, probe.bytes());
        model.apply_backward(0, in, d_hidden, gradients.weights(), document);
        compare("input", in, d_hidden);
        std::vector<Tensor> parameters;
        for_each_parameter(architecture, weights.weights(),
                           [&](const ParameterInfo&, Tensor& tensor) { parameters.push_back(tensor); });
        std::size_t next = 0;
        for_each_parameter(architecture, gradients.weights(),
                           [&](const ParameterInfo& info, Tensor& gradient) {
                               const Tensor parameter = parameters[next++];
                               if (info.slot.layer == 0) compare(info.slot.name, parameter, gradient);
                           });
    }
    void compare(const std::string& name, const Tensor& x, const Tensor& gradient) {
        double error = 0, norm = 0;
        for (int64_t i = 0; i < x.elements(); ++i) {
            const double expected = slope(x.as<double>()[i]);
            error += std::pow(gradient.as<double>()[i] - expected, 2);
            norm += expected * expected;
        }
        INFO(name << ": gradient norm " << std::sqrt(norm) << ", error " << std::sqrt(error));
        CHECK(norm > 0);
        CHECK(std::sqrt(error) <
              1e-7 * std::sqrt(norm));  // step^2 times the third derivatives, which are of order 1e3
    }
};

}  // namespace

TEST_CASE("A layer's backward agrees with finite differences, two documents in a row") {
    SECTION("Mamba") {
        LayerCheck(Mamba{.heads = 4, .head_dim = 3, .state = 5, .groups = 2, .conv_kernel = 4}).check();
    }
    SECTION("attention") { LayerCheck(Attention{.heads = 4, .kv_heads = 2, .head_dim = 3}).check(); }
    SECTION("FFN") { LayerCheck(Ffn{.width = 10}).check(); }
}

TEST_CASE("A layer may write beside its input or over it, with the same bits") {
    const auto backend = make_cpu_backend(DType::f32, 2);
    const Architecture architecture = test::tiny_architecture("M*-");
    const WeightMemory weights = random_weights(*backend, architecture, 1);
    DeviceArena arena = DeviceArena::sized(*backend, 1 << 24);
    HybridModel model(*backend, arena, architecture, weights.weights());
    const Tensor in = arena.take("in", {1, 17, architecture.width}),
                 out = arena.take("out", {1, 17, architecture.width});
    CounterRandom random(5, "hidden");
    for (int64_t i = 0; i < in.elements(); ++i) in.as<float>()[i] = static_cast<float>(random.normal(i));
    for (int64_t layer = 0; layer < 3; ++layer) {
        model.apply(layer, in, out);
        model.apply(layer, in, in);
        CHECK(to_host(*backend, in) == to_host(*backend, out));
    }
}

TEST_CASE("Random initialisation depends on the seed and a tensor's name alone") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const Architecture small = test::tiny_architecture("M-"), large = test::tiny_architecture("M-*-");
    WeightMemory a = random_weights(*backend, small, 9), b = random_weights(*backend, large, 9),
                 c = random_weights(*backend, small, 10);
    const auto in_proj = [&](WeightMemory& memory) {
        return to_host(*backend, std::get<MambaWeights>(memory.weights().layers[0]).in_proj);
    };
    CHECK(in_proj(a) == in_proj(b));
    CHECK(in_proj(a) != in_proj(c));
}

TEST_CASE("Multiply-adds of a layer are its matrix products'") {
    const Architecture architecture = one_layer(Ffn{.width = 10});
    CHECK(multiply_adds(architecture, architecture.layers[0], 7, 7) == 7 * 2 * 6 * 10);
    CHECK(head_multiply_adds(architecture, 7) == 7 * 6 * 11);
    const Attention attention{.heads = 4, .kv_heads = 2, .head_dim = 3};
    // q, o: 6*12 each; k, v: 6*6 each; scores and values over (T+1)/2 positions on average, 12 wide
    CHECK(multiply_adds(architecture, attention, 7, 7) == 7 * (2 * 72 + 2 * 36 + 8 * 12));
}
