// What the program says on stderr while it works: notes and progress.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "runtime/run_control.h"

namespace minipuzzle::cli {

enum class Loudness { quiet, normal, verbose };

// On a terminal one bar with rate and time left, elsewhere a line every ten seconds. Notes are held back
// until the work proves to have begun (the first progress or finish()), so that bad input is answered by one
// line.
class Console {
  public:
    explicit Console(Loudness loudness, std::FILE* stream = stderr);
    ~Console() { clear_bar(); }
    Console(const Console&) = delete;
    Console& operator=(const Console&) = delete;

    // What was understood and decided; not with -q.
    void note(const std::string& text);
    // Only with -v.
    void detail(const std::string& text);
    void update(const ProgressUpdate& update);
    // The work is done: shows the notes still held back and takes the bar away.
    void finish();

  private:
    using Clock = std::chrono::steady_clock;
    void flush_notes();
    void clear_bar();
    std::string line(const ProgressUpdate& update, bool bar) const;

    Loudness loudness_;
    std::FILE* stream_;
    bool terminal_;
    bool bar_shown_ = false;
    std::vector<std::string> held_back_;
    std::string task_;  // what the clock below belongs to
    Clock::time_point started_, last_shown_;
    double done_at_start_ = 0;
};

// "1h 02m", "3m 20s", "12s".
std::string format_duration(double seconds);

}  // namespace minipuzzle::cli
