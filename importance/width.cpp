#include "importance/width.h"

#include <fmt/format.h>

#include <algorithm>

namespace minipuzzle::importance {

std::vector<int64_t> default_width_grid(int64_t ffn_width) {
    std::vector<int64_t> grid;
    for (int64_t i = 0; i <= 8; ++i) {
        const int64_t width = ffn_width - i * ffn_width / 32;
        if (grid.empty() || width < grid.back()) grid.push_back(width);
    }
    return grid;
}

std::vector<int64_t> narrower_widths(const Architecture& architecture, std::vector<int64_t> asked) {
    const int64_t full = architecture.ffn_width();
    if (full == 0)
        fail_usage("--width needs FFN layers of one common width; this model has " +
                   std::string(architecture.count(LayerType::ffn) ? "several widths" : "no FFN layer"));
    std::vector<int64_t> widths = asked.empty() ? default_width_grid(full) : std::move(asked);
    std::sort(widths.rbegin(), widths.rend());
    widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
    for (int64_t width : widths)
        if (width < 1 || width > full)
            fail_usage(fmt::format("--width {}: expected widths from 1 to the model's {}", width, full));
    if (!widths.empty() && widths.front() == full) widths.erase(widths.begin());
    return widths;
}

std::vector<StudentPlan> width_plans(const std::vector<int64_t>& widths) {
    std::vector<StudentPlan> plans;
    for (const int64_t width : widths) plans.push_back({.drop = {}, .ffn_width = width});
    return plans;
}

std::vector<WidthPoint> width_curve(ScoreRun& run, const WidthScores& scores,
                                    const std::vector<int64_t>& widths) {
    if (widths.empty()) return {};
    const SweepResult sweep = run.sweep("widths", width_plans(widths), &scores, run.all_windows());
    std::vector<WidthPoint> curve{
        {.ffn_width = run.architecture().ffn_width(), .loss_delta = 0.0, .kl = 0.0}};
    const double base = mean(sweep.base.loss, sweep.tokens);
    for (std::size_t i = 0; i < widths.size(); ++i)
        curve.push_back({.ffn_width = widths[i],
                         .loss_delta = mean(sweep.variants[i].loss, sweep.tokens) - base,
                         .kl = mean(sweep.variants[i].kl, sweep.tokens)});
    return curve;
}

}  // namespace minipuzzle::importance
