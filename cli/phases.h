// What a command's time went into.
#pragma once

#include <chrono>
#include <string>

#include "cli/progress.h"

namespace minipuzzle::cli {

// Told where each phase begins; says with -v, at the end, how long each took: "context 0.31 s, load 0.05 s,
// ...".
class Phases {
  public:
    explicit Phases(Console& console) : console_(console) {}

    void begin(const std::string& phase);
    // The last phase is over.
    void finish();

  private:
    using Clock = std::chrono::steady_clock;
    void close();

    Console& console_;
    std::string open_, line_;
    Clock::time_point since_{};
};

}  // namespace minipuzzle::cli
