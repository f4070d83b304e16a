#include "importance/confidence.h"

#include <cmath>

#include "tests/catch.h"

using namespace minipuzzle::importance;

TEST_CASE("Student's t quantiles are the tables'") {
    // Values of R's qt(0.975, df), printed to ten digits.
    CHECK(student_t_quantile(0.975, 7) == Approx(2.364624252).epsilon(1e-8));
    CHECK(student_t_quantile(0.975, 31) == Approx(2.039513446).epsilon(1e-8));
    CHECK(student_t_quantile(0.975, 1023) == Approx(1.962280).epsilon(1e-5));
    CHECK(student_t_quantile(0.025, 7) == Approx(-2.364624252).epsilon(1e-8));
}

TEST_CASE("With equal lengths the interval is the plain paired one") {
    const std::vector<double> d{0.1, 0.3, 0.2, 0.4, 0.0, 0.2, 0.3, 0.1};
    const auto interval = paired_interval(d, std::vector<int64_t>(8, 512));
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
    const auto interval = paired_interval(d, tokens);
    REQUIRE(interval);
    CHECK(((*interval)[0] + (*interval)[1]) / 2 == Approx(0.3));
}

TEST_CASE("Under eight sequences there is no interval") {
    CHECK(!paired_interval(std::vector<double>(7, 0.1), std::vector<int64_t>(7, 10)));
    CHECK(paired_interval(std::vector<double>(8, 0.1), std::vector<int64_t>(8, 10)));
}
