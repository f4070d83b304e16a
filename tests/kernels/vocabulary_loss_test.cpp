#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// 1100 columns make two tiles and a part; 150 rows a block and a part.
constexpr int64_t kVocab = 1100, kWidth = 12, kTeacherWidth = 17;

struct Lm {
    std::vector<double> hidden, head;
    int64_t width;

    Lm(int64_t rows, int64_t columns, uint64_t seed, int64_t vocabulary = kVocab) : width(columns) {
        Random random(seed);
        hidden = random.normals(rows * columns);
        head = random.normals(vocabulary * columns);
    }
    double logit(int64_t r, int64_t v) const {
        double z = 0;
        for (int64_t i = 0; i < width; ++i) z += hidden[r * width + i] * head[v * width + i];
        return z;
    }
};

template <class T>
struct Values {
    std::vector<T> hidden, head;
    int64_t width;
    explicit Values(const Lm& lm)
        : hidden(convert<T>(lm.hidden)), head(convert<T>(lm.head)), width(lm.width) {}
    LmHead view() const {
        const auto rows = static_cast<int64_t>(hidden.size()) / width;
        return {tensor(hidden, {rows, width}),
                tensor(head, {static_cast<int64_t>(head.size()) / width, width})};
    }
};

std::vector<int32_t> some_targets(int64_t rows, int64_t vocabulary = kVocab) {
    std::vector<int32_t> targets(rows);
    for (int64_t r = 0; r < rows; ++r) {
        targets[r] = r % 5 == 3 ? -1 : static_cast<int32_t>(r * 379 % vocabulary);
    }
    return targets;
}

std::vector<double> logits(const Lm& lm, int64_t r) {
    std::vector<double> z(lm.head.size() / lm.width);
    for (size_t v = 0; v < z.size(); ++v) z[v] = lm.logit(r, static_cast<int64_t>(v));
    return z;
}

double log_sum_exp(const std::vector<double>& z, double temperature = 1) {
    double sum = 0;
    for (const double x : z) sum += std::exp(x / temperature);
    return std::log(sum);
}

// KL(p || q), both softened.
double divergence(const std::vector<double>& p, const std::vector<double>& q, double temperature = 1) {
    const double lse_p = log_sum_exp(p, temperature), lse_q = log_sum_exp(q, temperature);
    double sum = 0;
    for (size_t v = 0; v < p.size(); ++v) {
        if (std::isinf(p[v])) continue;
        const double log_p = p[v] / temperature - lse_p;
        sum += std::exp(log_p) * (log_p - (q[v] / temperature - lse_q));
    }
    return sum;
}

// p without the tokens that are less likely than the k-th.
std::vector<double> top_of(const std::vector<double>& p, int64_t k) {
    std::vector<double> sorted = p, top = p;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (double& z : top) {
        if (z < sorted[k - 1]) z = -std::numeric_limits<double>::infinity();
    }
    return top;
}

// The largest relative error over rows, which are all of one order.
template <class T>
double row_error(const std::vector<T>& actual, const std::vector<double>& expected) {
    double error = 0;
    for (size_t r = 0; r < expected.size(); ++r) {
        const double difference = std::abs(actual[r] - expected[r]);
        error = std::max(error, expected[r] == 0 ? difference : difference / std::abs(expected[r]));
    }
    return error;
}

int64_t argmax(const std::vector<double>& z) { return std::max_element(z.begin(), z.end()) - z.begin(); }

}  // namespace

TEMPLATE_TEST_CASE("the vocabulary loss gives cross-entropy and softened divergence per token", "", float,
                   double) {
    constexpr int64_t kRows = 150;
    const double temperature = GENERATE(1.0, 2.5);
    const Lm student(kRows, kWidth, 31), teacher(kRows, kTeacherWidth, 32);
    const auto targets = some_targets(kRows);
    std::vector<double> ce(kRows, 0.0), kl(kRows, 0.0);
    for (int64_t r = 0; r < kRows; ++r) {
        if (targets[r] < 0) continue;
        const auto z = logits(student, r);
        ce[r] = log_sum_exp(z) - z[targets[r]];
        kl[r] = temperature * temperature * divergence(logits(teacher, r), z, temperature);
    }
    const Values<TestType> s(student), t(teacher);
    std::vector<TestType> actual_ce(kRows, 9), actual_kl(kRows, 9);
    const int64_t length = GENERATE(0, 50);
    make_cpu_backend(DTypeOf<TestType>::value, 2)
        ->run(VocabularyLoss{.student = s.view(),
                             .teacher = t.view(),
                             .targets = tensor(targets, {kRows}),
                             .sequence_length = length,
                             .temperature = temperature,
                             .ce = tensor(actual_ce, {kRows}),
                             .kl = tensor(actual_kl, {kRows}),
                             .d_hidden = {},
                             .d_head = {}});
    const double tolerance = std::is_same_v<TestType, float> ? 1e-5 : 1e-12;
    CHECK(row_error(actual_ce, ce) < tolerance);
    CHECK(row_error(actual_kl, kl) < tolerance);
}

TEST_CASE("the vocabulary loss's gradients match central differences") {
    struct Mix {
        double ce_weight, kl_weight, temperature;
    };
    const Mix mix = GENERATE(Mix{1, 0, 1}, Mix{0, 1, 1}, Mix{0.3, 0.7, 2}, Mix{0, 1.5, 0.5});
    constexpr int64_t kRows = 9, kSmallVocab = 530;
    Lm student(kRows, kWidth, 33, kSmallVocab);
    const Lm teacher(kRows, kTeacherWidth, 34, kSmallVocab);
    const Values<double> t(teacher);
    const auto targets = some_targets(kRows, kSmallVocab);
    std::vector<double> ce(kRows), kl(kRows), d_hidden(student.hidden.size(), 8.0),
        d_head(student.head.size(), 0.5);
    const auto cpu = make_cpu_backend(DType::f64, 2);
    VocabularyLoss args{
        .student = {tensor(student.hidden, {kRows, kWidth}), tensor(student.head, {kSmallVocab, kWidth})},
        .teacher = t.view(),
        .targets = tensor(targets, {kRows}),
        .sequence_length = 3,
        .ce_weight = mix.ce_weight,
        .kl_weight = mix.kl_weight,
        .temperature = mix.temperature,
        .scale = 0.2,
        .ce = tensor(ce, {kRows}),
        .kl = tensor(kl, {kRows}),
        .d_hidden = tensor(d_hidden, {kRows, kWidth}),
        .d_head = tensor(d_head, {kSmallVocab, kWidth})};
    cpu->run(args);
    for (double& g : d_head) g -= 0.5;
    args.d_hidden = args.d_head = {};
    const auto loss = [&] {
        cpu->run(args);
        double sum = 0;
        for (int64_t r = 0; r < kRows; ++r) sum += 0.2 * (mix.ce_weight * ce[r] + mix.kl_weight * kl[r]);
        return sum;
    };
    CHECK(gradient_error(student.hidden, d_hidden, loss, 200) < 1e-7);
    CHECK(gradient_error(student.head, d_head, loss, 300) < 1e-7);
    for (int64_t i = 0; i < kWidth; ++i) CHECK(d_hidden[3 * kWidth + i] == 0);  // target -1
}

TEMPLATE_TEST_CASE(
    "the vocabulary loss gives the divergence in reverse and of the teacher's likeliest tokens", "", float,
    double) {
    constexpr int64_t kRows = 150;
    const double temperature = GENERATE(1.0, 2.0);
    const int64_t top_k = GENERATE(0, 1, 7, 600, 1100, 5000), top = std::min(top_k, kVocab);
    const Lm student(kRows, kWidth, 51), teacher(kRows, kTeacherWidth, 52);
    const auto targets = some_targets(kRows);
    std::vector<double> kl(kRows, 0.0), reverse_kl(kRows, 0.0);
    for (int64_t r = 0; r < kRows; ++r) {
        if (targets[r] < 0) continue;
        const auto z = logits(student, r), p = logits(teacher, r);
        kl[r] = temperature * temperature * divergence(top > 0 ? top_of(p, top) : p, z, temperature);
        reverse_kl[r] = temperature * temperature * divergence(z, p, temperature);
    }
    const Values<TestType> s(student), t(teacher);
    std::vector<TestType> ce(kRows, 9), actual_kl(kRows, 9), actual_reverse(kRows, 9);
    VocabularyLoss args{.student = s.view(),
                        .teacher = t.view(),
                        .targets = tensor(targets, {kRows}),
                        .sequence_length = 50,
                        .temperature = temperature,
                        .top_k = top_k,
                        .ce = tensor(ce, {kRows}),
                        .kl = tensor(actual_kl, {kRows}),
                        .reverse_kl = tensor(actual_reverse, {kRows}),
                        .d_hidden = {},
                        .d_head = {}};
    make_cpu_backend(DTypeOf<TestType>::value, 2)->run(args);
    const double tolerance = std::is_same_v<TestType, float> ? 1e-5 : 1e-12;
    CHECK(row_error(actual_kl, kl) < tolerance);
    if (top_k > 0)
        CHECK(actual_reverse == std::vector<TestType>(kRows, 9));
    else
        CHECK(row_error(actual_reverse, reverse_kl) < tolerance);

    // The bits do not depend on threads, on company, or on what else is asked for.
    std::vector<TestType> alone_kl(50), alone_reverse(50, 9);
    Values<TestType> s1 = s, t1 = t;
    s1.hidden.assign(s.hidden.begin() + 50 * kWidth, s.hidden.begin() + 100 * kWidth);
    t1.hidden.assign(t.hidden.begin() + 50 * kTeacherWidth, t.hidden.begin() + 100 * kTeacherWidth);
    const std::vector<int32_t> own(targets.begin() + 50, targets.begin() + 100);
    args.student = s1.view(), args.teacher = t1.view(), args.targets = tensor(own, {50});
    args.ce = {}, args.kl = tensor(alone_kl, {50}), args.reverse_kl = tensor(alone_reverse, {50});
    make_cpu_backend(DTypeOf<TestType>::value, 1)->run(args);
    CHECK(alone_kl == std::vector<TestType>(actual_kl.begin() + 50, actual_kl.begin() + 100));
    CHECK(alone_reverse == std::vector<TestType>(actual_reverse.begin() + 50, actual_reverse.begin() + 100));
}

TEST_CASE(
    "the gradients of the divergence in reverse and of the likeliest tokens match central differences") {
    struct Mix {
        double ce_weight, kl_weight, reverse_kl_weight, temperature;
        int64_t top_k;
    };
    const Mix mix = GENERATE(Mix{0, 0, 1, 1, 0}, Mix{0.2, 0.5, 0.8, 2, 0}, Mix{0, 1, 0, 1, 6},
                             Mix{0.3, 0.7, 0, 2, 100}, Mix{0, 0, 1.5, 0.5, 0}, Mix{0, 1, 0, 2, 530});
    constexpr int64_t kRows = 9, kSmallVocab = 530;
    Lm student(kRows, kWidth, 53, kSmallVocab);
    const Lm teacher(kRows, kTeacherWidth, 54, kSmallVocab);
    const Values<double> t(teacher);
    const auto targets = some_targets(kRows, kSmallVocab);
    std::vector<double> ce(kRows), kl(kRows), reverse_kl(kRows), d_hidden(student.hidden.size(), 8.0),
        d_head(student.head.size(), 0.5);
    const auto cpu = make_cpu_backend(DType::f64, 2);
    VocabularyLoss args{
        .student = {tensor(student.hidden, {kRows, kWidth}), tensor(student.head, {kSmallVocab, kWidth})},
        .teacher = t.view(),
        .targets = tensor(targets, {kRows}),
        .sequence_length = 3,
        .ce_weight = mix.ce_weight,
        .kl_weight = mix.kl_weight,
        .reverse_kl_weight = mix.reverse_kl_weight,
        .temperature = mix.temperature,
        .scale = 0.2,
        .top_k = mix.top_k,
        .ce = {},
        .kl = {},
        .reverse_kl = {},
        .d_hidden = tensor(d_hidden, {kRows, kWidth}),
        .d_head = tensor(d_head, {kSmallVocab, kWidth})};
    cpu->run(args);
    for (double& g : d_head) g -= 0.5;
    args.d_hidden = args.d_head = {};
    args.ce = tensor(ce, {kRows}), args.kl = tensor(kl, {kRows});
    args.reverse_kl = tensor(reverse_kl, {kRows});
    const auto loss = [&] {
        cpu->run(args);
        double sum = 0;
        for (int64_t r = 0; r < kRows; ++r)
            sum +=
                0.2 * (mix.ce_weight * ce[r] + mix.kl_weight * kl[r] + mix.reverse_kl_weight * reverse_kl[r]);
        return sum;
    };
    CHECK(gradient_error(student.hidden, d_hidden, loss, 200) < 1e-7);
    CHECK(gradient_error(student.head, d_head, loss, 300) < 1e-7);
    for (int64_t i = 0; i < kWidth; ++i) CHECK(d_hidden[3 * kWidth + i] == 0);  // target -1
}

TEST_CASE("the teacher's tokens that equal the last of its likeliest count too") {
    constexpr int64_t kRows = 2;
    const Lm student(kRows, kWidth, 55);
    Lm teacher(kRows, kTeacherWidth, 56);
    // Columns of both tiles that tie: the largest logit of row 0.
    for (const int64_t v : {3, 700, 1000}) {
        for (int64_t i = 0; i < kTeacherWidth; ++i)
            teacher.head[v * kTeacherWidth + i] = 10 * teacher.hidden[i];
    }
    const Values<double> s(student), t(teacher);
    const std::vector<int32_t> targets = {7, -1};
    const auto cpu = make_cpu_backend(DType::f64, 2);
    for (const int64_t top_k : {1, 2, 3}) {
        std::vector<double> kl(kRows, 9);
        cpu->run(VocabularyLoss{.student = s.view(),
                                .teacher = t.view(),
                                .targets = tensor(targets, {kRows}),
                                .top_k = top_k,
                                .ce = {},
                                .kl = tensor(kl, {kRows}),
                                .reverse_kl = {},
                                .d_hidden = {},
                                .d_head = {}});
        const auto z = logits(student, 0);
        double expected = -std::log(3.0) + log_sum_exp(z);
        for (const int64_t v : {3, 700, 1000}) expected -= z[v] / 3;
        CHECK(kl[0] == Approx(expected).epsilon(1e-12));
        CHECK(kl[1] == 0);
    }
}

TEST_CASE("a broken logit of the teacher shows with top_k and in reverse") {
    const float broken =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    const Lm student(2, kWidth, 57), teacher(2, kTeacherWidth, 58);
    const Values<float> s(student);
    Values<float> t(teacher);
    t.head[600 * kTeacherWidth] = broken;
    const std::vector<int32_t> targets = {1, 2};
    for (const int64_t top_k : {0, 5}) {
        std::vector<float> kl(2), reverse_kl(2);
        make_cpu_backend(DType::f32, 1)
            ->run(VocabularyLoss{.student = s.view(),
                                 .teacher = t.view(),
                                 .targets = tensor(targets, {2}),
                                 .top_k = top_k,
                                 .ce = {},
                                 .kl = tensor(kl, {2}),
                                 .reverse_kl = tensor(reverse_kl, {2}),
                                 .d_hidden = {},
                                 .d_head = {}});
        for (int64_t r = 0; r < 2; ++r) {
            CHECK(std::isnan(kl[r]));
            CHECK(std::isnan(reverse_kl[r]) == (top_k == 0));
        }
    }
}

TEST_CASE("the vocabulary loss needs no teacher, and masked blocks cost and change nothing") {
    constexpr int64_t kRows = 6;
    const Lm student(kRows, kWidth, 35);
    const Values<float> s(student);
    const std::vector<int32_t> targets = {-1, -1, -1, 5, -1, 1099};
    std::vector<float> ce(kRows, 9), kl(kRows, 9), d_hidden(kRows * kWidth, 9), d_head(kVocab * kWidth, 0);
    const auto cpu = make_cpu_backend(DType::f32, 2);
    VocabularyLoss args{.student = s.view(),
                        .teacher = {},
                        .targets = tensor(targets, {kRows}),
                        .sequence_length = 3,
                        .ce_weight = 1,
                        .kl_weight = 0,
                        .ce = tensor(ce, {kRows}),
                        .kl = tensor(kl, {kRows}),
                        .d_hidden = tensor(d_hidden, {kRows, kWidth}),
                        .d_head = tensor(d_head, {kVocab, kWidth})};
    cpu->run(args);
    CHECK(kl == std::vector<float>(kRows, 9));
    CHECK(ce[0] == 0);
    CHECK(ce[3] > 0);
    CHECK(std::count(d_hidden.begin(), d_hidden.end(), 0.0f) == 4 * kWidth);
    args.kl_weight = 1;
    CHECK_THROWS_AS(cpu->run(args), InternalError);
}

TEMPLATE_TEST_CASE("comparing logits gives every statistic of every variant", "", float, double) {
    constexpr int64_t kRows = 150;
    const Lm base(kRows, kWidth, 41);
    Lm near = base, far(kRows, kWidth, 43);
    Random random(44);
    for (double& h : near.hidden) h += 0.05 * random.normal();
    const auto targets = some_targets(kRows);
    const Values<TestType> b(base);
    const std::vector<Values<TestType>> v = {Values<TestType>(near), Values<TestType>(far)};
    const auto zeros = [&] { return std::vector<TestType>(kRows, 9); };
    struct Out {
        std::vector<TestType> loss, correct, kl, agrees, error, hidden_mse, cosine;
    };
    std::vector<Out> out(2, Out{zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()});
    auto base_loss = zeros(), base_correct = zeros(), base_power = zeros();
    CompareLogits args{.base = b.view(),
                       .targets = tensor(targets, {kRows}),
                       .sequence_length = GENERATE(0, 75),
                       .base_loss = tensor(base_loss, {kRows}),
                       .base_correct = tensor(base_correct, {kRows}),
                       .base_power = tensor(base_power, {kRows}),
                       .variants = {}};
    for (int i = 0; i < 2; ++i) {
        args.variants.push_back({.variant = v[i].view(),
                                 .loss = tensor(out[i].loss, {kRows}),
                                 .correct = tensor(out[i].correct, {kRows}),
                                 .kl = tensor(out[i].kl, {kRows}),
                                 .agrees = tensor(out[i].agrees, {kRows}),
                                 .error = tensor(out[i].error, {kRows}),
                                 .hidden_mse = tensor(out[i].hidden_mse, {kRows}),
                                 .cosine = tensor(out[i].cosine, {kRows})});
    }
    make_cpu_backend(DTypeOf<TestType>::value, 2)->run(args);

    constexpr bool kFloat = std::is_same_v<TestType, float>;
    const double tight = kFloat ? 1e-5 : 1e-11, loose = kFloat ? 1e-4 : 1e-10;
    for (int64_t r = 0; r < kRows; ++r) {
        const bool live = targets[r] >= 0;
        const auto z0 = logits(base, r);
        double power = 0;
        for (const double z : z0) power += z * z;
        CHECK(base_loss[r] == Approx(live ? log_sum_exp(z0) - z0[targets[r]] : 0).epsilon(tight));
        CHECK(base_correct[r] == (live && argmax(z0) == targets[r]));
        CHECK(base_power[r] == Approx(live ? power : 0).epsilon(tight));
        for (int i = 0; i < 2; ++i) {
            const Lm& variant = i == 0 ? near : far;
            const auto z = logits(variant, r);
            double error = 0, square = 0, inner = 0, hh = 0, bb = 0;
            for (int64_t c = 0; c < kVocab; ++c) error += (z[c] - z0[c]) * (z[c] - z0[c]);
            for (int64_t c = r * kWidth; c < (r + 1) * kWidth; ++c) {
                square += (variant.hidden[c] - base.hidden[c]) * (variant.hidden[c] - base.hidden[c]);
                inner += variant.hidden[c] * base.hidden[c];
                hh += variant.hidden[c] * variant.hidden[c];
                bb += base.hidden[c] * base.hidden[c];
            }
            CHECK(out[i].loss[r] == Approx(live ? log_sum_exp(z) - z[targets[r]] : 0).epsilon(tight));
            CHECK(out[i].correct[r] == (live && argmax(z) == targets[r]));
            CHECK(out[i].agrees[r] == (live && argmax(z) == argmax(z0)));
            CHECK(out[i].kl[r] ==
                  Approx(live ? divergence(z0, z) : 0).epsilon(loose).margin(kFloat ? 1e-6 : 0));
            CHECK(out[i].error[r] == Approx(live ? error : 0).epsilon(loose));
            CHECK(out[i].hidden_mse[r] == Approx(live ? square / kWidth : 0).epsilon(loose));
            CHECK(out[i].cosine[r] == Approx(live ? inner / std::sqrt(hh * bb) : 0).epsilon(tight));
        }
    }
}

TEST_CASE("comparing a model with itself finds no difference, and ties take the lowest index") {
    constexpr int64_t kRows = 3;
    Lm base(kRows, kWidth, 45);
    for (int64_t i = 0; i < kWidth; ++i) {  // columns 7 and 1000 tie for the largest logit of row 0
        base.head[7 * kWidth + i] = base.head[1000 * kWidth + i] = 10 * base.hidden[i];
    }
    const Values<float> b(base);
    const std::vector<int32_t> targets = {7, 1000, 3};
    std::vector<float> correct(kRows), kl(kRows, 1), error(kRows, 1), agrees(kRows), loss(kRows),
        base_loss(kRows);
    make_cpu_backend(DType::f32, 1)
        ->run(CompareLogits{.base = b.view(),
                            .targets = tensor(targets, {kRows}),
                            .base_loss = tensor(base_loss, {kRows}),
                            .base_correct = tensor(correct, {kRows}),
                            .base_power = {},
                            .variants = {{.variant = b.view(),
                                          .loss = tensor(loss, {kRows}),
                                          .correct = {},
                                          .kl = tensor(kl, {kRows}),
                                          .agrees = tensor(agrees, {kRows}),
                                          .error = tensor(error, {kRows}),
                                          .hidden_mse = {},
                                          .cosine = {}}}});
    CHECK(correct[0] == 1);
    CHECK(kl == std::vector<float>(kRows, 0));
    CHECK(error == std::vector<float>(kRows, 0));
    CHECK(agrees == std::vector<float>(kRows, 1));
    CHECK(loss == base_loss);
}

TEST_CASE("a NaN or infinite logit anywhere shows in the losses") {
    constexpr int64_t kRows = 2;
    const float broken =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    const Lm base(kRows, kWidth, 46);
    Values<float> b(base), v(base);
    v.head[600 * kWidth] = broken;
    const std::vector<int32_t> targets = {1, 2};
    std::vector<float> loss(kRows), kl(kRows), ce(kRows);
    const auto cpu = make_cpu_backend(DType::f32, 1);
    CompareLogits args{.base = b.view(),
                       .targets = tensor(targets, {kRows}),
                       .base_loss = {},
                       .base_correct = {},
                       .base_power = {},
                       .variants = {}};
    args.variants.resize(1);
    args.variants[0].variant = v.view();
    args.variants[0].loss = tensor(loss, {kRows});
    args.variants[0].kl = tensor(kl, {kRows});
    cpu->run(args);
    cpu->run(VocabularyLoss{.student = v.view(),
                            .teacher = {},
                            .targets = tensor(targets, {kRows}),
                            .ce_weight = 1,
                            .kl_weight = 0,
                            .ce = tensor(ce, {kRows}),
                            .kl = {},
                            .d_hidden = {},
                            .d_head = {}});
    for (int64_t r = 0; r < kRows; ++r) {
        CHECK(std::isnan(loss[r]));
        CHECK(std::isnan(kl[r]));
        CHECK(std::isnan(ce[r]));
    }
}
