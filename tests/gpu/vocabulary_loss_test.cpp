// The vocabulary losses on the device against their definition in double.
#include "tests/gpu/head_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Settings {
    double ce_weight = 0, kl_weight = 1, reverse_kl_weight = 0, temperature = 1, scale = 1;
    int64_t top_k = 0;
    bool has_teacher = true;
};

struct Results {
    std::vector<double> ce, kl, reverse_kl, d_hidden, d_head;
};

std::vector<double> softmax(const std::vector<double>& z, double temperature, double threshold = -INFINITY) {
    const double largest = *std::max_element(z.begin(), z.end());
    std::vector<double> p(z.size(), 0.0);
    double sum = 0;
    for (size_t v = 0; v < z.size(); ++v)
        if (z[v] >= threshold) sum += p[v] = std::exp((z[v] - largest) / temperature);
    for (double& value : p) value /= sum;
    return p;
}

double divergence(const std::vector<double>& p, const std::vector<double>& q) {
    double sum = 0;
    for (size_t v = 0; v < p.size(); ++v)
        if (p[v] > 0) sum += p[v] * std::log(p[v] / q[v]);
    return sum;
}

// What the operation's definition says of row r (kernels/ops.h): its losses, and d loss / d logits.
std::vector<double> expected_row(const Lm& student, const Lm& teacher, int32_t target, const Settings& s,
                                 int64_t r, Results& results) {
    std::vector<double> gradient(student.vocabulary, 0.0);
    if (target < 0) return gradient;
    const auto z = student.logits(r);
    const double t = s.temperature;
    const auto hard = softmax(z, 1);
    results.ce[r] = -std::log(hard[target]);
    for (size_t v = 0; v < z.size(); ++v)
        gradient[v] = s.scale * s.ce_weight * (hard[v] - (static_cast<int64_t>(v) == target));
    if (!s.has_teacher) return gradient;
    const auto z_teacher = teacher.logits(r);
    double threshold = -INFINITY;
    if (s.top_k > 0 && s.top_k < teacher.vocabulary) {
        auto sorted = z_teacher;
        std::nth_element(sorted.begin(), sorted.begin() + (s.top_k - 1), sorted.end(), std::greater<>());
        threshold = sorted[s.top_k - 1];
    }
    const auto p = softmax(z, t), q = softmax(z_teacher, t, threshold);
    const double reverse = divergence(p, q);
    results.kl[r] = t * t * divergence(q, p);
    if (s.top_k == 0) results.reverse_kl[r] = t * t * reverse;
    for (size_t v = 0; v < z.size(); ++v) {
        gradient[v] += s.scale * s.kl_weight * t * (p[v] - q[v]);
        if (s.reverse_kl_weight != 0)
            gradient[v] += s.scale * s.reverse_kl_weight * t * p[v] * (std::log(p[v] / q[v]) - reverse);
    }
    return gradient;
}

// d_head on top of `d_head_before`.
Results expected(const Lm& student, const Lm& teacher, const std::vector<int32_t>& targets, const Settings& s,
                 const std::vector<double>& d_head_before) {
    const int64_t rows = student.rows, width = student.width;
    const std::vector<double> zeros(rows, 0.0);
    Results results{zeros, zeros, zeros, std::vector<double>(rows * width, 0.0), d_head_before};
    for (int64_t r = 0; r < rows; ++r) {
        const auto gradient = expected_row(student, teacher, targets[r], s, r, results);
        for (int64_t v = 0; v < student.vocabulary; ++v)
            for (int64_t i = 0; i < width; ++i) {
                results.d_hidden[r * width + i] += gradient[v] * student.head[v * width + i];
                results.d_head[v * width + i] += gradient[v] * student.hidden[r * width + i];
            }
    }
    return results;
}

// What is in device memory for one call.
struct Call {
    Call(Backend& backend, const Lm& student, const Lm& teacher, const std::vector<int32_t>& some,
         const Settings& settings, const std::vector<double>& d_head_before)
        : gpu(backend),
          s(settings),
          hidden(gpu, DType::bf16, {student.rows, student.width}, student.hidden),
          head(gpu, DType::bf16, {student.vocabulary, student.width}, student.head),
          teacher_hidden(gpu, DType::bf16, {teacher.rows, teacher.width}, teacher.hidden),
          teacher_head(gpu, DType::bf16, {teacher.vocabulary, teacher.width}, teacher.head),
          targets(gpu, DType::i32, {student.rows}, some),
          ce(gpu, DType::f32, {student.rows}),
          kl(gpu, DType::f32, {student.rows}),
          reverse_kl(gpu, DType::f32, {student.rows}),
          d_hidden(gpu, DType::bf16, {student.rows, student.width}),
          d_head(gpu, DType::f32, {student.vocabulary, student.width}, d_head_before) {}

    VocabularyLoss args() const {
        VocabularyLoss args{.student = {hidden, head},
                            .targets = targets,
                            .ce_weight = s.ce_weight,
                            .kl_weight = s.kl_weight,
                            .reverse_kl_weight = s.reverse_kl_weight,
                            .temperature = s.temperature,
                            .scale = s.scale,
                            .top_k = s.top_k,
                            .ce = ce,
                            .d_hidden = d_hidden,
                            .d_head = d_head};
        if (s.has_teacher) {
            args.teacher = {teacher_hidden, teacher_head};
            args.kl = kl;
            if (s.top_k == 0) args.reverse_kl = reverse_kl;
        }
        return args;
    }
    Results results() const {
        return {convert<double>(ce.download()), convert<double>(kl.download()),
                convert<double>(reverse_kl.download()), convert<double>(d_hidden.download()),
                convert<double>(d_head.download())};
    }

    Backend& gpu;
    Settings s;
    DeviceTensor hidden, head, teacher_hidden, teacher_head, targets, ce, kl, reverse_kl, d_hidden, d_head;
};

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

// The device's logits are sums in float32 of exact products: off by some 2^-23 of the logits' size (`scale`,
// in deviations). A softened loss is T^2 times what logits over T give, so T times that. The gradient of the
// logits is rounded to bf16 once, by at most 2^-8 of each value, which bounds the change of the norm of a sum
// over them only where they are independent: they are, so twice that is ample. d_hidden is rounded once more.
void check_close(const Results& actual, const Results& expected, const Settings& s, double scale) {
    const double logit = 1e-6 * (1 + scale) * std::max(1.0, s.temperature);
    CHECK(excess(actual.ce, expected.ce, 1e-5, logit) <= 1);
    if (s.has_teacher) CHECK(excess(actual.kl, expected.kl, 1e-5, logit) <= 1);
    if (s.has_teacher && s.top_k == 0)
        CHECK(excess(actual.reverse_kl, expected.reverse_kl, 1e-5, logit) <= 1);
    CHECK(norm_error(actual.d_hidden, expected.d_hidden) < 0x1p-7);
    CHECK(norm_error(actual.d_head, expected.d_head) < 0x1p-8);
}

struct Shape {
    int64_t rows, vocabulary, width, teacher_width;
    double scale;
};

void check_definition(Backend& gpu, const Shape& shape) {
    const Settings settings = GENERATE(
        Settings{.ce_weight = 1, .kl_weight = 0, .has_teacher = false}, Settings{},
        Settings{.ce_weight = 0.3, .kl_weight = 0.7, .scale = 0.01},
        Settings{.ce_weight = 0.3, .kl_weight = 0.7, .temperature = 2.5},
        Settings{.kl_weight = 1, .temperature = 0.5}, Settings{.kl_weight = 0, .reverse_kl_weight = 1},
        Settings{.ce_weight = 0.2, .kl_weight = 0.5, .reverse_kl_weight = 0.3, .temperature = 2},
        Settings{.kl_weight = 1, .top_k = 1}, Settings{.ce_weight = 0.5, .temperature = 1.5, .top_k = 40});
    CAPTURE(shape.rows, shape.vocabulary, shape.width, settings.ce_weight, settings.kl_weight,
            settings.reverse_kl_weight, settings.temperature, settings.top_k);
    const Lm student(shape.rows, shape.vocabulary, shape.width, shape.scale, 71);
    const Lm teacher(shape.rows, shape.vocabulary, shape.teacher_width, shape.scale, 72);
    const auto targets = some_targets(shape.rows, shape.vocabulary);
    const std::vector<double> before(shape.vocabulary * shape.width, 0.0);
    const Call call(gpu, student, teacher, targets, settings, before);
    gpu.run(call.args());
    check_close(call.results(), expected(student, teacher, targets, settings, before), settings, shape.scale);
}

}  // namespace

TEST_CASE("on a GPU the vocabulary losses and their gradients are as defined", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // Vocabularies of one column, odd, of a part of a batch.
    check_definition(
        *gpu, GENERATE(Shape{5, 1, 8, 8, 1}, Shape{9, 3, 13, 13, 1}, Shape{1, 40, 16, 8, 1},
                       Shape{13, 256, 64, 48, 1}, Shape{20, 257, 13, 13, 4}, Shape{10, 1000, 64, 64, 10}));
}

TEST_CASE("on a GPU the vocabulary losses are as defined for larger vocabularies too", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // Below and above the change of block size.
    check_definition(*gpu, GENERATE(Shape{17, 4096, 192, 192, 1}, Shape{9, 8193, 64, 64, 4},
                                    Shape{9, 8196, 64, 32, 4}, Shape{5, 32000, 32, 32, 10}));
}

TEST_CASE("on a GPU the gradient of the logits is rounded once, logits up to 40 included", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // Hidden states that are rows of the identity: the logits are the head's own values, and the head's
    // gradient is that of the logits.
    constexpr int64_t kRows = 16, kVocabulary = 2000;
    const Settings settings =
        GENERATE(Settings{.ce_weight = 1, .kl_weight = 0, .has_teacher = false}, Settings{},
                 Settings{.ce_weight = 0.5, .kl_weight = 0.5, .temperature = 2, .scale = 1.0 / 8192},
                 Settings{.kl_weight = 0, .reverse_kl_weight = 1}, Settings{.kl_weight = 1, .top_k = 20});
    CAPTURE(settings.ce_weight, settings.kl_weight, settings.reverse_kl_weight, settings.temperature,
            settings.top_k);
    const auto with_logits = [&](uint64_t seed) {
        Lm lm(kRows, kVocabulary, kRows, 1, seed);
        for (int64_t i = 0; i < kRows * kRows; ++i) lm.hidden[i] = i % (kRows + 1) == 0;
        for (double& value : lm.head) value = std::clamp(value * std::sqrt(kRows) * 12, -40.0, 40.0);
        lm.head = rounded_to_bf16(lm.head);
        return lm;
    };
    const Lm student = with_logits(73), teacher = with_logits(74);
    const auto targets = some_targets(kRows, kVocabulary);
    const std::vector<double> before(kVocabulary * kRows, 0.0);
    const Call call(*gpu, student, teacher, targets, settings, before);
    gpu->run(call.args());
    const auto wanted = expected(student, teacher, targets, settings, before);
    const Results actual = call.results();
    // One rounding (2^-8), and 2^-14 for exponentials of arguments up to 120, each rounded to 2^-18. Terms of
    // either sign may cancel: each is at most 1 (reverse KL: 80), known to about 2^-18 of itself.
    const double term = settings.scale * (settings.reverse_kl_weight != 0 ? 80 : 2);
    CHECK(excess(actual.d_head, wanted.d_head, 0x1p-8 + 0x1p-14, term * 0x1p-18) <= 1);
    CHECK(excess(actual.ce, wanted.ce, 1e-5, 1e-5) <= 1);
    if (settings.has_teacher) CHECK(excess(actual.kl, wanted.kl, 1e-5, 1e-4) <= 1);
}

TEST_CASE("on a GPU the head's gradient accumulates and outputs may be left out", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Settings settings{.ce_weight = 0.5, .kl_weight = 0.5};
    const Lm student(20, 500, 32, 2, 75), teacher(20, 500, 32, 2, 76);
    const auto targets = some_targets(20, 500);
    const auto before = convert<double>(convert<float>(Random(77).normals(500 * 32)));
    const auto wanted = expected(student, teacher, targets, settings, before);
    const Call call(*gpu, student, teacher, targets, settings, before);
    gpu->run(call.args());
    check_close(call.results(), wanted, settings, 2);
    const Results all = call.results();

    // Forward only: the same losses, nothing else written.
    const Call forward(*gpu, student, teacher, targets, settings, before);
    VocabularyLoss args = forward.args();
    args.d_hidden = args.d_head = Tensor();
    gpu->run(args);
    CHECK(forward.results().ce == all.ce);
    CHECK(forward.results().kl == all.kl);
    CHECK(forward.results().d_head == before);

    const Call gradients(*gpu, student, teacher, targets, settings, before);
    args = gradients.args();
    args.ce = args.kl = args.reverse_kl = args.d_head = Tensor();
    gpu->run(args);
    CHECK(gradients.results().d_hidden == all.d_hidden);
    CHECK(gradients.results().d_head == before);
}

TEST_CASE("on a GPU a student equal to its teacher has no divergence and no gradient", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const int64_t vocabulary = GENERATE(1000, 1001, 20000);
    const Lm lm(12, vocabulary, 64, 4, 78);
    const std::vector<double> before(vocabulary * 64, 0.0);
    const Settings settings{.kl_weight = 1, .reverse_kl_weight = 1, .temperature = 2};
    const Call call(*gpu, lm, lm, some_targets(12, vocabulary), settings, before);
    gpu->run(call.args());
    const Results results = call.results();
    for (const double value : results.kl) CHECK(value == 0);
    for (const double value : results.reverse_kl) CHECK(value == 0);
    // Sums of both are equal, and so is what is subtracted; a fused operation leaves its last rounding.
    for (const double value : results.d_head) CHECK(std::abs(value) < 1e-6);
}

TEST_CASE("on a GPU equal logits count together among the teacher's likeliest, and masks leave nothing",
          "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kVocabulary = 600;
    const Lm student(4, kVocabulary, 8, 1, 79);
    Lm teacher = student;
    // Logits -1, 0 and 1 in turn: the two likeliest are as likely as 198 others.
    for (int64_t r = 0; r < 4; ++r)
        for (int64_t i = 0; i < 8; ++i) teacher.hidden[r * 8 + i] = i == 0;
    for (int64_t v = 0; v < kVocabulary; ++v)
        for (int64_t i = 0; i < 8; ++i) teacher.head[v * 8 + i] = static_cast<double>(v % 3) - 1;
    const std::vector<double> before(kVocabulary * 8, 0.0);
    const Settings settings{.kl_weight = 1, .top_k = 2};
    const std::vector<int32_t> targets{5, -1, 0, 1};
    const Call call(*gpu, student, teacher, targets, settings, before);
    gpu->run(call.args());
    check_close(call.results(), expected(student, teacher, targets, settings, before), settings, 1);

    const std::vector<int32_t> masked(4, -1);
    const Call nothing(*gpu, student, teacher, masked, settings, before);
    gpu->run(nothing.args());
    CHECK(nothing.results().ce == std::vector<double>(4, 0.0));
    CHECK(nothing.results().kl == std::vector<double>(4, 0.0));
    CHECK(nothing.results().d_hidden == std::vector<double>(4 * 8, 0.0));
    CHECK(nothing.results().d_head == before);
}

TEST_CASE("on a GPU a sequence's vocabulary losses do not depend on the others, and calls repeat", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // At this vocabulary a block holds 4096 rows and a chunk 1024. All together make blocks of 2560 and 2240
    // rows, each alone one block of two chunks.
    constexpr int64_t kLength = 1600, kSequences = 3, kVocabulary = 131072, kWidth = 32;
    const Settings settings{.ce_weight = 0.5, .kl_weight = 0.5, .reverse_kl_weight = 0.25, .temperature = 2};
    const Lm student(kSequences * kLength, kVocabulary, kWidth, 3, 80);
    const Lm teacher(kSequences * kLength, kVocabulary, kWidth, 3, 81);
    const auto targets = some_targets(kSequences * kLength, kVocabulary);
    const std::vector<double> before(kVocabulary * kWidth, 0.0);
    const auto run = [&](const Lm& s, const Lm& t, const std::vector<int32_t>& y) {
        const Call call(*gpu, s, t, y, settings, before);
        VocabularyLoss args = call.args();
        args.sequence_length = kLength;
        gpu->run(args);
        return call.results();
    };
    const Results all = run(student, teacher, targets);
    const Results again = run(student, teacher, targets);
    CHECK(again.d_head == all.d_head);
    CHECK(again.d_hidden == all.d_hidden);
    std::vector<double> d_head(kVocabulary * kWidth, 0.0);
    for (int64_t i = 0; i < kSequences; ++i) {
        CAPTURE(i);
        const int64_t begin = i * kLength;
        const Results alone = run(student.part(begin, kLength), teacher.part(begin, kLength),
                                  {targets.begin() + begin, targets.begin() + begin + kLength});
        const auto same = [&](const std::vector<double>& part, const std::vector<double>& whole,
                              int64_t columns) {
            return std::equal(part.begin(), part.end(), whole.begin() + begin * columns);
        };
        CHECK(same(alone.ce, all.ce, 1));
        CHECK(same(alone.kl, all.kl, 1));
        CHECK(same(alone.reverse_kl, all.reverse_kl, 1));
        CHECK(same(alone.d_hidden, all.d_hidden, kWidth));
        for (size_t k = 0; k < d_head.size(); ++k) d_head[k] += alone.d_head[k];
    }
    // The same terms in another order.
    CHECK(norm_error(all.d_head, d_head) < 1e-5);

    // Rows beside a chunk's end and a block's, by definition.
    for (const int64_t begin : {1020, 2556}) {
        CAPTURE(begin);
        const std::vector<int32_t> part_targets(targets.begin() + begin, targets.begin() + begin + 8);
        const Results wanted =
            expected(student.part(begin, 8), teacher.part(begin, 8), part_targets, settings, before);
        const auto part = [&](const std::vector<double>& values, int64_t columns) {
            return std::vector<double>(values.begin() + begin * columns,
                                       values.begin() + (begin + 8) * columns);
        };
        CHECK(excess(part(all.ce, 1), wanted.ce, 1e-5, 1e-5) <= 1);
        CHECK(excess(part(all.kl, 1), wanted.kl, 1e-5, 1e-5) <= 1);
        CHECK(excess(part(all.reverse_kl, 1), wanted.reverse_kl, 1e-5, 1e-5) <= 1);
        CHECK(norm_error(part(all.d_hidden, kWidth), wanted.d_hidden) < 0x1p-7);
    }
}
