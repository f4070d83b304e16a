#include "cli/phases.h"

#include <fmt/format.h>

#include <utility>

namespace minipuzzle::cli {

void Phases::close() {
    if (open_.empty()) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - since_).count();
    line_ += fmt::format("{}{} {:.2f} s", line_.empty() ? "" : ", ", open_, seconds);
    open_.clear();
}

void Phases::begin(const std::string& phase) {
    close();
    open_ = phase;
    since_ = Clock::now();
}

void Phases::finish() {
    close();
    console_.detail(std::exchange(line_, {}));
}

}  // namespace minipuzzle::cli
