// How a long computation reports and is asked to stop, without knowing about terminals or signals.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace minipuzzle {

struct ProgressUpdate {
    std::string what;  // "scoring", "distilling"
    double done = 0;   // in `unit`s
    double total = 0;
    std::string unit;    // "layer-passes", "tokens"
    std::string detail;  // "loss 2.31", may be empty
    // Where the reporter knows it better than the share that is done says.
    std::optional<double> seconds_left = std::nullopt;
};

// Callbacks of a run; both may be empty. `stop_requested` is polled between steps: the callee saves its state
// and throws Interrupted.
struct RunControl {
    std::function<void(const ProgressUpdate&)> progress;
    std::function<bool()> stop_requested;

    void report(const ProgressUpdate& update) const {
        if (progress) progress(update);
    }
    bool stopping() const { return stop_requested && stop_requested(); }
};

// Thrown after state was saved because stop_requested answered true; main exits 130. `what` says where the
// state is.
struct Interrupted {
    std::string what;
};

}  // namespace minipuzzle
