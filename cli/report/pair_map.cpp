#include "cli/report/pair_map.h"

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

constexpr double kMapSide = 744, kLargestCell = 24, kMargin = 34, kTop = 40, kLegendWidth = 260;
constexpr double kLeastInside = 520;  // sides from here on leave the colour scale room below the diagonal
constexpr int kShades = 10;           // of each sign
constexpr std::size_t kListed = 6;    // pairs of each sign

struct Map {
    double cell = 0, side = 0;
    double at(int64_t layer) const { return cell * static_cast<double>(layer); }
    // Cells a little apart, as far as their size allows.
    double inner() const { return cell > 7 ? cell - 1 : cell; }
};

std::string square(const Map& map, int64_t first, int64_t second) {
    const std::string side = px(map.inner());
    return fmt::format("M{} {}h{}v{}h-{}z", px(kMargin + map.at(second)), px(kTop + map.at(first)), side,
                       side, side);
}

// The shade of an interaction, -kShades .. kShades.
int shade(double interaction, double end) {
    const double share = std::clamp(interaction / end, -1.0, 1.0);
    return static_cast<int>(std::lround(share * kShades));
}

std::string shade_class(int shade) {
    if (shade == 0) return "heat zero";
    return fmt::format("heat {} s{}", shade > 0 ? "up" : "down", std::abs(shade));
}

// One path per shade keeps a map of 6903 pairs under 200 KB.
void draw_pairs(Svg& svg, const Map& map, const PairScores& pairs, double end) {
    std::array<std::string, 2 * kShades + 1> paths;
    for (const PairScore& pair : pairs.pairs)
        if (std::isfinite(pair.interaction))
            paths[narrow<std::size_t>(shade(pair.interaction, end) + kShades)] +=
                square(map, pair.first, pair.second);
    for (int each = -kShades; each <= kShades; ++each)
        if (const std::string& path = paths[narrow<std::size_t>(each + kShades)]; !path.empty())
            svg.path(path, shade_class(each));
}

// What was not measured, a bar for every run of pairs of a row; and the triangle's outline.
void draw_ground(Svg& svg, const Map& map, const PairScores& pairs, int64_t layers) {
    std::string path;
    auto next = pairs.pairs.begin();
    for (int64_t row = 0; row + 1 < layers; ++row) {
        int64_t begin = row + 1;
        const auto run_to = [&](int64_t end) {
            if (end > begin)
                path += fmt::format("M{} {}h{}v{}h-{}z", px(kMargin + map.at(begin)), px(kTop + map.at(row)),
                                    px(map.at(end - begin)), px(map.cell), px(map.at(end - begin)));
        };
        for (; next != pairs.pairs.end() && next->first == row; ++next) {
            run_to(next->second);
            begin = next->second + 1;
        }
        run_to(layers);
    }
    if (!path.empty()) svg.path(path, "heat ground");
    std::string outline = fmt::format("M{} {}H{}V{}", px(kMargin + map.at(1)), px(kTop),
                                      px(kMargin + map.side), px(kTop + map.at(layers - 1)));
    for (int64_t row = layers - 2; row >= 0; --row)
        outline += fmt::format("H{}V{}", px(kMargin + map.at(row + 1)), px(kTop + map.at(row)));
    svg.path(outline + "z", "outline");
}

// The layers' types on the diagonal and along the top, their numbers beside both.
void draw_layers(Svg& svg, const Map& map, const ScoreTable& scores) {
    std::array<std::string, 3> types;
    for (const LayerScore& layer : scores.layers) {
        auto& path = types[static_cast<std::size_t>(layer.type)];
        path += square(map, layer.layer, layer.layer);
        if (layer.layer > 0)
            path += fmt::format("M{} {}h{}v5h-{}z", px(kMargin + map.at(layer.layer)), px(kTop - 9),
                                px(map.inner()), px(map.inner()));
    }
    for (const LayerType type : kLayerTypes)
        if (const auto& path = types[static_cast<std::size_t>(type)]; !path.empty())
            svg.path(path, fmt::format("cell {}", type_class(type)));
    const int64_t across = tick_step(map.cell, 30), down = tick_step(map.cell, 15);
    for (const LayerScore& layer : scores.layers) {
        const double centre = map.at(layer.layer) + map.inner() / 2;
        const std::string number = fmt::format("{}", layer.layer);
        if (layer.layer % across == 0 && layer.layer > 0)
            svg.text({kMargin + centre, kTop - 14}, number, Anchor::middle, "tick");
        if (layer.layer % down == 0)
            svg.text({kMargin + map.at(layer.layer) - 5, kTop + centre + 4}, number, Anchor::end,
                     "tick small");
    }
}

void draw_scale(Svg& svg, Point at, double end, std::size_t beyond) {
    const double step = 10, middle = at.x + step * (kShades + 0.5);
    svg.text(at, "interaction (nats per token)", Anchor::start, "axis-title");
    for (int each = -kShades; each <= kShades; ++each) {
        const double x = at.x + step * (each + kShades);
        svg.rect({x, at.y + 10, step, 14}, shade_class(each));
    }
    svg.line({middle, at.y + 24}, {middle, at.y + 29}, "axis");
    svg.text({at.x, at.y + 41}, value_text(-end, 2), Anchor::start, "tick");
    svg.text({middle, at.y + 41}, "0", Anchor::middle, "tick");
    svg.text({at.x + step * (2 * kShades + 1), at.y + 41}, value_text(end, 2), Anchor::end, "tick");
    if (beyond > 0)
        svg.text({at.x, at.y + 59}, fmt::format("{} pairs beyond, in the last shades", beyond), Anchor::start,
                 "tick");
}

std::string pair_words(const ScoreTable& scores, const PairScore& pair) {
    const auto words = [&](int64_t layer) {
        return fmt::format("{} ({})", layer, type_word(scores.layers[narrow<std::size_t>(layer)].type));
    };
    return fmt::format("{} and {}", words(pair.first), words(pair.second));
}

std::string alternative(const ScoreTable& scores) {
    const cli::StrongestPairs strongest = cli::strongest_pairs(*scores.pairs, 1);
    std::string text = fmt::format("Interactions of {} pairs of {} layers", scores.pairs->pairs.size(),
                                   scores.layers.size());
    for (const auto& [word, list] :
         {std::pair{"largest", &strongest.positive}, std::pair{"least", &strongest.negative}})
        if (!list->empty())
            text += fmt::format("; the {} between layers {}: {}", word, pair_words(scores, list->front()),
                                value_text(list->front().interaction));
    return text;
}

}  // namespace

std::optional<double> colour_end(const PairScores& pairs) {
    std::vector<double> sizes;
    for (const PairScore& pair : pairs.pairs)
        if (std::isfinite(pair.interaction)) sizes.push_back(std::fabs(pair.interaction));
    if (sizes.empty()) return std::nullopt;
    std::sort(sizes.begin(), sizes.end());
    const double wanted = sizes[(sizes.size() - 1) * 98 / 100];
    if (wanted <= 0) return sizes.back() > 0 ? sizes.back() : 1e-6;
    const double power = std::pow(10.0, std::floor(std::log10(wanted)));
    for (const double factor : {1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0})
        if (factor * power >= wanted * (1 - 1e-9)) return factor * power;
    return 10 * power;
}

std::string pair_map(const ScoreTable& scores) {
    if (!scores.pairs) return "";
    const std::optional<double> end = colour_end(*scores.pairs);
    if (!end) return "";
    const auto layers = static_cast<int64_t>(scores.layers.size());
    // Whole pixels leave no seams between cells.
    const double most = kMapSide / static_cast<double>(layers);
    Map map{.cell = std::min(most > 1 ? std::floor(most) : most, kLargestCell)};
    map.side = map.at(layers);
    const bool inside = map.side >= kLeastInside;
    Svg svg(kMargin + map.side + (inside ? 4 : kLegendWidth), kTop + std::max(map.side, 80.0) + 4,
            alternative(scores));
    draw_ground(svg, map, *scores.pairs, layers);
    draw_pairs(svg, map, *scores.pairs, *end);
    draw_layers(svg, map, scores);
    const auto beyond =
        std::count_if(scores.pairs->pairs.begin(), scores.pairs->pairs.end(),
                      [&](const PairScore& pair) { return std::fabs(pair.interaction) > *end * (1 + 1e-9); });
    const Point scale_at =
        inside ? Point{0, kTop + map.side - 70} : Point{kMargin + map.side + 30, kTop + 12};
    draw_scale(svg, scale_at, *end, static_cast<std::size_t>(beyond));
    std::vector<LegendEntry> entries;
    for (const LayerType type : kLayerTypes) entries.push_back({type_class(type), type_word(type)});
    entries.push_back({"up", "losing both costs more than their sum"});
    entries.push_back({"down", "less"});
    entries.push_back({"ground", "not measured"});
    return legend(entries) + svg.finish();
}

std::string pair_table(const ScoreTable& scores) {
    if (!scores.pairs) return "";
    const cli::StrongestPairs strongest = cli::strongest_pairs(*scores.pairs, kListed);
    std::vector<Row> rows;
    for (const auto* list : {&strongest.positive, &strongest.negative})
        for (const PairScore& pair : *list) {
            const auto& ci = pair.interaction_ci;
            rows.push_back(
                {.cells = {pair_words(scores, pair), fixed_text(pair.interaction, 4),
                           ci ? fixed_text((*ci)[0], 4) + " to " + fixed_text((*ci)[1], 4) : "\u2013",
                           fixed_text(pair.loss_delta, 4)},
                 .css_class = ""});
        }
    if (rows.empty()) return "";
    return table({{"strongest pairs", CellKind::text},
                  {"interaction"},
                  {"95 % interval"},
                  {"loss increase without both"}},
                 rows);
}

}  // namespace minipuzzle::report
