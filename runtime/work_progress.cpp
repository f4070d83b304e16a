#include "runtime/work_progress.h"

#include <algorithm>
#include <chrono>

namespace minipuzzle {

namespace {

double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

WorkClock::WorkClock(Now now) : now_(now ? std::move(now) : Now(steady_seconds)) {}

void WorkClock::start() {
    since_ = now_();
    cold_ = true;
}

std::array<double, kWorkKinds> WorkClock::seconds_each(const Measured& measured) {
    std::array<double, kWorkKinds> each{};
    const double all = measured.work.total();
    for (int i = 0; i < kWorkKinds; ++i) {
        const double work = measured.work.of[i];
        if (work > 0)
            each[i] = measured.time.of[i] / work;
        else if (all > 0)
            each[i] = measured.time.total() / all;
    }
    return each;
}

void WorkClock::advance(const Work& done) {
    if (done.total() <= 0) return;
    const double now = now_(), seconds = now - since_;
    since_ = now;
    std::array<double, kWorkKinds> each = seconds_each(warm_);
    Work expected;
    for (int i = 0; i < kWorkKinds; ++i) expected.of[i] = done.of[i] * each[i];
    if (expected.total() <= 0) expected = done;
    Measured& into = cold_ ? first_ : warm_;
    if (cold_) first_ = {};
    cold_ = false;
    into.work += done;
    for (int i = 0; i < kWorkKinds; ++i) into.time.of[i] += seconds * expected.of[i] / expected.total();
}

std::optional<double> WorkClock::seconds(const Work& work) const {
    const Measured& measured = warm_.work.total() > 0 ? warm_ : first_;
    if (measured.work.total() <= 0) return std::nullopt;
    const std::array<double, kWorkKinds> each = seconds_each(measured);
    double sum = 0;
    for (int i = 0; i < kWorkKinds; ++i) sum += work.of[i] * each[i];
    return sum;
}

WorkProgress::WorkProgress(std::string what, const RunControl& control, WorkClock::Now now)
    : what_(std::move(what)), control_(control), clock_(std::move(now)) {}

void WorkProgress::advance(const Work& work) {
    if (begins_)
        clock_.start();
    else
        clock_.advance(work);
    begins_ = false;
    done_ += work;
    report();
}

void WorkProgress::report() const {
    Work left = announced_;
    left -= done_;
    for (double& kind : left.of) kind = std::max(kind, 0.0);  // more was done than announced
    control_.report({.what = what_,
                     .done = 2 * done_.total(),
                     .total = 2 * (done_.total() + left.total()),
                     .unit = "FLOP",
                     .detail = "",
                     .seconds_left = clock_.seconds(left)});
}

}  // namespace minipuzzle
