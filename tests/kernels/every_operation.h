// Every operation once, on small odd sizes, with all its outputs kept: what the tests of bits compare.
#pragma once

#include <list>
#include <map>
#include <set>
#include <string>

#include "tests/kernels/testing.h"

// clang-format off
#define MINIPUZZLE_OPERATIONS(X) \
    X(EmbeddingForward) X(EmbeddingBackward) X(RmsNormForward) X(RmsNormBackward) X(QuantizeRows) X(LinearForward) \
    X(LinearBackward) X(SquaredReluForward) X(SquaredReluBackward) X(Add) X(ConvForward) X(ConvBackward) \
    X(SsdForward) X(SsdBackward) X(GatedNormForward) X(GatedNormBackward) X(AttentionForward) \
    X(AttentionBackward) X(VocabularyLoss) X(CompareLogits) X(FeatureLoss) X(ActivationSums) \
    X(AccumulatePowers) X(SquaredNorm) X(RandomNormal) X(GradientNorms) X(AdamW)
// clang-format on

namespace minipuzzle::testing {

// Passes everything on and keeps the names of the operations that ran. A new operation that is not in the
// list above leaves this class abstract: the build then asks for it.
class RecordingBackend final : public Backend {
  public:
    explicit RecordingBackend(Backend& inner) : inner_(inner) {}
    std::string name() const override { return inner_.name(); }
    DeviceKind device() const override { return inner_.device(); }
    DType compute_type() const override { return inner_.compute_type(); }
    std::byte* allocate(int64_t bytes) override { return inner_.allocate(bytes); }
    void free(std::byte* memory) noexcept override { inner_.free(memory); }
    int64_t available() const override { return inner_.available(); }
    std::byte* allocate_pinned(int64_t bytes) override { return inner_.allocate_pinned(bytes); }
    void free_pinned(std::byte* memory) noexcept override { inner_.free_pinned(memory); }
    void copy(std::byte* to, const std::byte* from, int64_t bytes) override { inner_.copy(to, from, bytes); }
    std::unique_ptr<CopyQueue> make_copy_queue() override { return inner_.make_copy_queue(); }
    std::unique_ptr<Backend> measuring() const override { return inner_.measuring(); }
    void reserve_scratch(int64_t bytes) override { inner_.reserve_scratch(bytes); }
    void zero(const Tensor& tensor) override { inner_.zero(tensor); }
    void synchronize() override { inner_.synchronize(); }
    double elapsed_ms(const std::function<void()>& operations) override {
        return inner_.elapsed_ms(operations);
    }
#define MINIPUZZLE_RECORD(Operation)                \
    void run(const Operation& operation) override { \
        ran.insert(#Operation);                     \
        inner_.run(operation);                      \
    }
    MINIPUZZLE_OPERATIONS(MINIPUZZLE_RECORD)
#undef MINIPUZZLE_RECORD

    std::set<std::string> ran;

  private:
    Backend& inner_;
};

// Runs every operation on sequences [first, first + count) of a fixed batch of three, in float.
class EveryOperation {
  public:
    EveryOperation(Backend& backend, int64_t time, int64_t first, int64_t count)
        : backend_(backend), time_(time), first_(first), count_(count) {
        dense();
        mixer();
        attention();
        losses();
        optimizer();
    }

    // By name: activations, [count, ...], and gradients of parameters, which sum over the batch.
    std::map<std::string, std::vector<float>> activations, parameters;

  private:
    static constexpr int64_t kBatch = 3, kWidth = 45, kFfn = 530, kVocab = 1100;

    // Random activations [kBatch, extents...], of which this run sees its own sequences.
    Tensor input(std::vector<int64_t> extents, double deviation = 1) {
        int64_t each = 1;
        for (const int64_t extent : extents) each *= extent;
        auto& values = inputs_.emplace_back(convert<float>(random_.normals(kBatch * each, 0, deviation)));
        return shaped(values.data() + first_ * each, extents);
    }
    Tensor parameter(std::initializer_list<int64_t> extents, double deviation = 0.3) {
        int64_t elements = 1;
        for (const int64_t extent : extents) elements *= extent;
        auto& values = inputs_.emplace_back(convert<float>(random_.normals(elements, 0, deviation)));
        return Tensor(values.data(), DType::f32, extents);
    }
    Tensor output(const std::string& name, std::vector<int64_t> extents) {
        int64_t each = 1;
        for (const int64_t extent : extents) each *= extent;
        auto& values = activations[name];
        values.assign(count_ * each, 0.5f);
        return shaped(values.data(), extents);
    }
    Tensor gradient(const std::string& name, const Tensor& of) {
        auto& values = parameters[name];
        values.assign(of.elements(), 0.25f);
        Tensor view = of;
        view.data = reinterpret_cast<std::byte*>(values.data());
        return view;
    }
    // E4M3 and its scales. What they hold shows in the products made of them; scales are an output too.
    struct Codes {
        Tensor values, scale;
    };
    Codes codes_of(int64_t rows, int64_t width) {
        auto& values = codes_.emplace_back(rows * width);
        auto& scale = inputs_.emplace_back(rows);
        return {Tensor(values.data(), DType::f8_e4m3, {rows, width}),
                Tensor(scale.data(), DType::f32, {rows})};
    }
    Codes quantised_output(const std::string& name, int64_t time, int64_t width) {
        auto& values = codes_.emplace_back(count_ * time * width);
        return {Tensor(values.data(), DType::f8_e4m3, {count_, time, width}),
                output(name + " scale", {time}).view({count_ * time})};
    }
    Tensor indices(int32_t limit, int32_t masked_every) {
        auto& values = indices_.emplace_back(kBatch * time_);
        for (size_t i = 0; i < values.size(); ++i) {
            const bool masked = masked_every > 0 && i % masked_every == 2;
            values[i] = masked ? -1 : static_cast<int32_t>(random_.uniform() * limit);
        }
        return Tensor(values.data() + first_ * time_, DType::i32, {count_, time_});
    }
    Tensor shaped(float* data, const std::vector<int64_t>& e) const {
        if (e.size() == 1) return Tensor(data, DType::f32, {count_, e[0]});
        if (e.size() == 2) return Tensor(data, DType::f32, {count_, e[0], e[1]});
        return Tensor(data, DType::f32, {count_, e[0], e[1], e[2]});
    }
    Tensor flat(const Tensor& t) const { return t.view({count_ * time_, t.columns()}); }

    void dense() {
        const Tensor tokens = indices(40, 0), table = parameter({40, kWidth});
        const Tensor x = output("embedding", {time_, kWidth});
        backend_.run(EmbeddingForward{tokens, table, x});
        const Tensor norm = parameter({kWidth}), normed = output("norm", {time_, kWidth});
        backend_.run(RmsNormForward{x, norm, 1e-5, normed});
        const Tensor up = parameter({kFfn, kWidth}), down = parameter({kWidth, kFfn});
        const Tensor wide = output("linear", {time_, kFfn}), squared = output("squared relu", {time_, kFfn});
        backend_.run(LinearForward{.x = normed, .weight = up, .out = wide});
        backend_.run(SquaredReluForward{wide, squared});
        const Tensor sum = output("add", {time_, kWidth});
        backend_.run(Add{x, normed, sum});
        backend_.run(LinearForward{squared, down, sum, sum});
        const Codes codes = quantised_output("quantised", time_, kWidth), many = codes_of(kFfn, kWidth);
        backend_.run(QuantizeRows{x, codes.values, codes.scale});
        backend_.run(QuantizeRows{up, many.values, many.scale});
        backend_.run(LinearForward{.x = codes.values,
                                   .weight = many.values,
                                   .out = output("quantised linear", {time_, kFfn}),
                                   .x_scale = codes.scale,
                                   .weight_scale = many.scale});
        const Tensor sums = output("activation sums", {kFfn});
        backend_.run(ActivationSums{.x = squared, .out = sums});
        backend_.run(ActivationSums{.x = squared,
                                    .first = 3,
                                    .channels = 17,
                                    .squared = true,
                                    .out = output("squared activation sums", {31})});
        auto& total = doubles_.emplace_back(kFfn);
        backend_.run(AccumulatePowers{
            .x = sums, .scale = 0.1, .power = 2, .total = Tensor(total.data(), DType::f64, {kFfn})});
        parameters["powers"] = convert<float>(total);

        const Tensor d_squared = output("d squared", {time_, kFfn}),
                     d_normed = output("d normed", {time_, kWidth});
        backend_.run(LinearBackward{squared, down, sum, d_squared, false, gradient("down", down)});
        backend_.run(SquaredReluBackward{wide, d_squared, d_squared});
        backend_.run(LinearBackward{normed, up, d_squared, d_normed, false, gradient("up", up)});
        const Tensor d_x = output("d x", {time_, kWidth});
        backend_.run(RmsNormBackward{x, norm, 1e-5, d_normed, d_x, gradient("norm", norm)});
        backend_.run(EmbeddingBackward{tokens, d_x, gradient("table", table)});
    }

    void mixer() {
        const MambaShape s{.heads = 6, .head_dim = 5, .state = 7, .groups = 2, .conv_kernel = 4};
        const int64_t chunk = 32, chunks = div_up(time_, chunk);
        const Tensor zxbcdt = input({time_, s.projection()}), document = documents();
        const Tensor taps = parameter({s.conv_channels(), s.conv_kernel}),
                     bias = parameter({s.conv_channels()});
        const Tensor before = input({s.conv_channels(), s.conv_kernel - 1});
        const Tensor xbc = output("conv", {time_, s.conv_channels()});
        backend_.run(ConvForward{s, zxbcdt, taps, bias, document, before, xbc,
                                 output("conv state", {s.conv_channels(), s.conv_kernel - 1})});
        const Tensor dt_bias = parameter({s.heads}), a_log = parameter({s.heads}), d = parameter({s.heads});
        const Tensor state = input({s.heads, s.head_dim, s.state});
        const Tensor y = output("scan", {time_, s.inner()});
        const Tensor chunk_states = output("chunk states", {chunks * s.heads, s.head_dim, s.state});
        backend_.run(SsdForward{s, chunk, 0, 10, xbc, zxbcdt, dt_bias, a_log, d, document, state, y,
                                output("scan state", {s.heads, s.head_dim, s.state}), chunk_states});
        const Tensor weight = parameter({s.inner()}), out = output("gated norm", {time_, s.inner()});
        backend_.run(GatedNormForward{s, y, zxbcdt, weight, 1e-5, out});

        const Tensor d_zxbcdt = output("d zxbcdt", {time_, s.projection()});
        const Tensor d_y = output("d scan", {time_, s.inner()});
        backend_.run(GatedNormBackward{s, y, zxbcdt, weight, 1e-5, input({time_, s.inner()}), d_y, d_zxbcdt,
                                       gradient("gated norm", weight)});
        const Tensor d_xbc = output("d conv", {time_, s.conv_channels()});
        backend_.run(SsdBackward{s,
                                 chunk,
                                 0,
                                 10,
                                 xbc,
                                 zxbcdt,
                                 dt_bias,
                                 a_log,
                                 d,
                                 document,
                                 state,
                                 chunk_states,
                                 d_y,
                                 input({s.heads, s.head_dim, s.state}),
                                 d_xbc,
                                 d_zxbcdt,
                                 gradient("dt_bias", dt_bias),
                                 gradient("a_log", a_log),
                                 gradient("d", d),
                                 output("d state", {s.heads, s.head_dim, s.state})});
        backend_.run(ConvBackward{s, zxbcdt, taps, bias, document, before, d_xbc, d_zxbcdt,
                                  gradient("taps", taps), gradient("bias", bias),
                                  output("d before", {s.conv_channels(), s.conv_kernel - 1})});
    }

    void attention() {
        constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 9;
        const Tensor q = input({time_, kHeads * kDim}), document = documents();
        const Tensor k = input({time_, kKvHeads * kDim}), v = input({time_, kKvHeads * kDim});
        const Tensor out = output("attention", {time_, kHeads * kDim}), lse = output("lse", {kHeads, time_});
        backend_.run(AttentionForward{kHeads, kKvHeads, kDim, q, k, v, document, out, lse});
        backend_.run(AttentionBackward{kHeads, kKvHeads, kDim, true, q, k, v, document, out, lse,
                                       input({time_, kHeads * kDim}), output("d q", {time_, kHeads * kDim}),
                                       output("d k", {time_, kKvHeads * kDim}),
                                       output("d v", {time_, kKvHeads * kDim})});
    }

    void losses() {
        const LmHead student{flat(input({time_, kWidth})), parameter({kVocab, kWidth})};
        const LmHead teacher{flat(input({time_, kWidth})), parameter({kVocab, kWidth})};
        const Tensor targets = indices(kVocab, 7).view({count_ * time_});
        const auto rows = [&](const std::string& name) {
            return output(name, {time_}).view({count_ * time_});
        };
        backend_.run(VocabularyLoss{.student = student,
                                    .teacher = teacher,
                                    .targets = targets,
                                    .sequence_length = time_,
                                    .ce_weight = 0.5,
                                    .kl_weight = 0.5,
                                    .temperature = 2,
                                    .scale = 0.1,
                                    .ce = rows("ce"),
                                    .kl = rows("kl"),
                                    .d_hidden = flat(output("d hidden", {time_, kWidth})),
                                    .d_head = gradient("head", student.head)});
        CompareLogits compare{teacher,       targets, time_, rows("base loss"), rows("base correct"),
                              rows("power"), {}};
        for (const LmHead& variant : {student, LmHead{flat(input({time_, kWidth})), teacher.head}}) {
            const std::string name = fmt_name("variant", compare.variants.size());
            compare.variants.push_back({variant, rows(name + " loss"), rows(name + " correct"),
                                        rows(name + " kl"), rows(name + " agrees"), rows(name + " error"),
                                        rows(name + " mse"), rows(name + " cosine")});
        }
        backend_.run(compare);
        for (const FeatureKind kind : {FeatureKind::cosine, FeatureKind::mse}) {
            const std::string name = fmt_name("feature", static_cast<size_t>(kind));
            backend_.run(FeatureLoss{kind, student.hidden, teacher.hidden, targets, 0.5, rows(name),
                                     flat(output("d " + name, {time_, kWidth}))});
        }
    }

    void optimizer() {
        const Tensor weight = parameter({300, 301}), step = parameter({300, 301});
        double norm = 0;
        backend_.run(SquaredNorm{weight, &norm});
        Tensor deviates = weight;
        backend_.run(RandomNormal{deviates, 5, 2});
        parameters["squared norm"] = {static_cast<float>(norm)};
        auto& squares = doubles_.emplace_back(1);
        const Tensor squares_tensor(squares.data(), DType::f64, {1});
        backend_.run(GradientNorms{{step}, squares_tensor});
        parameters["gradient norm"] = {static_cast<float>(squares[0])};
        backend_.run(AdamW{.tensors = {{.parameter = gradient("adamw parameter", weight),
                                        .master = {},
                                        .gradient = step,
                                        .moment1 = gradient("moment1", weight),
                                        .moment2 = gradient("moment2", weight)}},
                           .squares = squares_tensor,
                           .learning_rate = 0.01,
                           .clip = 1});
    }

    static std::string fmt_name(const std::string& name, size_t index) {
        return name + std::to_string(index);
    }

    // Two documents in every sequence, at a place of its own.
    Tensor documents() {
        auto& values = indices_.emplace_back(kBatch * time_);
        for (int64_t i = 0; i < kBatch * time_; ++i) {
            values[i] = i % time_ * 4 >= time_ * (i / time_ + 1);
        }
        return Tensor(values.data() + first_ * time_, DType::i32, {count_, time_});
    }

    Backend& backend_;
    int64_t time_, first_, count_;
    Random random_{51};
    std::list<std::vector<float>> inputs_;
    std::list<std::vector<int32_t>> indices_;
    std::list<std::vector<uint8_t>> codes_;
    std::list<std::vector<double>> doubles_;
};

}  // namespace minipuzzle::testing
