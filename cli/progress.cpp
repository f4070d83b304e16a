#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

namespace minipuzzle::cli {
namespace {

constexpr double kBarInterval = 0.1;    // seconds between two drawings on a terminal
constexpr double kLineInterval = 10.0;  // seconds between two lines elsewhere
constexpr int kBarWidth = 24;

double seconds(std::chrono::steady_clock::duration duration) {
    return std::chrono::duration<double>(duration).count();
}

std::string format_rate(double rate) {
    constexpr std::pair<double, const char*> kScales[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
    for (const auto& [scale, name] : kScales)
        if (rate >= scale) return fmt::format("{:.1f} {}", rate / scale, name);
    return fmt::format("{:.1f} ", rate);
}

}  // namespace

std::string format_duration(double value) {
    const auto total = static_cast<int64_t>(value + 0.5);
    if (total >= 3600) return fmt::format("{}h {:02}m", total / 3600, total / 60 % 60);
    if (total >= 60) return fmt::format("{}m {:02}s", total / 60, total % 60);
    return fmt::format("{}s", total);
}

Console::Console(Loudness loudness, std::FILE* stream)
    : loudness_(loudness), stream_(stream), terminal_(isatty(fileno(stream)) != 0) {}

void Console::note(const std::string& text) {
    if (loudness_ != Loudness::quiet) held_back_.push_back(text);
}

void Console::detail(const std::string& text) {
    if (loudness_ == Loudness::verbose) held_back_.push_back(text);
}

void Console::flush_notes() {
    if (held_back_.empty()) return;
    clear_bar();
    for (const std::string& text : held_back_) fmt::print(stream_, "{}\n", text);
    held_back_.clear();
}

void Console::clear_bar() {
    if (!bar_shown_) return;
    fmt::print(stream_, "\r\x1b[K");
    std::fflush(stream_);
    bar_shown_ = false;
}

std::string Console::line(const ProgressUpdate& update, bool bar) const {
    const double share = update.total > 0 ? std::clamp(update.done / update.total, 0.0, 1.0) : 0.0;
    const double elapsed = seconds(Clock::now() - started_);
    const double rate = elapsed > 0 ? (update.done - done_at_start_) / elapsed : 0;
    std::string text = update.what + " ";
    if (bar) {
        const int filled = static_cast<int>(share * kBarWidth);
        text += fmt::format("[{:#<{}}{:.<{}}] ", "", filled, "", kBarWidth - filled);
    }
    text += fmt::format("{:.0f}%", share * 100);
    if (rate > 0) {
        text += fmt::format("  {}{}/s", format_rate(rate), update.unit);
        const double left = update.seconds_left.value_or((update.total - update.done) / rate);
        text += fmt::format("  {} left", format_duration(left));
    }
    if (!update.detail.empty()) text += "  " + update.detail;
    return text;
}

void Console::update(const ProgressUpdate& update) {
    if (loudness_ == Loudness::quiet) return;
    flush_notes();
    const auto now = Clock::now();
    if (update.what != task_ || update.done < done_at_start_) {
        task_ = update.what;
        started_ = last_shown_ = now;
        done_at_start_ = update.done;
    }
    const bool complete = update.total > 0 && update.done >= update.total;
    const double since = seconds(now - last_shown_);
    if (terminal_) {
        if (since < kBarInterval && !complete) return;
        fmt::print(stream_, "\r\x1b[K{}", line(update, true));
        std::fflush(stream_);
        bar_shown_ = true;
    } else {
        if (since < kLineInterval) return;
        fmt::print(stream_, "{}\n", line(update, false));
    }
    last_shown_ = now;
}

void Console::finish() {
    flush_notes();
    clear_bar();
}

}  // namespace minipuzzle::cli
