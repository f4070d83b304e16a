#include <cstring>
#include <list>

#include "tests/gpu/head_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

enum Output { loss, correct, kl, agrees, error, hidden_mse, cosine, outputs };

struct Results {
    std::vector<double> base_loss, base_correct, base_power;
    std::vector<std::vector<double>> variants[outputs];  // [output][variant][row]
};

// Wires one call: `tensor(type, extents, values or nothing)` gives memory, `download` reads it back.
template <class Make, class Download>
Results compare(Backend& backend, const std::vector<Lm>& models, const std::vector<int32_t>& targets,
                Make make, Download download) {
    const int64_t rows = models[0].rows;
    const auto output = [&] { return make.output(rows); };
    const auto view = [&](const Lm& lm) {
        return LmHead{make.values(lm.hidden, {rows, lm.width}),
                      make.values(lm.head, {lm.vocabulary, lm.width})};
    };
    CompareLogits args{.base = view(models[0]),
                       .targets = make.indices(targets),
                       .base_loss = output(),
                       .base_correct = output(),
                       .base_power = output()};
    for (size_t m = 1; m < models.size(); ++m) {
        const bool as_wide = models[m].width == models[0].width;
        args.variants.push_back({.variant = view(models[m]),
                                 .loss = output(),
                                 .correct = output(),
                                 .kl = output(),
                                 .agrees = output(),
                                 .error = output(),
                                 .hidden_mse = as_wide ? output() : Tensor(),
                                 .cosine = as_wide ? output() : Tensor()});
    }
    backend.run(args);
    Results results{download(args.base_loss), download(args.base_correct), download(args.base_power), {}};
    for (const LogitsComparison& out : args.variants) {
        const Tensor* tensors[outputs] = {&out.loss,  &out.correct,    &out.kl,    &out.agrees,
                                          &out.error, &out.hidden_mse, &out.cosine};
        for (int i = 0; i < outputs; ++i)
            results.variants[i].push_back(*tensors[i] ? download(*tensors[i]) : std::vector<double>());
    }
    return results;
}

struct HostMemory {
    std::list<std::vector<double>>& values_;
    Tensor values(const std::vector<double>& v, std::initializer_list<int64_t> extents) {
        return tensor(values_.emplace_back(v), extents);
    }
    Tensor output(int64_t rows) { return tensor(values_.emplace_back(rows, NAN), {rows}); }
    Tensor indices(const std::vector<int32_t>& v) { return tensor(v, {static_cast<int64_t>(v.size())}); }
};

struct DeviceMemory {
    Backend& backend;
    std::list<DeviceTensor>& tensors;
    Tensor values(const std::vector<double>& v, std::initializer_list<int64_t> extents) {
        return tensors.emplace_back(backend, DType::bf16, extents, v).view();
    }
    Tensor output(int64_t rows) {
        return tensors.emplace_back(backend, DType::f32, std::initializer_list<int64_t>{rows}).view();
    }
    Tensor indices(const std::vector<int32_t>& v) {
        const auto rows = static_cast<int64_t>(v.size());
        return tensors.emplace_back(backend, DType::i32, std::initializer_list<int64_t>{rows}, v).view();
    }
};

Results on_cpu(const std::vector<Lm>& models, const std::vector<int32_t>& targets) {
    std::list<std::vector<double>> memory;
    const auto backend = make_cpu_backend(DType::f64, 0);
    return compare(*backend, models, targets, HostMemory{memory}, [](const Tensor& out) {
        return std::vector<double>(out.as<double>(), out.as<double>() + out.elements());
    });
}

Results on_gpu(Backend& gpu, const std::vector<Lm>& models, const std::vector<int32_t>& targets) {
    std::list<DeviceTensor> memory;
    return compare(gpu, models, targets, DeviceMemory{gpu, memory}, [&](const Tensor& out) {
        std::vector<float> values(out.elements());
        gpu.copy(reinterpret_cast<std::byte*>(values.data()), out.data, out.bytes());
        return convert<double>(values);
    });
}

// The largest |a - b| / (relative |b| + absolute): at most 1 where every value is close enough. NaN is
// infinite.
double excess(const std::vector<double>& a, const std::vector<double>& b, double relative, double absolute) {
    REQUIRE(a.size() == b.size());
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double ratio = std::abs(a[i] - b[i]) / (relative * std::abs(b[i]) + absolute);
        worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
    }
    return worst;
}

// The device's logits are sums in float32 of exact products of bf16 values: their errors are some 2^-23 of
// the logits' size (`scale`, in deviations; the largest logit is about five), in an order of their own. 1e-6
// of the scale allows eight such roundings; statistics of 1e-5 relative, as sums of float32 terms of one sign
// come out well under.
void check_close(const Results& actual, const Results& expected, double scale, int64_t vocabulary) {
    const double logit = 1e-6 * (1 + scale);
    CHECK(excess(actual.base_loss, expected.base_loss, 1e-5, logit) <= 1);
    CHECK(excess(actual.base_power, expected.base_power, 1e-5, 1e-6) <= 1);
    CHECK(actual.base_correct == expected.base_correct);
    for (size_t m = 0; m < expected.variants[loss].size(); ++m) {
        CAPTURE(m);
        CHECK(excess(actual.variants[loss][m], expected.variants[loss][m], 1e-5, logit) <= 1);
        CHECK(excess(actual.variants[kl][m], expected.variants[kl][m], 1e-5, logit) <= 1);
        const double noise = static_cast<double>(vocabulary) * logit * logit;
        CHECK(excess(actual.variants[error][m], expected.variants[error][m], 1e-4, noise) <= 1);
        CHECK(actual.variants[correct][m] == expected.variants[correct][m]);
        CHECK(actual.variants[agrees][m] == expected.variants[agrees][m]);
        CHECK(excess(actual.variants[hidden_mse][m], expected.variants[hidden_mse][m], 1e-6, 1e-12) <= 1);
        CHECK(excess(actual.variants[cosine][m], expected.variants[cosine][m], 1e-6, 1e-7) <= 1);
    }
}

}  // namespace

TEST_CASE("on a GPU many models' logits compare with one base's as on the CPU", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    struct Shape {
        int64_t rows, vocabulary, width, other_width;
        double scale;
    };
    // Vocabularies of one column, odd, below and above the change of block size, of a part of a batch.
    const Shape shape =
        GENERATE(Shape{5, 1, 8, 8, 1}, Shape{9, 3, 13, 13, 1}, Shape{33, 256, 64, 48, 1},
                 Shape{20, 257, 13, 13, 4}, Shape{40, 1000, 64, 64, 10}, Shape{17, 1024, 192, 192, 1},
                 Shape{9, 8193, 64, 64, 4}, Shape{9, 8196, 64, 64, 4}, Shape{6, 32000, 96, 64, 30});
    CAPTURE(shape.rows, shape.vocabulary, shape.width);
    const Lm base(shape.rows, shape.vocabulary, shape.width, shape.scale, 61);
    const std::vector<Lm> models = {base, base.nudged(0.05 * shape.scale, 62),
                                    Lm(shape.rows, shape.vocabulary, shape.other_width, shape.scale, 63)};
    const auto targets = some_targets(shape.rows, shape.vocabulary);
    check_close(on_gpu(*gpu, models, targets), on_cpu(models, targets), shape.scale, shape.vocabulary);
}

TEST_CASE("on a GPU a variant equal to the base differs by exactly nothing", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const int64_t vocabulary = GENERATE(1000, 1001, 20000);
    const Lm base(12, vocabulary, 64, 4, 64);
    const Results results = on_gpu(*gpu, {base, base}, some_targets(12, vocabulary));
    CHECK(results.variants[loss][0] == results.base_loss);
    CHECK(results.variants[correct][0] == results.base_correct);
    for (int64_t r = 0; r < 12; ++r) {
        CHECK(results.variants[kl][0][r] == 0);
        CHECK(results.variants[error][0][r] == 0);
        CHECK(results.variants[agrees][0][r] == (r % 7 != 3));
    }
}

TEST_CASE("on a GPU the lowest of equal logits counts, and NaN passes through", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    Lm base(3, 9000, 8, 1, 65);
    std::fill(base.hidden.begin(), base.hidden.end(), 1);
    std::fill(base.head.begin(), base.head.end(), 0.25);
    Lm broken = base;
    broken.hidden[8] = NAN;
    const Results results = on_gpu(*gpu, {base, broken}, {0, 5, 0});
    CHECK(results.base_correct == std::vector<double>{1, 0, 1});
    CHECK(results.base_loss[0] == Approx(std::log(9000)).epsilon(1e-6));
    CHECK(std::isnan(results.variants[kl][0][1]));
    CHECK(std::isnan(results.variants[loss][0][1]));
    CHECK(results.variants[kl][0][0] == 0);
    CHECK(results.variants[kl][0][2] == 0);
}

TEST_CASE("on a GPU a row's comparison does not depend on the rows beside it", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // At this vocabulary a chunk holds 768 rows.
    constexpr int64_t kRows = 1100, kVocabulary = 131072;
    const Lm base(kRows, kVocabulary, 32, 3, 66), variant = base.nudged(0.2, 67);
    const auto targets = some_targets(kRows, kVocabulary);
    const Results all = on_gpu(*gpu, {base, variant}, targets);
    for (const int64_t begin : {0, 764, 1099}) {
        const int64_t count = begin == 1099 ? 1 : 9;
        const std::vector<int32_t> part_targets(targets.begin() + begin, targets.begin() + begin + count);
        const std::vector<Lm> models = {base.part(begin, count), variant.part(begin, count)};
        const Results part = on_gpu(*gpu, models, part_targets);
        const auto same = [&](const std::vector<double>& a, const std::vector<double>& b) {
            return std::memcmp(a.data(), b.data() + begin, count * sizeof(double)) == 0;
        };
        CHECK(same(part.base_loss, all.base_loss));
        CHECK(same(part.base_power, all.base_power));
        for (int i = 0; i < outputs; ++i) CHECK(same(part.variants[i][0], all.variants[i][0]));
        check_close(part, on_cpu(models, part_targets), 3, kVocabulary);
    }
}
