#include "cli/report/prediction_scatter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::report {
namespace {

constexpr double kSide = 360, kLeft = 62, kTop = 34, kBottom = 50, kRight = 24;

struct Pair {
    const nas::Candidate* candidate;
    double predicted, measured;
};

std::vector<Pair> pairs_of(const nas::SearchResult& search) {
    const double shift = prediction_shift(search);
    std::vector<Pair> pairs;
    for (const nas::Candidate& candidate : search.candidates)
        if (candidate.measured)
            pairs.push_back({&candidate, candidate.predicted.value + shift,
                             selected_value(*candidate.measured, search.select_by)});
    std::erase_if(pairs,
                  [](const Pair& p) { return !std::isfinite(p.predicted) || !std::isfinite(p.measured); });
    return pairs;
}

Scale scale_over(const std::vector<double>& values, double start, double end) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const double by = *high > *low ? (*high - *low) * 0.06 : std::max(std::fabs(*high) * 0.1, 1e-9);
    return {*low - by, *high + by, start, end};
}

// Both axes alike where the two can be compared, so that the identity is the diagonal.
Plot plot_of(const std::vector<Pair>& pairs, bool alike) {
    std::vector<double> x, y;
    for (const Pair& pair : pairs) {
        x.push_back(pair.predicted);
        y.push_back(pair.measured);
    }
    if (alike) {
        x.insert(x.end(), y.begin(), y.end());
        y = x;
    }
    const Box box{kLeft, kTop, kSide, kSide};
    return {box, scale_over(x, box.x, box.right()), scale_over(y, box.bottom(), box.y)};
}

std::string picture(const nas::SearchResult& search, const std::vector<Pair>& pairs) {
    const bool alike = comparable(search);
    const Plot plot = plot_of(pairs, alike);
    Svg svg(kLeft + kSide + kRight, kTop + kSide + kBottom,
            fmt::format("Predicted against measured: {} candidates", pairs.size()));
    draw_y_axis(svg, plot, "measured " + measured_axis(search.select_by));
    draw_x_axis(svg, plot, "predicted " + predicted_axis(search.objective), 5);
    if (alike) {
        svg.line(plot.at(plot.x.from, plot.x.from), plot.at(plot.x.to, plot.x.to), "identity");
        svg.text({plot.box.right() - 6, plot.box.y + 20}, "equal", Anchor::end, "tick halo");
    }
    const auto draw = [&](const Pair& pair, double size) {
        const std::string words = fmt::format("{}: predicted {}, measured {}", pair.candidate->id,
                                              value_text(pair.predicted), value_text(pair.measured));
        svg.circle(plot.at(pair.predicted, pair.measured), size, "measured", words);
    };
    for (const Pair& pair : pairs)
        if (pair.candidate->id != search.best) draw(pair, 4);
    for (const Pair& pair : pairs)
        if (pair.candidate->id == search.best) {
            draw(pair, 5);
            svg.circle(plot.at(pair.predicted, pair.measured), 9, "ring");
        }
    return svg.finish();
}

// 1: the same order; measurements where more is better are turned round.
std::optional<double> correlation(const nas::SearchResult& search, const std::vector<Pair>& pairs) {
    std::vector<double> predicted, measured;
    const double sign = selection_of(search).larger_is_better ? -1 : 1;
    for (const Pair& pair : pairs) {
        predicted.push_back(pair.predicted);
        measured.push_back(sign * pair.measured);
    }
    return spearman(predicted, measured);
}

// The mean over sizes (numbers of dropped layers) with five students or more, by their number.
std::optional<double> inside_sizes(const nas::SearchResult& search, const std::vector<Pair>& pairs) {
    constexpr std::size_t kFewest = 5;
    std::map<std::size_t, std::vector<Pair>> sizes;
    for (const Pair& pair : pairs) sizes[pair.candidate->plan.drop.size()].push_back(pair);
    double sum = 0, count = 0;
    for (const auto& [size, students] : sizes) {
        if (students.size() < kFewest) continue;
        if (const auto inside = correlation(search, students)) {
            sum += *inside * static_cast<double>(students.size());
            count += static_cast<double>(students.size());
        }
    }
    return count > 0 ? std::optional(sum / count) : std::nullopt;
}

std::string figures(const nas::SearchResult& search, const std::vector<Pair>& pairs) {
    const auto row = [](const std::string& what, std::size_t students, const std::optional<double>& figure) {
        return Row{.cells = {what, grouped(static_cast<int64_t>(students)), fixed_or_dash(figure, 3)},
                   .css_class = ""};
    };
    std::vector<Row> rows = {row("all measured", pairs.size(), correlation(search, pairs))};
    if (const auto inside = inside_sizes(search, pairs))
        rows.push_back(row("inside equal numbers of dropped layers", pairs.size(), inside));
    for (std::size_t i = 0; i < search.rounds.size(); ++i)
        rows.push_back(row(fmt::format("round {}, as foretold", i + 1),
                           static_cast<std::size_t>(search.rounds[i].fresh),
                           search.rounds[i].rank_correlation));
    return table({{"Spearman", CellKind::text}, {"students"}, {"predicted, measured"}}, rows);
}

}  // namespace

std::string prediction_scatter(const nas::SearchResult& search) {
    const std::vector<Pair> pairs = pairs_of(search);
    if (pairs.size() < 2) return "";
    return "<div class=\"beside\">" + picture(search, pairs) + figures(search, pairs) + "</div>\n";
}

}  // namespace minipuzzle::report
