#include "cli/report/importance_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"

namespace minipuzzle::report {

std::optional<double> clip_level(std::vector<double> values) {
    std::erase_if(values, [](double v) { return !std::isfinite(v); });
    if (values.empty()) return std::nullopt;
    std::sort(values.begin(), values.end(), std::greater<>());
    const double median = values[values.size() / 2];
    if (median <= 0) return values.front();
    const std::size_t most = std::min(std::max<std::size_t>(1, values.size() / 20), values.size() - 1);
    std::size_t clipped = 0;
    while (clipped < most && values[clipped] > 6 * median) ++clipped;
    return values[clipped];
}

namespace {

constexpr double kWidth = 1080, kLeft = 62, kRight = 18, kPlotHeight = 250, kLabelRow = 15;
constexpr double kMostLinear = 60;  // times the lower quartile that a linear axis may reach

struct Bar {
    const LayerScore* score = nullptr;
    std::optional<double> value;
    double centre = 0;
    bool clipped = false;
    int label_row = 0;  // of a clipped bar
};

struct Layout {
    Plot plot;
    double slot = 0, thickness = 0, height = 0, width = 0;
    std::vector<Bar> bars;
};

// The lower end of the value axis: 0, or what the most harmful layer needs.
double lowest(const ScoreTable& table, Objective objective) {
    double low = 0;
    for (const LayerScore& layer : table.layers) {
        if (const auto v = value(layer, objective)) low = std::min(low, *v);
        if (objective == Objective::loss_delta && layer.loss_delta_ci)
            low = std::min(low, (*layer.loss_delta_ci)[0]);
    }
    return low;
}

// `whole` is the largest value that is drawn at full length, `cap` the top of the axis, logarithmic beyond
// `knee`.
Layout lay_out(const ScoreTable& table, Objective objective, double whole, double cap,
               std::optional<double> knee) {
    Layout layout;
    const auto count = static_cast<double>(table.layers.size());
    layout.slot = std::min((kWidth - kLeft - kRight) / count, 64.0);
    layout.thickness = std::min(layout.slot * 0.74, 34.0);
    const double plot_width = std::max(layout.slot * count, 320.0);
    layout.width = kLeft + plot_width + kRight;
    LabelRows rows;
    for (std::size_t i = 0; i < table.layers.size(); ++i) {
        Bar bar{.score = &table.layers[i], .value = value(table.layers[i], objective)};
        bar.centre = kLeft + layout.slot * (static_cast<double>(i) + 0.5);
        bar.clipped = bar.value && *bar.value > whole;
        if (bar.clipped) {
            const double half = text_width(value_text(*bar.value, 3), 11) / 2 + 2;
            bar.label_row = rows.place(bar.centre - half, bar.centre + half);
        }
        layout.bars.push_back(bar);
    }
    const double top = 26 + kLabelRow * rows.rows();
    const double low = lowest(table, objective);
    layout.plot.box = {kLeft, top, plot_width, kPlotHeight};
    layout.plot.x = {0, count, kLeft, kLeft + layout.slot * count};
    layout.plot.y = {low < 0 ? low * 1.05 : 0, cap * 1.04, top + kPlotHeight, top};
    if (knee) layout.plot.y.kind = ScaleKind::symlog, layout.plot.y.knee = *knee;
    layout.height = top + kPlotHeight + 58;
    return layout;
}

std::string tooltip(const Bar& bar, Objective objective) {
    const LayerScore& score = *bar.score;
    std::string text = fmt::format("layer {} ({}): ", score.layer, type_word(score.type));
    if (!bar.value) return text + "not measured, never dropped";
    text += fmt::format("{} {}", name(objective), value_text(*bar.value, 6));
    if (objective == Objective::loss_delta && score.loss_delta_ci)
        text += fmt::format(", 95 % interval {} to {}", value_text((*score.loss_delta_ci)[0]),
                            value_text((*score.loss_delta_ci)[1]));
    if (bar.clipped) text += " (bar cut off)";
    return text;
}

// A bar cut off at the top carries two slanted cuts in the paper's colour.
void draw_break(Svg& svg, const Layout& layout, const Bar& bar) {
    const double left = bar.centre - layout.thickness / 2 - 1, right = bar.centre + layout.thickness / 2 + 1;
    for (const double offset : {12.0, 19.0}) {
        const double y = layout.plot.box.y + offset;
        svg.path(
            fmt::format("M{} {}L{} {}v3L{} {}z", px(left), px(y + 3), px(right), px(y), px(left), px(y + 6)),
            "break");
    }
}

void draw_interval(Svg& svg, const Layout& layout, const Bar& bar) {
    const auto& [low, high] = *bar.score->loss_delta_ci;
    const Scale& y = layout.plot.y;
    if (bar.clipped || !std::isfinite(low) || !std::isfinite(high)) return;
    const double top = y(std::min(high, y.to)), bottom = y(std::max(low, y.from));
    svg.line({bar.centre, top}, {bar.centre, bottom}, "interval");
    const double cap = std::min(layout.thickness * 0.28, 4.0);
    for (const double end : {top, bottom})
        svg.line({bar.centre - cap, end}, {bar.centre + cap, end}, "interval");
}

void draw_bar(Svg& svg, const Layout& layout, const Bar& bar, Objective objective) {
    const Plot& plot = layout.plot;
    const double left = bar.centre - layout.thickness / 2;
    svg.open_group(fmt::format("bar {}{}", type_class(bar.score->type), bar.value ? "" : " unknown"),
                   tooltip(bar, objective));
    if (bar.value) {
        const double end = plot.y(std::min(*bar.value, plot.y.to)), zero = plot.y(0);
        svg.rect({left, std::min(end, zero), layout.thickness, std::max(std::fabs(end - zero), 0.75)},
                 "body");
        if (bar.clipped) draw_break(svg, layout, bar);
        if (objective == Objective::loss_delta && bar.score->loss_delta_ci) draw_interval(svg, layout, bar);
    } else {
        svg.rect({left, plot.box.y + 1, layout.thickness, plot.y(0) - plot.box.y - 1}, "body");
    }
    svg.close_group();
}

// The values of the bars that are cut off; all lines first, so that the halo of a text interrupts them.
void draw_clip_labels(Svg& svg, const Layout& layout) {
    const double top = layout.plot.box.y;
    for (const Bar& bar : layout.bars)
        if (bar.clipped && bar.label_row > 0)
            svg.line({bar.centre, top - 2 - kLabelRow * bar.label_row}, {bar.centre, top - 2}, "leader");
    for (const Bar& bar : layout.bars)
        if (bar.clipped)
            svg.text({bar.centre, top - 5 - kLabelRow * bar.label_row}, value_text(*bar.value, 3),
                     Anchor::middle, "small halo");
}

void draw_layer_axis(Svg& svg, const Layout& layout, const std::vector<int64_t>& dropped) {
    const Plot& plot = layout.plot;
    const double zero = plot.y(0), base = plot.box.bottom();
    svg.line({plot.box.x, zero}, {plot.box.right(), zero}, "axis");
    for (const Bar& bar : layout.bars)
        if (std::find(dropped.begin(), dropped.end(), bar.score->layer) != dropped.end()) {
            const double reach = std::min(3.2, layout.slot * 0.32), y = base + 10;
            svg.path(fmt::format("M{0} {2}L{1} {3}M{0} {3}L{1} {2}", px(bar.centre - reach),
                                 px(bar.centre + reach), px(y - reach), px(y + reach)),
                     "cross", fmt::format("layer {} is dropped in the best student", bar.score->layer));
        }
    const int64_t step = tick_step(layout.slot, 30);
    for (const Bar& bar : layout.bars)
        if (bar.score->layer % step == 0)
            svg.text({bar.centre, base + 30}, fmt::format("{}", bar.score->layer), Anchor::middle, "tick");
    svg.text({plot.box.right(), base + 50}, "layer of the teacher, in depth order", Anchor::end,
             "axis-title");
}

std::string alternative(const ScoreTable& table, Objective objective) {
    const LayerScore *most = nullptr, *least = nullptr;
    for (const LayerScore& layer : table.layers) {
        const auto v = value(layer, objective);
        if (!v) continue;
        if (!most || *v > *value(*most, objective)) most = &layer;
        if (!least || *v < *value(*least, objective)) least = &layer;
    }
    if (!most) return fmt::format("Importance of {} layers, none measured", table.layers.size());
    return fmt::format(
        "Importance of {} layers by {}: largest layer {} ({}) with {}, smallest layer {} ({}) with {}",
        table.layers.size(), name(objective), most->layer, type_word(most->type),
        value_text(*value(*most, objective)), least->layer, type_word(least->type),
        value_text(*value(*least, objective)));
}

}  // namespace

std::string importance_chart(const ScoreTable& table, Objective objective,
                             const std::vector<int64_t>& dropped) {
    std::vector<double> values;
    for (const LayerScore& layer : table.layers)
        if (const auto v = value(layer, objective)) values.push_back(*v);
    double whole = clip_level(values).value_or(1.0);
    // Where the few that may be cut off are not all that would flatten the rest, nothing is cut off.
    std::vector<double> uncut = values;
    std::erase_if(uncut, [&](double v) { return v > whole; });
    const std::optional<double> knee = symlog_knee(uncut, kMostLinear);
    if (knee) whole = *std::max_element(values.begin(), values.end());
    double cap = whole;
    // Whiskers of the bars that stay whole get room, up to a third more.
    if (objective == Objective::loss_delta)
        for (const LayerScore& layer : table.layers)
            if (layer.loss_delta && *layer.loss_delta <= whole && layer.loss_delta_ci)
                cap = std::max(cap, std::min((*layer.loss_delta_ci)[1], whole * 1.33));
    if (cap <= 0) cap = 1e-12 - std::min(0.0, lowest(table, objective)) * 0.1;
    const Layout layout = lay_out(table, objective, whole, cap, knee);

    Svg svg(layout.width, layout.height, alternative(table, objective));
    draw_y_axis(svg, layout.plot, objective_axis(objective) + scale_words(layout.plot.y));
    for (const Bar& bar : layout.bars) draw_bar(svg, layout, bar, objective);
    draw_clip_labels(svg, layout);
    draw_layer_axis(svg, layout, dropped);
    const auto count = [&](LayerType type) {
        return std::count_if(table.layers.begin(), table.layers.end(),
                             [&](const LayerScore& layer) { return layer.type == type; });
    };
    std::vector<LegendEntry> entries;
    for (const LayerType type : kLayerTypes)
        entries.push_back({type_class(type), fmt::format("{} ({})", type_word(type), count(type))});
    const auto any = [&](auto predicate) {
        return std::any_of(layout.bars.begin(), layout.bars.end(), predicate);
    };
    if (any([](const Bar& bar) { return bar.clipped; }))
        entries.push_back({"cut", "cut off, value written above"});
    if (any([](const Bar& bar) { return !bar.value; }))
        entries.push_back({"unknown", "not measured, never dropped"});
    if (!dropped.empty()) entries.push_back({"crossed", "dropped in the best student"});
    return legend(entries) + svg.finish();
}

}  // namespace minipuzzle::report
