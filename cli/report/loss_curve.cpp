#include "cli/report/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/report/html.h"
#include "cli/report/svg.h"

namespace minipuzzle::report {
namespace {

constexpr double kWidth = 1080, kLeft = 62, kRight = 18, kTop = 28, kPlotHeight = 240;
constexpr double kRateTop = kTop + kPlotHeight + 22, kRateHeight = 44;
constexpr std::size_t kMostPoints = 1200;  // twice what the plot has in pixels would show nothing more

struct Curve {
    std::string css_class, word;
    std::vector<double> tokens, values;
};

std::vector<Curve> curves_of(const distill::RunLog& log) {
    Curve loss{"loss", "loss", {}, {}}, kl{"kl-term", "KL", {}, {}}, ce{"ce-term", "cross-entropy", {}, {}},
        feature{"feature-term", "feature", {}, {}};
    const auto add = [](Curve& curve, int64_t tokens, const std::optional<double>& value) {
        if (!value || !std::isfinite(*value)) return;
        curve.tokens.push_back(static_cast<double>(tokens));
        curve.values.push_back(*value);
    };
    for (const distill::RunStep& step : log.steps) {
        add(loss, step.tokens, step.loss);
        add(kl, step.tokens, step.kl);
        add(ce, step.tokens, step.ce);
        add(feature, step.tokens, step.feature);
    }
    std::vector<Curve> curves = {loss};
    for (const Curve& term : {kl, ce, feature})
        if (!term.values.empty() && term.values == loss.values)
            curves[0].word += fmt::format(" (= {})", term.word);
        else if (!term.values.empty())
            curves.push_back(term);
    std::erase_if(curves, [](const Curve& curve) { return curve.values.empty(); });
    return curves;
}

// The points of a line; long ones as the smallest and the largest value of every stretch.
std::vector<Point> line_points(const Plot& plot, const std::vector<double>& xs,
                               const std::vector<double>& ys) {
    std::vector<Point> points;
    const std::size_t stretch = std::max<std::size_t>(1, (2 * xs.size() + kMostPoints - 1) / kMostPoints);
    for (std::size_t begin = 0; begin < xs.size(); begin += stretch) {
        const std::size_t end = std::min(begin + stretch, xs.size());
        const auto [low, high] = std::minmax_element(ys.begin() + static_cast<std::ptrdiff_t>(begin),
                                                     ys.begin() + static_cast<std::ptrdiff_t>(end));
        const auto first = std::min(low, high), second = std::max(low, high);
        for (const auto at : {first, second})
            if (at == first || first != second)
                points.push_back(plot.at(xs[static_cast<std::size_t>(at - ys.begin())], *at));
        if (first == second) points.pop_back();
    }
    return points;
}

void draw_curve(Svg& svg, const Plot& plot, const Curve& curve) {
    if (curve.values.size() == 1) {
        svg.circle(plot.at(curve.tokens[0], curve.values[0]), 4, "dot " + curve.css_class);
        return;
    }
    const std::vector<double> smooth = smoothed(curve.values);
    svg.polyline(line_points(plot, curve.tokens, curve.values), "raw " + curve.css_class);
    svg.polyline(line_points(plot, curve.tokens, smooth), "smooth " + curve.css_class);
}

Scale value_scale(const std::vector<Curve>& curves) {
    double low = curves[0].values[0], high = low;
    for (const Curve& curve : curves)
        for (const double value : curve.values) low = std::min(low, value), high = std::max(high, value);
    Scale scale{0, high * 1.05, kTop + kPlotHeight, kTop};
    if (low > 0 && high / low > 12)
        scale = {low * 0.9, high * 1.1, scale.start, scale.end, ScaleKind::log};
    else if (low > 0.5 * high)
        scale.from = low - 0.15 * (high - low) - 0.01 * high;
    else if (low < 0)
        scale.from = low * 1.05;
    if (scale.to <= scale.from) scale.to = scale.from + 1;
    return scale;
}

struct TokenUnit {
    double tokens;
    const char* word;
};
TokenUnit token_unit(double most) {
    if (most >= 2e9) return {1e9, "billions of tokens"};
    if (most >= 2e6) return {1e6, "millions of tokens"};
    if (most >= 2e3) return {1e3, "thousands of tokens"};
    return {1, "tokens"};
}

void draw_rate(Svg& svg, const distill::RunLog& log, const Scale& x, double unit) {
    double most = 0;
    std::vector<double> tokens, rates;
    for (const distill::RunStep& step : log.steps) {
        most = std::max(most, step.lr);
        tokens.push_back(static_cast<double>(step.tokens) / unit);
        rates.push_back(step.lr);
    }
    if (most <= 0) return;
    const Plot plot{{kLeft, kRateTop, kWidth - kLeft - kRight, kRateHeight},
                    x,
                    {0, most, kRateTop + kRateHeight, kRateTop + 4}};
    svg.line({kLeft, plot.y(most)}, {kWidth - kRight, plot.y(most)}, "grid");
    svg.text({kLeft - 8, plot.y(most) + 4}, value_text(most, 2), Anchor::end, "tick");
    svg.text({kLeft - 8, kRateTop + kRateHeight + 4}, "0", Anchor::end, "tick");
    if (rates.size() == 1)
        svg.circle(plot.at(tokens[0], rates[0]), 3, "dot rate");
    else
        svg.polyline(line_points(plot, tokens, rates), "rate");
}

}  // namespace

std::vector<double> smoothed(const std::vector<double>& values) {
    std::vector<double> sums = {0};
    for (const double value : values) sums.push_back(sums.back() + value);
    const std::size_t count = values.size();
    std::vector<double> result;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t back = std::min(count / 50, i), ahead = std::min(back, count - 1 - i);
        result.push_back((sums[i + ahead + 1] - sums[i - back]) / static_cast<double>(ahead + back + 1));
    }
    return result;
}

std::string loss_curve(const distill::RunLog& log) {
    std::vector<Curve> curves = curves_of(log);
    if (curves.empty()) return "";
    const TokenUnit unit = token_unit(static_cast<double>(log.steps.back().tokens));
    for (Curve& curve : curves)
        for (double& tokens : curve.tokens) tokens /= unit.tokens;
    const double last = static_cast<double>(log.steps.back().tokens) / unit.tokens;
    const Scale x{0, last > 0 ? last : 1, kLeft, kWidth - kRight};
    const Plot plot{{kLeft, kTop, kWidth - kLeft - kRight, kPlotHeight}, x, value_scale(curves)};

    const Curve& main = curves[0];
    Svg svg(kWidth, kRateTop + kRateHeight + 46,
            fmt::format("Distillation: {} from {} to {} over {} tokens", main.word,
                        value_text(main.values.front()), value_text(smoothed(main.values).back()),
                        count_text(log.steps.back().tokens)));
    draw_y_axis(svg, plot, plot.y.kind == ScaleKind::log ? "nats per token, logarithmic" : "nats per token");
    svg.line({kLeft, plot.box.bottom()}, {plot.box.right(), plot.box.bottom()}, "axis");
    for (const Curve& curve : curves) draw_curve(svg, plot, curve);
    draw_rate(svg, log, x, unit.tokens);
    Plot below = plot;
    below.box = {kLeft, kRateTop, plot.box.width, kRateHeight};
    draw_x_axis(svg, below, unit.word);
    std::vector<LegendEntry> entries;
    for (const Curve& curve : curves)
        entries.push_back({"line " + curve.css_class, curve.word + ", smoothed (pale: every step)"});
    entries.push_back({"line rate", "learning rate, below"});
    return legend(entries) + svg.finish();
}

}  // namespace minipuzzle::report
