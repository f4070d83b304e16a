#include "runtime/work_progress.h"

#include "tests/catch.h"

using namespace minipuzzle;

namespace {

// Kinds at very different speeds: seconds a unit of work.
constexpr double kSeconds[kWorkKinds] = {0.5, 2, 0.125, 4};

double time_of(const Work& work) {
    double sum = 0;
    for (int i = 0; i < kWorkKinds; ++i) sum += work.of[i] * kSeconds[i];
    return sum;
}

struct FakeTime {
    double now = 1000;
    ProgressUpdate last;
    RunControl control{.progress = [this](const ProgressUpdate& update) { last = update; },
                       .stop_requested = {}};
    WorkProgress progress{"measuring", control, [this] { return now; }};

    void spend(const Work& work) {
        now += time_of(work);
        progress.advance(work);
    }
};

}  // namespace

TEST_CASE("the time left is exact where every kind of work has its own speed") {
    FakeTime fake;
    const Work batch{{10, 4, 20, 3}}, pairs{{2, 1, 3, 30}};  // the later stage is mostly head
    for (int i = 0; i < 3; ++i) fake.progress.announce(batch);
    fake.progress.announce(pairs);
    double left = 3 * time_of(batch) + time_of(pairs);

    fake.now += 500;  // loading, dry runs
    fake.progress.advance({});
    CHECK(!fake.last.seconds_left);
    fake.now += 60;  // what happens once, in the first interval
    for (int b = 0; b < 3; ++b) {
        for (int kind = 0; kind < kWorkKinds; ++kind)
            for (int part = 0; part < 2; ++part) {
                Work work;
                work.of[kind] = batch.of[kind] / 2;
                fake.spend(work);
            }
        left -= time_of(batch);
        CAPTURE(b);
        CHECK(fake.last.seconds_left.value() == Approx(left));
    }
    CHECK(fake.last.done == 2 * 3 * batch.total());
    CHECK(fake.last.total == 2 * (3 * batch.total() + pairs.total()));
    fake.progress.begin_sweep();
    fake.now += 100;
    fake.progress.advance({});
    CHECK(fake.last.seconds_left.value() == Approx(time_of(pairs)));
    fake.spend(pairs);
    CHECK(fake.last.seconds_left.value() == 0);
}

TEST_CASE("intervals of several kinds give a time left that is right for more of the same") {
    FakeTime fake;
    const Work batch{{10, 4, 20, 3}};
    for (int i = 0; i < 8; ++i) fake.progress.announce(batch);
    fake.progress.advance({});
    fake.now += 30;
    for (int done = 1; done <= 8; ++done) {
        fake.spend(batch);
        // The first interval, with the half minute, counts only while it is the only one.
        const double rest = (8 - done) * time_of(batch);
        CHECK(fake.last.seconds_left.value() == Approx(done == 1 ? rest + 7 * 30 : rest));
    }
}

TEST_CASE("work done by an earlier run says nothing of the speed") {
    FakeTime fake;
    const Work batch{{10, 4, 20, 3}};
    for (int i = 0; i < 4; ++i) fake.progress.announce(batch);
    fake.progress.skip(batch);
    fake.progress.skip(batch);
    fake.progress.report();
    CHECK(!fake.last.seconds_left);
    CHECK(fake.last.done / fake.last.total == Approx(0.5));
    fake.progress.advance({});
    fake.spend(batch);
    CHECK(fake.last.seconds_left.value() == Approx(time_of(batch)));
}
