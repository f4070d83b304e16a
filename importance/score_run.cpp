#include "importance/score_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "importance/width.h"
#include "runtime/batch_size.h"

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
      control_(control),
      progress_("scoring", control) {}

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

bool ScoreRun::finished(const std::string& stage, const std::vector<int64_t>& windows) const {
    return std::all_of(windows.begin(), windows.end(),
                       [&](int64_t window) { return state_.find(stage, window) != nullptr; });
}

Work ScoreRun::work_of(const SweepSchedule& schedule, const std::vector<Window>& windows) const {
    Work work;
    for (const Window& window : windows)
        work += schedule_work(architecture_, schedule, window.length, window.length);
    return work;
}

Work ScoreRun::work_of_first(const std::vector<StudentPlan>& plans, int64_t windows) const {
    MP_ASSERT(windows <= static_cast<int64_t>(windows_.size()));
    return work_of(make_schedule(architecture_, plans),
                   {windows_.begin(), windows_.begin() + static_cast<std::ptrdiff_t>(windows)});
}

void ScoreRun::announce(const std::vector<StudentPlan>& plans, int64_t windows) {
    progress_.announce(work_of_first(plans, windows));
}

void ScoreRun::announce(const std::string& stage, const std::vector<StudentPlan>& plans, int64_t windows) {
    Work& announced = of_stage_[stage];
    progress_.withdraw(announced);
    announced = plans.empty() ? Work() : work_of_first(plans, windows);
    progress_.announce(announced);
}

void ScoreRun::stop_where_asked() const {
    if (control_.stopping())
        throw Interrupted{state_.path().empty()
                              ? "nothing was kept"
                              : fmt::format("{} keeps what was measured", state_.path().string())};
}

SweepResult ScoreRun::sweep(const std::string& stage, const std::vector<StudentPlan>& plans,
                            const WidthScores* width_scores, const std::vector<int64_t>& windows,
                            WidthStatistics* statistics) {
    return sweep_keeping(stage, plans, width_scores, windows, statistics, nullptr);
}

SweepResult ScoreRun::sweep_losses(const std::string& stage, const std::vector<StudentPlan>& plans,
                                   const std::vector<int64_t>& windows) {
    return sweep_keeping(stage, plans, nullptr, windows, nullptr, [](SweepResult result) {
        for (SequenceMetrics& variant : result.variants) variant = {.loss = std::move(variant.loss)};
        return result;
    });
}

int64_t ScoreRun::most_states() const {
    constexpr int64_t kHostBytes = int64_t{1} << 30, kHostTokens = 512, kDeviceTokens = 32768;
    const bool host = backend_.device() == DeviceKind::cpu;
    const int64_t bytes = host ? kHostBytes : backend_.available() / 2;
    const int64_t tokens = std::max(host ? kHostTokens : kDeviceTokens, longest(windows_));
    return bytes / (tokens * architecture_.width * bytes_of(backend_.compute_type()));
}

SweepResult ScoreRun::sweep_keeping(const std::string& stage, const std::vector<StudentPlan>& plans,
                                    const WidthScores* width_scores, const std::vector<int64_t>& windows,
                                    WidthStatistics* statistics, const Keep& keep) {
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
            progress_.skip(work_of(schedule, {window}));
        } else {
            left.push_back(window);
            places.push_back(i);
        }
    }
    if (left.empty()) return result;
    progress_.report();
    progress_.begin_sweep();
    VariantSweep variant_sweep(backend_, architecture_, weights_, plans, width_scores);
    variant_sweep.observe(statistics);
    for (WindowBatch& batch : batch_windows(corpus_, left, variant_sweep.batch_tokens(left))) {
        stop_where_asked();
        std::vector<int64_t> numbers;
        for (int64_t& window : batch.windows) {
            window = places[window];  // in the result
            numbers.push_back(windows[window]);
        }
        SweepResult measured = variant_sweep.run(batch, [&](const Work& done) {
            if (done.of[kHeadWork] == 0) stop_where_asked();  // a batch that is done is kept
            progress_.advance(done);
        });
        if (keep) measured = keep(std::move(measured));
        state_.add(stage, numbers, measured);
        if (statistics) statistics->finish(numbers);
        scatter(measured, batch.windows, total, result);
    }
    return result;
}

}  // namespace minipuzzle::importance
