#include "cli/report/frontier_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"

namespace minipuzzle::report {
namespace {

constexpr double kHeight = 380, kTop = 44, kBottom = 52;

struct Unit {
    double bytes = 1;
    const char* name = "bytes";
};

Unit unit_for(int64_t bytes) {
    if (bytes >= int64_t{1} << 30) return {std::ldexp(1.0, 30), "GiB"};
    if (bytes >= int64_t{1} << 20) return {std::ldexp(1.0, 20), "MiB"};
    if (bytes >= int64_t{1} << 10) return {std::ldexp(1.0, 10), "KiB"};
    return {};
}

// Grows to hold what it is shown.
struct Range {
    double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
    void add(double value) {
        if (!std::isfinite(value)) return;
        low = std::min(low, value);
        high = std::max(high, value);
    }
    // Room at both ends, as shares of the range; some for a range of one value too.
    void pad(double below, double above) {
        const double by = high > low ? high - low : std::max(std::fabs(high) * 0.1, 1e-9);
        low -= by * below;
        high += by * above;
    }
};

using Figure = std::function<std::optional<double>(const nas::Candidate&)>;

// One of the two views.
struct View {
    std::string title, y_title;
    Plot plot;
    Figure predicted, measured;
    bool close_up = false, larger_is_better = false, shows_prediction = true;
};

struct Chart {
    const nas::SearchResult& search;
    Unit unit;
    double teacher_value = 0;  // the teacher on the objective's axis
    double shift = 0;          // of predictions on that axis
    Svg svg;
    bool has_budget_line = false;
    double mega(int64_t bytes) const { return static_cast<double>(bytes) / unit.bytes; }
};

// With a base (loss_delta) the teacher's own loss, on the text that the axis speaks of; every other objective
// is 0 where nothing is dropped.
double teacher_value(const nas::SearchResult& search, double shift) {
    if (search.objective != Objective::loss_delta) return 0;
    for (const nas::Candidate& candidate : search.candidates)
        if (candidate.predicted.base) return *candidate.predicted.base + shift;
    return search.frontier.empty() ? 0 : search.frontier.back().value + shift;
}

// The steps through points of ascending memory, each the best from there on, to the right edge. Points nearer
// than a quarter of a pixel to the last one drawn are left out, so that the picture stays small.
std::string step_path(const View& view, const std::vector<Point>& points) {
    std::string path;
    Point last;
    for (const Point& at : points) {
        if (!std::isfinite(at.y)) continue;
        if (path.empty())
            path = fmt::format("M{} {}", px(at.x), px(at.y));
        else if (std::fabs(at.x - last.x) + std::fabs(at.y - last.y) >= 0.25)
            path += fmt::format("H{}V{}", px(at.x), px(at.y));
        else
            continue;
        last = at;
    }
    return path.empty() ? path : path + fmt::format("H{}", px(view.plot.box.right()));
}

std::vector<Point> predicted_frontier(const Chart& chart, const View& view) {
    std::vector<Point> points;
    for (const nas::FrontierPoint& point : chart.search.frontier)
        points.push_back(view.plot.at(chart.mega(point.total), point.value + chart.shift));
    return points;
}

std::vector<Point> measured_frontier(const Chart& chart, const View& view) {
    std::vector<const nas::Candidate*> front;
    for (const nas::Candidate& candidate : chart.search.candidates)
        if (candidate.pareto_measured && view.measured(candidate)) front.push_back(&candidate);
    std::sort(front.begin(), front.end(),
              [](const auto* a, const auto* b) { return a->memory.total() < b->memory.total(); });
    std::vector<Point> points;
    for (const nas::Candidate* candidate : front)
        points.push_back(view.plot.at(chart.mega(candidate->memory.total()), *view.measured(*candidate)));
    return points;
}

std::string tooltip(const nas::Candidate& candidate) {
    std::string text =
        fmt::format("{}: {}, {}, predicted {}", candidate.id,
                    counts_text(candidate.mamba, candidate.ffn, candidate.attention),
                    memory_text(candidate.memory.total()), value_text(candidate.predicted.value));
    if (candidate.measured)
        text += fmt::format(", measured loss {}, KL {}", value_text(candidate.measured->loss),
                            value_text(candidate.measured->kl));
    return text;
}

void draw_candidate(Chart& chart, const View& view, const nas::Candidate& candidate) {
    const bool best = candidate.id == chart.search.best;
    const double x = chart.mega(candidate.memory.total());
    const auto predicted = view.predicted(candidate), measured = view.measured(candidate);
    chart.svg.open_group(best ? "candidate best" : "candidate", tooltip(candidate));
    const double size = view.close_up ? 4 : 2.6;
    if (predicted)
        chart.svg.circle(view.plot.at(x, *predicted), best ? size + 1 : size,
                         candidate.measured ? "predicted paired" : "predicted");
    if (measured) chart.svg.circle(view.plot.at(x, *measured), best ? size + 1 : size, "measured");
    if (best)
        if (const auto mark = measured ? measured : predicted)
            chart.svg.circle(view.plot.at(x, *mark), size + 5, "ring");
    chart.svg.close_group();
}

// The best candidate's name below its ring: under the frontier there is nothing else.
void label_best(Chart& chart, const View& view) {
    const nas::Candidate* best = best_of(chart.search);
    if (!best) return;
    const auto measured = view.measured(*best), predicted = view.predicted(*best);
    if (!measured && !predicted) return;
    const double figure = measured ? *measured : *predicted;
    const Point at = view.plot.at(chart.mega(best->memory.total()), figure);
    const std::string text = fmt::format("{}: {}", best->id, value_text(figure));
    const bool left = at.x - 4 - text_width(text, 13) > view.plot.box.x;
    chart.svg.text({at.x + (left ? -4 : 4), at.y + (view.larger_is_better ? -14 : 23)}, text,
                   left ? Anchor::end : Anchor::start, "strong halo");
}

// Whether the budget lies in view.
bool draw_budget(Chart& chart, const View& view) {
    if (chart.search.budget_bytes < 0) return false;
    const double x = chart.mega(chart.search.budget_bytes);
    if (x < view.plot.x.from || x > view.plot.x.to) return false;
    const double at = view.plot.x(x);
    chart.svg.line({at, view.plot.box.y - 4}, {at, view.plot.box.bottom()}, "budget");
    const std::string text = "budget " + memory_text(chart.search.budget_bytes);
    const double half = text_width(text, 11) / 2;
    const double centre = std::clamp(at, view.plot.box.x + half, view.plot.box.right() - half);
    chart.svg.text({centre, view.plot.box.y - 8}, text, Anchor::middle, "small budget-label");
    return true;
}

void draw_teacher(Chart& chart, const View& view) {
    const Point at = view.plot.at(chart.mega(chart.search.teacher_memory.total()), chart.teacher_value);
    const Box& box = view.plot.box;
    if (at.x < box.x || at.x > box.right() || at.y < box.y || at.y > box.bottom()) return;
    chart.svg.path(fmt::format("M{} {}l6 6l-6 6l-6 -6z", px(at.x), px(at.y - 6)), "teacher-mark",
                   fmt::format("teacher: {}, {}", memory_text(chart.search.teacher_memory.total()),
                               value_text(chart.teacher_value)));
    chart.svg.text({std::min(at.x + 8, box.right()), at.y - 11}, "teacher", Anchor::end, "strong halo");
}

void draw_view(Chart& chart, const View& view) {
    const Box& box = view.plot.box;
    const Ticks marks = ticks(view.plot.y, 6);
    for (const double value : marks.values) {
        chart.svg.line({box.x, view.plot.y(value)}, {box.right(), view.plot.y(value)}, "grid");
        chart.svg.text({box.x - 8, view.plot.y(value) + 4}, marks.label(value), Anchor::end, "tick");
    }
    chart.svg.text({box.x - 62, 14}, view.title, Anchor::start, "strong");
    chart.svg.text({box.x - 62 + text_width(view.title, 15) + 8, 14}, view.y_title, Anchor::start,
                   "axis-title");
    draw_x_axis(chart.svg, view.plot, fmt::format("memory in use ({})", chart.unit.name), 6);
    chart.svg.open_clipped(box);
    if (view.shows_prediction)
        if (const auto path = step_path(view, predicted_frontier(chart, view)); !path.empty())
            chart.svg.path(path, "frontier");
    if (const auto path = step_path(view, measured_frontier(chart, view)); !path.empty())
        chart.svg.path(path, "frontier of-measured");
    for (const nas::Candidate& candidate : chart.search.candidates)
        if (candidate.id != chart.search.best) draw_candidate(chart, view, candidate);
    if (const nas::Candidate* best = best_of(chart.search)) draw_candidate(chart, view, *best);
    chart.svg.close_clipped();
    chart.has_budget_line |= draw_budget(chart, view);
    if (!view.close_up) draw_teacher(chart, view);
    label_best(chart, view);
}

const Figure kNothing = [](const nas::Candidate&) -> std::optional<double> { return std::nullopt; };

// All that matters: from the teacher down to where the predicted damage is a few times the candidates'.
View overview(const Chart& chart, const Box& box, const Figure& predicted, const Figure& measured) {
    Range x, y;
    y.add(chart.teacher_value);
    x.add(chart.mega(chart.search.teacher_memory.total()));
    for (const nas::Candidate& candidate : chart.search.candidates) {
        x.add(chart.mega(candidate.memory.total()));
        for (const auto& figure : {predicted(candidate), measured(candidate)})
            if (figure) y.add(*figure);
    }
    y.high = y.low + 2.5 * (y.high - y.low);
    for (const nas::FrontierPoint& point : chart.search.frontier)
        if (point.value + chart.shift <= y.high) x.add(chart.mega(point.total));
    x.pad(0.04, 0.04);
    y.pad(0.14, 0.03);
    View view{.title = "All budgets",
              .y_title = predicted_axis(chart.search.objective),
              .plot = {},
              .predicted = predicted,
              .measured = measured};
    view.plot = {box, {x.low, x.high, box.x, box.right()}, {y.low, y.high, box.bottom(), box.y}};
    return view;
}

View close_up(const Chart& chart, const Box& box, const Figure& predicted, const Figure& measured) {
    Range x, y;
    for (const nas::Candidate& candidate : chart.search.candidates) {
        x.add(chart.mega(candidate.memory.total()));
        for (const auto& figure : {predicted(candidate), measured(candidate)})
            if (figure) y.add(*figure);
    }
    const double budget = chart.mega(chart.search.budget_bytes);
    if (chart.search.budget_bytes >= 0 && budget < x.high + 2 * (x.high - x.low)) x.add(budget);
    x.pad(0.07, 0.07);
    y.pad(0.16, 0.08);
    View view{.title = "Candidates",
              .y_title = predicted_axis(chart.search.objective),
              .plot = {},
              .predicted = predicted,
              .measured = measured,
              .close_up = true};
    view.plot = {box, {x.low, x.high, box.x, box.right()}, {y.low, y.high, box.bottom(), box.y}};
    return view;
}

std::string alternative(const nas::SearchResult& search) {
    std::string text = fmt::format("Memory against quality: {} candidates", search.candidates.size());
    if (search.budget_bytes >= 0) text += ", budget " + memory_text(search.budget_bytes);
    if (const nas::Candidate* best = best_of(search)) text += "; best " + tooltip(*best);
    return text;
}

// The close-up of the chosen measurement where it cannot share the objective's axis.
View measured_close_up(const Chart& chart, const Box& box, const Figure& chosen) {
    View view = close_up(chart, box, kNothing, chosen);
    view.title = "Candidates, measured";
    view.y_title = measured_axis(chart.search.select_by);
    view.shows_prediction = false;
    view.larger_is_better = selection_of(chart.search).larger_is_better;
    return view;
}

std::vector<LegendEntry> entries_of(const Chart& chart, bool measured) {
    std::vector<LegendEntry> entries = {{"frontier", "best predicted at every budget"}};
    if (measured) entries.push_back({"frontier of-measured", "best measured at every budget"});
    entries.push_back({"predicted", "candidate, predicted"});
    if (measured) entries.push_back({"measured", "candidate, measured"});
    entries.insert(entries.end(), {{"ring", "best"}, {"teacher-mark", "teacher"}});
    if (chart.has_budget_line) entries.push_back({"budget", "budget"});
    return entries;
}

}  // namespace

std::string frontier_chart(const nas::SearchResult& search) {
    const double shift = prediction_shift(search);
    const Figure predicted = [&](const nas::Candidate& c) {
        return std::optional(c.predicted.value + shift);
    };
    const Figure chosen = [&](const nas::Candidate& c) {
        return c.measured ? std::optional(selected_value(*c.measured, search.select_by)) : std::nullopt;
    };
    const Figure shared = comparable(search) ? chosen : kNothing;
    const auto& all = search.candidates;
    const bool measured =
        std::any_of(all.begin(), all.end(), [](const auto& c) { return c.measured.has_value(); });
    const bool two = all.size() > 1;
    const double width = two ? 1080 : 640;
    Chart chart{search, unit_for(search.teacher_memory.total()), teacher_value(search, shift), shift,
                Svg(width, kHeight, alternative(search))};
    const Box left{62, kTop, two ? 450.0 : width - 80, kHeight - kTop - kBottom};
    draw_view(chart, overview(chart, left, predicted, shared));
    if (two) {
        const Box right{612, kTop, 450, left.height};
        draw_view(chart, measured && !comparable(search) ? measured_close_up(chart, right, chosen)
                                                         : close_up(chart, right, predicted, shared));
    }
    return legend(entries_of(chart, measured)) + chart.svg.finish();
}

}  // namespace minipuzzle::report
