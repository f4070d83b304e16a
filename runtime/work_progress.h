// WorkProgress: how far a run of several sweeps is, and how long the rest takes at the speed measured so far.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "runtime/run_control.h"
#include "runtime/work.h"

namespace minipuzzle {

// Seconds that each kind of work took, from times between which work of one or several kinds was done.
class WorkClock {
  public:
    // Gives seconds from whatever beginning; the steady clock by default.
    using Now = std::function<double()>;
    explicit WorkClock(Now now = {});

    // Time before this call counts for nothing. What happens once (code loaded, algorithms chosen, memory
    // taken) falls into the first interval that follows, which therefore counts only until there is another.
    void start();
    // That work was done since the last start() or advance(). An interval of several kinds is shared between
    // them by what they are expected to take.
    void advance(const Work& done);
    // For that much work at the speed so far; a kind that has not been seen is taken to be as fast as the
    // rest. None before anything was measured.
    std::optional<double> seconds(const Work& work) const;

  private:
    struct Measured {
        Work work, time;
    };
    static std::array<double, kWorkKinds> seconds_each(const Measured& measured);  // of one multiply-add

    Now now_;
    double since_ = 0;
    bool cold_ = true;
    Measured first_, warm_;
};

// Reports FLOPs done, all there are, and the time left.
class WorkProgress {
  public:
    WorkProgress(std::string what, const RunControl& control, WorkClock::Now now = {});

    // Work to come; every part of a run announces what it knows of before the first part begins.
    void announce(const Work& work) { announced_ += work; }
    const Work& announced() const { return announced_; }
    // Takes back what was announced.
    void withdraw(const Work& work) { announced_ -= work; }
    // Work that an earlier run has done: it counts as done and says nothing of the speed.
    void skip(const Work& work) { done_ += work; }
    // A sweep follows: the clock starts at its first advance(), so that what it prepares counts for nothing.
    void begin_sweep() { begins_ = true; }
    // As VariantSweep::run tells it.
    void advance(const Work& work);
    void report() const;

  private:
    std::string what_;
    const RunControl& control_;
    WorkClock clock_;
    Work announced_, done_;
    bool begins_ = true;
};

}  // namespace minipuzzle
