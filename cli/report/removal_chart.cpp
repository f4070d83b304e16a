#include "cli/report/removal_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"
#include "cli/score_analysis.h"
#include "kernels/check.h"

namespace minipuzzle::report {
namespace {

constexpr double kWidth = 1080, kLeft = 62, kRight = 18, kTop = 28, kPlotHeight = 250, kLabelRow = 15;
constexpr double kWidestSlot = 64;
constexpr double kMostLinear = 40;  // times the lower quartile that a linear axis may reach

struct Step {
    const RemovalStep* step = nullptr;
    LayerType type = LayerType::mamba;
    std::optional<double> additive;
    double x = 0;
    std::string label;  // "M 12"
    int label_row = 0;
};

struct Chart {
    Plot plot;
    std::vector<Step> steps;
    int label_rows = 1;
    double width = 0, height = 0;
};

char short_type(LayerType type) {
    return type == LayerType::mamba ? 'M' : type == LayerType::ffn ? 'F' : 'A';
}

// Holds the line, its intervals as far as half as much again, the additive sums, and 0. What spans orders of
// magnitude is drawn logarithmically.
Scale value_scale(const std::vector<Step>& steps) {
    double low = 0, high = 0, reach_low = 0, reach_high = 0;
    std::vector<double> values;
    const auto add = [&](double value) {
        if (!std::isfinite(value)) return;
        low = std::min(low, value);
        high = std::max(high, value);
        values.push_back(value);
    };
    for (const Step& step : steps) {
        add(step.step->loss_delta);
        if (step.additive) add(*step.additive);
        if (!step.step->loss_delta_ci) continue;
        reach_low = std::min(reach_low, (*step.step->loss_delta_ci)[0]);
        reach_high = std::max(reach_high, (*step.step->loss_delta_ci)[1]);
    }
    double spread = high - low;
    if (spread <= 0) spread = 1e-6;
    low = std::max(std::min(low, reach_low), low - spread / 2);
    high = std::min(std::max(high, reach_high), high + spread / 2);
    Scale scale{low < -0.02 * spread ? low - 0.04 * spread : 0, high + 0.05 * spread, kTop + kPlotHeight,
                kTop};
    if (const auto knee = symlog_knee(values, kMostLinear)) {
        scale.kind = ScaleKind::symlog;
        scale.knee = *knee;
        scale.from = low < -*knee / 2 ? low : 0;
    }
    return scale;
}

Chart lay_out(const ScoreTable& scores) {
    Chart chart;
    const std::vector<std::optional<double>> sums = cli::additive_sums(scores);
    const auto count = static_cast<double>(sums.size());
    const double slot = std::min((kWidth - kLeft - kRight) / count, kWidestSlot);
    const double plot_width = std::max(slot * count, 420.0);
    LabelRows rows;
    for (std::size_t i = 0; i < sums.size(); ++i) {
        const RemovalStep& step = scores.iterative->steps[i];
        Step& shown = chart.steps.emplace_back();
        shown.step = &step;
        shown.type = scores.layers[narrow<std::size_t>(step.removed)].type;
        shown.additive = sums[i];
        shown.x = kLeft + slot * (static_cast<double>(i) + 0.5);
        shown.label = fmt::format("{} {}", short_type(shown.type), step.removed);
        const double half = text_width(shown.label, 11) / 2 + 2;
        shown.label_row = rows.place(shown.x - half, shown.x + half);
    }
    chart.label_rows = rows.rows();
    chart.width = kLeft + plot_width + kRight;
    chart.height = kTop + kPlotHeight + 44 + kLabelRow * chart.label_rows;
    chart.plot.box = {kLeft, kTop, plot_width, kPlotHeight};
    chart.plot.x = {0, count, kLeft, kLeft + slot * count};
    chart.plot.y = value_scale(chart.steps);
    return chart;
}

// Between the interval's ends; broken where a step has none.
void draw_band(Svg& svg, const Chart& chart) {
    const Scale& y = chart.plot.y;
    std::string upper, lower;
    const auto flush = [&] {
        if (!upper.empty()) svg.path("M" + upper.substr(1) + lower + "z", "band");
        upper.clear();
        lower.clear();
    };
    for (const Step& step : chart.steps) {
        const auto& ci = step.step->loss_delta_ci;
        if (!ci || !std::isfinite((*ci)[0]) || !std::isfinite((*ci)[1])) {
            flush();
            continue;
        }
        upper += fmt::format("L{} {}", px(step.x), px(y((*ci)[1])));
        lower = fmt::format("L{} {}", px(step.x), px(y((*ci)[0]))) + lower;
    }
    flush();
}

std::string tooltip(const Step& step, std::size_t number) {
    std::string text = fmt::format("step {}: layer {} ({}) gone, loss_delta {}", number, step.step->removed,
                                   type_word(step.type), value_text(step.step->loss_delta));
    if (const auto& ci = step.step->loss_delta_ci)
        text += fmt::format(", 95 % interval {} to {}", value_text((*ci)[0]), value_text((*ci)[1]));
    if (step.additive) text += fmt::format("; one by one {}", value_text(*step.additive));
    if (step.step->bytes) text += "; " + exact_bytes(*step.step->bytes);
    return text;
}

void draw_lines(Svg& svg, const Chart& chart) {
    std::vector<Point> measured, additive;
    for (const Step& step : chart.steps) {
        if (std::isfinite(step.step->loss_delta))
            measured.push_back({step.x, chart.plot.y(step.step->loss_delta)});
        if (step.additive) additive.push_back({step.x, chart.plot.y(*step.additive)});
    }
    if (additive.size() > 1) svg.polyline(additive, "additive");
    if (measured.size() > 1) svg.polyline(measured, "removal");
    const double radius = chart.steps.size() > 60 ? 3 : 4;
    for (std::size_t i = 0; i < chart.steps.size(); ++i) {
        const Step& step = chart.steps[i];
        if (!std::isfinite(step.step->loss_delta)) continue;
        svg.circle({step.x, chart.plot.y(step.step->loss_delta)}, radius,
                   std::string("point ") + type_class(step.type), tooltip(step, i + 1));
    }
}

// The steps' layers below the axis, in as many rows as they take.
void draw_labels(Svg& svg, const Chart& chart) {
    const double base = chart.plot.box.bottom();
    svg.line({chart.plot.box.x, base}, {chart.plot.box.right(), base}, "axis");
    if (chart.plot.y.from < 0)
        svg.line({chart.plot.box.x, chart.plot.y(0)}, {chart.plot.box.right(), chart.plot.y(0)}, "axis");
    for (const Step& step : chart.steps) {
        const double y = base + 18 + kLabelRow * step.label_row;
        svg.line({step.x, base}, {step.x, y - 11}, step.label_row > 0 ? "leader" : "axis");
    }
    for (const Step& step : chart.steps)
        svg.text({step.x, base + 18 + kLabelRow * step.label_row}, step.label, Anchor::middle,
                 std::string("small halo of-") + type_class(step.type));
    svg.text({chart.plot.box.right(), chart.height - 6}, "layer that goes at each step, from left to right",
             Anchor::end, "axis-title");
}

std::string alternative(const Chart& chart) {
    const Step &first = chart.steps.front(), &last = chart.steps.back();
    std::string text =
        fmt::format("Iterative removal of {} layers, from layer {} with {} to layer {} with {}",
                    chart.steps.size(), first.step->removed, value_text(first.step->loss_delta),
                    last.step->removed, value_text(last.step->loss_delta));
    if (last.additive) text += fmt::format("; one by one they add up to {}", value_text(*last.additive));
    return text;
}

}  // namespace

std::string removal_chart(const ScoreTable& scores) {
    if (!scores.iterative || scores.iterative->steps.empty()) return "";
    const Chart chart = lay_out(scores);
    Svg svg(chart.width, chart.height, alternative(chart));
    draw_y_axis(svg, chart.plot,
                "loss increase of what is left (nats per token)" + scale_words(chart.plot.y));
    svg.open_clipped(chart.plot.box);
    draw_band(svg, chart);
    svg.close_clipped();
    draw_labels(svg, chart);
    draw_lines(svg, chart);
    std::vector<LegendEntry> entries;
    for (const LayerType type : kLayerTypes)
        if (std::any_of(chart.steps.begin(), chart.steps.end(),
                        [&](const Step& s) { return s.type == type; }))
            entries.push_back({type_class(type), type_word(type)});
    entries.push_back({"removal", "measured, all of them gone"});
    const auto any = [&](auto predicate) {
        return std::any_of(chart.steps.begin(), chart.steps.end(), predicate);
    };
    if (any([](const Step& step) { return step.step->loss_delta_ci.has_value(); }))
        entries.push_back({"band", "95 % interval"});
    if (any([](const Step& step) { return step.additive.has_value(); }))
        entries.push_back({"additive", "sum of the layers, each gone alone"});
    return legend(entries) + svg.finish();
}

}  // namespace minipuzzle::report
