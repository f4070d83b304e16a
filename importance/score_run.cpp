#include "importance/score_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace minipuzzle::importance {

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

Work ScoreRun::work_of(const SweepSchedule& schedule, const std::vector<Window>& windows) const {
    Work work;
    for (const Window& window : windows)
        work += schedule_work(architecture_, schedule, window.length, window.length);
    return work;
}

void ScoreRun::announce(const std::vector<StudentPlan>& plans, int64_t windows) {
    MP_ASSERT(windows <= static_cast<int64_t>(windows_.size()));
    progress_.announce(work_of(make_schedule(architecture_, plans),
                               {windows_.begin(), windows_.begin() + static_cast<std::ptrdiff_t>(windows)}));
}

void ScoreRun::stop_where_asked() const {
    if (control_.stopping())
        throw Interrupted{state_.path().empty()
                              ? "nothing was kept"
                              : fmt::format("{} keeps what was measured", state_.path().string())};
}

SweepResult ScoreRun::sweep(const std::string& stage, const std::vector<StudentPlan>& plans,
                            const WidthScores* width_scores, const std::vector<int64_t>& windows) {
    const int64_t total = static_cast<int64_t>(windows.size());
    const SweepSchedule schedule = make_schedule(architecture_, plans);
    SweepResult result;
    std::vector<Window> left;
    std::vector<int64_t> places;  // of `left` in `windows`
    for (int64_t i = 0; i < total; ++i) {
        const Window& window = windows_.at(windows[i]);
        if (const SweepResult* finished = state_.find(stage, windows[i])) {
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
    for (WindowBatch& batch : batch_windows(corpus_, left, variant_sweep.batch_tokens(left))) {
        stop_where_asked();
        std::vector<int64_t> numbers;
        for (int64_t& window : batch.windows) {
            window = places[window];  // in the result
            numbers.push_back(windows[window]);
        }
        const SweepResult measured = variant_sweep.run(batch, [&](const Work& done) {
            if (done.of[kHeadWork] == 0) stop_where_asked();  // a batch that is done is kept
            progress_.advance(done);
        });
        state_.add(stage, numbers, measured);
        scatter(measured, batch.windows, total, result);
    }
    return result;
}

}  // namespace minipuzzle::importance
