#include "distill/schedule.h"

#include "tests/catch.h"

using minipuzzle::distill::Schedule;

TEST_CASE("The learning rate warms up linearly and falls along half a cosine") {
    const Schedule schedule{.peak = 0.001, .min_ratio = 0.1, .warmup = 10, .steps = 110};
    CHECK(schedule.at(1) == Approx(0.0001));
    CHECK(schedule.at(5) == Approx(0.0005));
    CHECK(schedule.at(10) == Approx(0.001));
    CHECK(schedule.at(35) == Approx(0.0001 + 0.0009 * 0.5 * (1 + 0.7071067811865476)));
    CHECK(schedule.at(60) == Approx(0.0001 + 0.0009 * 0.5));
    CHECK(schedule.at(110) == Approx(0.0001));
}

TEST_CASE("Without warm-up the first step lies on the cosine, and a run may end inside its warm-up") {
    const Schedule plain{.peak = 1, .min_ratio = 0, .warmup = 0, .steps = 2};
    CHECK(plain.at(1) == Approx(0.5));
    CHECK(plain.at(2) == Approx(0).margin(1e-15));
    const Schedule brief{.peak = 1, .min_ratio = 0.1, .warmup = 10, .steps = 4};
    CHECK(brief.at(4) == Approx(0.4));
}
