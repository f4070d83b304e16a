#include "cli/report/agreement_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"
#include "cli/score_analysis.h"

namespace minipuzzle::report {
namespace {

using cli::MetricAgreement;

constexpr double kWidth = 1080, kCellWidth = 43, kCellHeight = 30, kGap = 18, kTop = 26;
constexpr int kShades = 10;

// What a cell of the diagonal has room for.
const char* short_name(const std::string& metric) {
    constexpr std::pair<const char*, const char*> kNames[] = {
        {"loss_delta", "loss"},     {"kl", "KL"},
        {"hidden_mse", "h mse"},    {"logit_nmse", "z mse"},
        {"1-cosine", "1\u2212cos"}, {"1-top1", "1\u2212top"}};
    for (const auto& [name, words] : kNames)
        if (metric == name) return words;
    return "";
}

// Correlations lie close to 1, where the differences are: shades go by the cube.
std::string shade(double correlation) {
    const double strength = std::pow(std::min(std::fabs(correlation), 1.0), 3);
    return fmt::format("{} s{}", correlation < 0 ? "below" : "agree",
                       static_cast<int>(std::lround(strength * kShades)));
}

void draw_cell(Svg& svg, const Box& box, const std::string& tooltip,
               const std::optional<double>& correlation) {
    svg.rect(box, correlation ? "heat " + shade(*correlation) : "heat none", tooltip);
    svg.text({box.x + box.width / 2, box.y + box.height / 2 + 4},
             correlation ? fixed_text(*correlation, 2) : "\u2013", Anchor::middle, "small");
}

void draw_triangle(Svg& svg, double left, const MetricAgreement& agreement) {
    const std::string title =
        fmt::format("{} ({} layers)", agreement.type ? type_word(*agreement.type) : "all", agreement.layers);
    svg.text({left, 13}, title, Anchor::start, "strong");
    for (std::size_t row = 0; row < agreement.metrics.size(); ++row)
        for (std::size_t column = 0; column <= row; ++column) {
            const Box box{left + kCellWidth * static_cast<double>(column),
                          kTop + kCellHeight * static_cast<double>(row), kCellWidth - 1.5, kCellHeight - 1.5};
            if (row == column) {
                svg.text({box.x + box.width / 2, box.y + box.height / 2 + 4},
                         short_name(agreement.metrics[row]), Anchor::middle, "small metric");
                continue;
            }
            draw_cell(svg, box, fmt::format("{} and {}", agreement.metrics[row], agreement.metrics[column]),
                      agreement.spearman[row][column]);
        }
}

// What the diagonal's words stand for.
std::string words_of(const MetricAgreement& agreement) {
    std::string text;
    for (const std::string& metric : agreement.metrics)
        text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", short_name(metric), metric);
    return "<p class=\"sub\">" + text + ".</p>\n";
}

std::string alternative(const std::vector<MetricAgreement>& agreements) {
    const MetricAgreement& all = agreements.front();
    std::optional<double> least;
    std::string pair;
    for (std::size_t row = 0; row < all.metrics.size(); ++row)
        for (std::size_t column = 0; column < row; ++column) {
            const std::optional<double>& each = all.spearman[row][column];
            if (!each || (least && *least <= *each)) continue;
            least = each;
            pair = fmt::format("{} and {}", all.metrics[row], all.metrics[column]);
        }
    if (!least) return "Agreement of the metrics: none has a spread";
    return fmt::format("Agreement of {} metrics over {} layers; the least between {}: {}", all.metrics.size(),
                       all.layers, pair, fixed_text(*least, 2));
}

}  // namespace

std::string agreement_matrix(const ScoreTable& scores) {
    const std::vector<MetricAgreement> agreements = cli::metric_agreements(scores);
    if (agreements.empty()) return "";
    const auto size = static_cast<double>(agreements.front().metrics.size());
    const double panel = kCellWidth * size;
    const auto panels = static_cast<double>(agreements.size());
    const double width = std::min(kWidth, std::max(panel * panels + kGap * (panels - 1), 180.0 * panels));
    Svg svg(width, kTop + kCellHeight * size, alternative(agreements));
    const double step = panels > 1 ? (width - std::max(panel, 160.0)) / (panels - 1) : 0;
    for (std::size_t i = 0; i < agreements.size(); ++i)
        draw_triangle(svg, step * static_cast<double>(i), agreements[i]);
    return svg.finish() + words_of(agreements.front());
}

}  // namespace minipuzzle::report
