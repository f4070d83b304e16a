// What becomes of a batch's figures, and a sweep over all windows.
#include "runtime/variant_sweep.h"
#include "runtime/work_progress.h"

namespace minipuzzle {

double mean(const std::vector<double>& per_window, const std::vector<int64_t>& tokens) {
    MP_ASSERT(per_window.size() == tokens.size());
    double sum = 0, count = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        sum += per_window[i] * static_cast<double>(tokens[i]);
        count += static_cast<double>(tokens[i]);
    }
    return sum / count;
}

namespace {

void scatter_metrics(const SequenceMetrics& from, const std::vector<int64_t>& windows, int64_t total,
                     SequenceMetrics& into) {
    for (auto member : {&SequenceMetrics::loss, &SequenceMetrics::accuracy, &SequenceMetrics::kl,
                        &SequenceMetrics::top1_agreement, &SequenceMetrics::hidden_mse,
                        &SequenceMetrics::logit_nmse, &SequenceMetrics::cosine}) {
        const std::vector<double>& values = from.*member;
        if (values.empty()) continue;
        (into.*member).resize(total);
        for (std::size_t i = 0; i < windows.size(); ++i) (into.*member)[windows[i]] = values[i];
    }
}

}  // namespace

void scatter(const SweepResult& from, const std::vector<int64_t>& windows, int64_t total_windows,
             SweepResult& into) {
    into.tokens.resize(total_windows);
    for (std::size_t i = 0; i < windows.size(); ++i) into.tokens[windows[i]] = from.tokens[i];
    scatter_metrics(from.base, windows, total_windows, into.base);
    into.variants.resize(from.variants.size());
    for (std::size_t v = 0; v < from.variants.size(); ++v)
        scatter_metrics(from.variants[v], windows, total_windows, into.variants[v]);
    into.multiply_adds += from.multiply_adds;
    into.separate_multiply_adds += from.separate_multiply_adds;
}

SweepResult sweep(Backend& backend, const Architecture& architecture, WeightSource weights,
                  const std::vector<StudentPlan>& plans, const WidthScores* width_scores,
                  const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control) {
    VariantSweep variant_sweep(backend, architecture, weights, plans, width_scores);
    const std::vector<WindowBatch> batches =
        batch_windows(corpus, windows, variant_sweep.batch_tokens(windows));
    const SweepSchedule schedule = make_schedule(architecture, plans);
    WorkProgress progress("measuring", control);
    for (const Window& window : windows)
        progress.announce(schedule_work(architecture, schedule, window.length, window.length));
    const auto tell = [&](const Work& done) {
        if (control.stopping()) throw Interrupted{"the sweep was stopped; nothing was kept"};
        progress.advance(done);
    };
    SweepResult result;
    for (const WindowBatch& batch : batches)
        scatter(variant_sweep.run(batch, tell), batch.windows, static_cast<int64_t>(windows.size()), result);
    return result;
}

}  // namespace minipuzzle
