#include "importance/confidence.h"

#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/random.h"
#include "tests/catch.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

// A document a window.
std::vector<int64_t> one_each(std::size_t windows) {
    std::vector<int64_t> documents(windows);
    std::iota(documents.begin(), documents.end(), 0);
    return documents;
}

std::optional<Interval> interval_of(const std::vector<double>& differences,
                                    const std::vector<int64_t>& tokens) {
    return paired_interval(differences, tokens, one_each(differences.size()));
}

// Share of `runs` runs in which the confidence sequence loses the true mean, zero, at any of the looks: after
// every document from the 16th, where the first round of --until-certain ends, to the 200th.
double lost_at_any_look(double alpha, int runs,
                        const std::function<double(const CounterRandom&, int64_t)>& draw) {
    int lost = 0;
    for (int run = 0; run < runs; ++run) {
        const CounterRandom random(static_cast<uint64_t>(run), "draws");
        DocumentSums sums;
        bool any = false;
        for (int64_t i = 0; i < 200 && !any; ++i) {
            sums.values.push_back(draw(random, i));
            sums.tokens.push_back(1);
            if (i < 15) continue;
            const auto interval = confidence_sequence(sums, alpha, 64);
            any = interval && ((*interval)[0] > 0 || (*interval)[1] < 0);
        }
        lost += any;
    }
    return lost / static_cast<double>(runs);
}

}  // namespace

TEST_CASE("Student's t quantiles are the tables'") {
    // Values of R's qt(0.975, df), printed to ten digits.
    CHECK(student_t_quantile(0.975, 7) == Approx(2.364624252).epsilon(1e-8));
    CHECK(student_t_quantile(0.975, 31) == Approx(2.039513446).epsilon(1e-8));
    CHECK(student_t_quantile(0.975, 1023) == Approx(1.962280).epsilon(1e-5));
    CHECK(student_t_quantile(0.025, 7) == Approx(-2.364624252).epsilon(1e-8));
}

TEST_CASE("With equal lengths the interval is the plain paired one") {
    const std::vector<double> d{0.1, 0.3, 0.2, 0.4, 0.0, 0.2, 0.3, 0.1};
    const auto interval = interval_of(d, std::vector<int64_t>(8, 512));
    REQUIRE(interval);
    double mean = 0, squares = 0;
    for (double x : d) mean += x / 8;
    for (double x : d) squares += (x - mean) * (x - mean);
    const double half = student_t_quantile(0.975, 7) * std::sqrt(squares / 7 / 8);
    CHECK((*interval)[0] == Approx(mean - half));
    CHECK((*interval)[1] == Approx(mean + half));
}

TEST_CASE("Longer sequences weigh more, and the interval is around the weighted mean") {
    const std::vector<double> d{1, 0, 0, 0, 0, 0, 0, 0};
    const std::vector<int64_t> tokens{300, 100, 100, 100, 100, 100, 100, 100};
    const auto interval = interval_of(d, tokens);
    REQUIRE(interval);
    CHECK(((*interval)[0] + (*interval)[1]) / 2 == Approx(0.3));
}

TEST_CASE("Under eight documents there is no interval, however many windows they give") {
    CHECK(!interval_of(std::vector<double>(7, 0.1), std::vector<int64_t>(7, 10)));
    CHECK(interval_of(std::vector<double>(8, 0.1), std::vector<int64_t>(8, 10)));
    std::vector<int64_t> documents(70);
    for (int64_t i = 0; i < 70; ++i) documents[i] = i % 7;
    CHECK(!paired_interval(std::vector<double>(70, 0.1), std::vector<int64_t>(70, 10), documents));
}

TEST_CASE("Windows of one document count once: copies of them leave the interval as it is") {
    const std::vector<double> d{0.1, 0.3, 0.2, 0.4, 0.0, 0.2, 0.3, 0.1, 0.7};
    const std::vector<int64_t> tokens{512, 512, 80, 512, 300, 512, 512, 17, 512};
    std::vector<double> twice;
    std::vector<int64_t> tokens_twice, documents;
    for (std::size_t i = 0; i < d.size(); ++i)
        for (int copy = 0; copy < 2; ++copy) {
            twice.push_back(d[i]);
            tokens_twice.push_back(tokens[i]);
            documents.push_back(static_cast<int64_t>(i));
        }
    const auto once = interval_of(d, tokens), clustered = paired_interval(twice, tokens_twice, documents);
    REQUIRE((once && clustered));
    CHECK((*clustered)[0] == Approx((*once)[0]));
    CHECK((*clustered)[1] == Approx((*once)[1]));
    // as independent windows they would seem to say more
    const auto independent = interval_of(twice, tokens_twice);
    CHECK((*independent)[1] - (*independent)[0] < 0.75 * ((*once)[1] - (*once)[0]));
}

TEST_CASE("Intervals clustered by document cover the mean; window by window they would not", "[slow]") {
    // 40 documents of 6 windows, a window = its document's level + its own part, both of variance one
    int covered = 0, naive = 0;
    constexpr int kRuns = 1000;
    for (int run = 0; run < kRuns; ++run) {
        const CounterRandom level(static_cast<uint64_t>(run), "level"),
            own(static_cast<uint64_t>(run), "own");
        std::vector<double> values;
        std::vector<int64_t> documents;
        for (int64_t i = 0; i < 240; ++i) {
            values.push_back(level.normal(i / 6) + own.normal(i));
            documents.push_back(i / 6);
        }
        const std::vector<int64_t> tokens(240, 512);
        const auto interval = paired_interval(values, tokens, documents);
        covered += (*interval)[0] < 0 && (*interval)[1] > 0;
        const auto window_by_window = interval_of(values, tokens);
        naive += (*window_by_window)[0] < 0 && (*window_by_window)[1] > 0;
    }
    // 95 % within four standard errors of the share
    CHECK(std::abs(covered / double{kRuns} - 0.95) < 4 * std::sqrt(0.95 * 0.05 / kRuns));
    CHECK(naive / double{kRuns} < 0.80);
}

TEST_CASE("Looking after every document loses the mean no more often than alpha", "[slow]") {
    constexpr double kAlpha = 0.05;
    constexpr int kRuns = 2000;
    // four standard errors of the share
    const double most = kAlpha + 4 * std::sqrt(kAlpha * (1 - kAlpha) / kRuns);
    const auto normal = [](const CounterRandom& random, int64_t i) { return 3 * random.normal(i); };
    CHECK(lost_at_any_look(kAlpha, kRuns, normal) <= most);
    // A mean of four exponential deviates: skewness one, far more than a mean over hundreds of tokens has.
    // The bound is asymptotic where the data are not normal.
    const auto skewed = [](const CounterRandom& random, int64_t i) {
        double sum = -4;
        for (int64_t k = 0; k < 4; ++k) sum -= std::log(random.uniform(4 * i + k));
        return sum;
    };
    CHECK(lost_at_any_look(kAlpha, kRuns, skewed) <= most);
}

TEST_CASE("Student's interval is no confidence sequence: looking often loses the mean") {
    std::vector<double> critical(101);
    for (int64_t n = 8; n <= 100; n += 4) critical[n] = student_t_quantile(0.975, n - 1);
    int lost = 0;
    for (int run = 0; run < 300; ++run) {
        const CounterRandom random(static_cast<uint64_t>(run), "draws");
        DocumentSums sums;
        bool any = false;
        for (int64_t i = 0; i < 100; ++i) {
            sums.values.push_back(random.normal(i));
            sums.tokens.push_back(1);
            const double t = critical[i + 1];
            any = any || (t > 0 && std::abs(sums.mean()) > t * standard_error(sums));
        }
        lost += any;
    }
    CHECK(lost > 0.15 * 300);
}

TEST_CASE("A confidence sequence is the set of means that the Bayes factor does not reject") {
    const std::vector<double> values{0.4, 0.1, 0.5, -0.2, 0.3, 0.9, 0.2, 0.4, 0.1, 0.6, 0.2, 0.3};
    const double n = 12, alpha = 0.02;
    const DocumentSums sums{.values = values, .tokens = std::vector<double>(12, 1.0)};
    const auto interval = confidence_sequence(sums, alpha, 32);
    REQUIRE(interval);
    const double g = (-2 * std::log(alpha) + std::log(1 - 2 * std::log(alpha))) / 32;
    double squares = 0;
    for (double x : values) squares += (x - sums.mean()) * (x - sums.mean());
    for (const double end : *interval) {
        const double t2 = n * (sums.mean() - end) * (sums.mean() - end) / (squares / (n - 1));
        const double factor =
            std::pow((1 + t2 / (n - 1)) / (1 + t2 / ((n - 1) * (1 + n * g))), n / 2) / std::sqrt(1 + n * g);
        CHECK(factor == Approx(1 / alpha));
    }
}

TEST_CASE("With many documents a confidence sequence is the asymptotic one") {
    DocumentSums sums;
    for (int64_t i = 0; i < 100000; ++i) {
        sums.values.push_back(i % 2 ? 1 : -1);
        sums.tokens.push_back(1);
    }
    const double alpha = 0.001, n = 100000;
    const auto interval = confidence_sequence(sums, alpha, 1000);
    REQUIRE(interval);
    const double g = (-2 * std::log(alpha) + std::log(1 - 2 * std::log(alpha))) / 1000;
    const double half = std::sqrt(2 * (n * g + 1) / (n * n * g) * std::log(std::sqrt(n * g + 1) / alpha));
    // terms of order 1/n are left out of the asymptotic width
    CHECK(((*interval)[1] - (*interval)[0]) / 2 == Approx(half).epsilon(1e-3));
}

TEST_CASE(
    "A confidence sequence needs eight documents, and is everything where alpha asks too much of them") {
    const auto sequence = [](std::size_t n, double alpha) {
        DocumentSums sums{.values = std::vector<double>(n), .tokens = std::vector<double>(n, 1.0)};
        for (std::size_t i = 0; i < n; ++i) sums.values[i] = i % 3;
        return confidence_sequence(sums, alpha, 8);
    };
    CHECK(!sequence(7, 0.05));
    CHECK(sequence(8, 0.05));
    CHECK(!sequence(8, 1e-9));
}
