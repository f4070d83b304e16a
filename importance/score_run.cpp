#include "importance/score_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "importance/width.h"

namespace minipuzzle::importance {

namespace {

// The order that batches visit windows in, whatever is in a batch and was finished before: windows of one
// length together, the lengths by first appearance.
std::vector<int64_t> visiting_order(const std::vector<Window>& all, const std::vector<int64_t>& windows) {
    std::map<int64_t, std::vector<int64_t>> of_length;
    std::vector<int64_t> lengths, order;
    for (std::size_t i = 0; i < windows.size(); ++i) {
        const int64_t length = all.at(windows[i]).length;
        if (!of_length.count(length)) lengths.push_back(length);
        of_length[length].push_back(static_cast<int64_t>(i));
    }
    for (const int64_t length : lengths)
        order.insert(order.end(), of_length[length].begin(), of_length[length].end());
    return order;
}

}  // namespace

ScoreRun::ScoreRun(Backend& backend, const Architecture& architecture, WeightSource weights,
                   const Corpus& corpus, std::vector<Window> windows, ScoreState& state,
                   const RunControl& control)
    : backend_(backend),
      architecture_(architecture),
      weights_(weights),
      corpus_(corpus),
      windows_(std::move(windows)),
      state_(state),
      control_(control) {}

std::vector<int64_t> ScoreRun::documents() const {
    std::vector<int64_t> documents;
    for (const Window& window : windows_) documents.push_back(window.document);
    return documents;
}

std::vector<int64_t> ScoreRun::all_windows() const {
    std::vector<int64_t> all(windows_.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
}

double ScoreRun::work_of(const SweepSchedule& schedule, const std::vector<Window>& windows) const {
    double work = 0;
    for (const Window& window : windows)
        work += shared_multiply_adds(architecture_, schedule, window.length, window.length);
    return work;
}

void ScoreRun::announce(const std::vector<StudentPlan>& plans, int64_t windows) {
    MP_ASSERT(windows <= static_cast<int64_t>(windows_.size()));
    announced_ += work_of(make_schedule(architecture_, plans),
                          {windows_.begin(), windows_.begin() + static_cast<std::ptrdiff_t>(windows)});
}

void ScoreRun::report() const {
    control_.report({.what = "scoring",
                     .done = 2 * done_,
                     .total = 2 * std::max(announced_, done_),
                     .unit = "FLOP",
                     .detail = ""});
}

SweepResult ScoreRun::sweep(const std::string& stage, const std::vector<StudentPlan>& plans,
                            const WidthScores* width_scores, const std::vector<int64_t>& windows,
                            WidthStatistics* statistics) {
    const int64_t total = static_cast<int64_t>(windows.size());
    const SweepSchedule schedule = make_schedule(architecture_, plans);
    SweepResult result;
    std::vector<Window> left;
    std::vector<int64_t> places;  // of `left` in `windows`
    for (const int64_t i : visiting_order(windows_, windows)) {
        const Window& window = windows_.at(windows[i]);
        // A kill between the two files leaves figures without statistics: that batch runs again.
        const bool counted = !statistics || statistics->holds(windows[i]);
        const SweepResult* finished = state_.find(stage, windows[i]);
        if (statistics && counted && !finished)
            fail_input(
                fmt::format("{}: has not measured window {}, which the width statistics beside it hold: "
                            "leave out --resume to start anew",
                            state_.path().string(), windows[i]));
        if (finished && counted) {
            scatter(*finished, {i}, total, result);
            done_ += work_of(schedule, {window});
        } else {
            left.push_back(window);
            places.push_back(i);
        }
    }
    if (left.empty()) return result;
    report();
    VariantSweep variant_sweep(backend_, architecture_, weights_, plans, width_scores);
    variant_sweep.observe(statistics);
    for (WindowBatch& batch : batch_windows(corpus_, left, variant_sweep.batch_tokens(left))) {
        if (control_.stopping())
            throw Interrupted{state_.path().empty()
                                  ? "nothing was kept"
                                  : fmt::format("{} keeps what was measured", state_.path().string())};
        std::vector<int64_t> numbers;
        for (int64_t& window : batch.windows) {
            window = places[window];  // in the result
            numbers.push_back(windows[window]);
        }
        const SweepResult measured = variant_sweep.run(batch);
        state_.add(stage, numbers, measured);
        if (statistics) statistics->finish(numbers);
        scatter(measured, batch.windows, total, result);
        done_ += measured.multiply_adds;
        report();
    }
    return result;
}

}  // namespace minipuzzle::importance
