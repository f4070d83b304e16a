// What the cases of the report and of inspect share: made-up scores with all their parts, and looks at
// markup.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "cli/report/svg.h"
#include "runtime/score_table.h"

namespace minipuzzle::test {

inline int64_t occurrences(std::string_view text, std::string_view wanted) {
    int64_t count = 0;
    for (std::size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + wanted.size()))
        ++count;
    return count;
}

// Empty where every tag is closed in order, else what is wrong. Text must not hold a bare '<'.
inline std::string unbalanced(std::string_view page) {
    std::vector<std::string> open;
    for (std::size_t at = page.find('<'); at != page.npos; at = page.find('<', at + 1)) {
        const std::size_t end = page.find('>', at);
        if (end == page.npos) return "a tag without its end";
        const std::string_view tag = page.substr(at + 1, end - at - 1);
        if (tag.empty() || tag[0] == '!' || tag.back() == '/') continue;
        if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) return fmt::format("odd quotes in <{}>", tag);
        const std::string name(tag.substr(tag[0] == '/', tag.find_first_of(" \n") - (tag[0] == '/')));
        if (tag[0] != '/') {
            open.push_back(name);
            continue;
        }
        if (open.empty() || open.back() != name)
            return fmt::format("</{}> closes <{}>", name, open.empty() ? "" : open.back());
        open.pop_back();
    }
    return open.empty() ? "" : fmt::format("<{}> stays open", open.back());
}

inline std::string pattern_of(int64_t layers) {
    std::string pattern;
    for (int64_t i = 0; i < layers; ++i) pattern += i % 11 == 7 ? '*' : i % 2 == 0 ? 'M' : '-';
    return pattern;
}

inline LayerType type_at(const std::string& pattern, std::size_t layer) {
    return pattern[layer] == 'M'   ? LayerType::mamba
           : pattern[layer] == '*' ? LayerType::attention
                                   : LayerType::ffn;
}

inline ScoreTable scores_of(const std::string& pattern) {
    ScoreTable table;
    table.model = {.path = "teacher", .pattern = pattern, .arch_hash = "", .weights_hash = ""};
    table.base_loss = 2.5;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        LayerScore layer;
        layer.layer = static_cast<int64_t>(i);
        layer.type = type_at(pattern, i);
        layer.loss_delta = 0.01 + 0.001 * static_cast<double>(i % 17);
        layer.loss_delta_ci = {{*layer.loss_delta - 0.002, *layer.loss_delta + 0.002}};
        table.layers.push_back(layer);
    }
    return table;
}

// The same with every metric and every optional part: pairs at most `window` layers apart, `steps` removals.
inline ScoreTable full_scores_of(const std::string& pattern, int64_t window, int64_t steps) {
    ScoreTable table = scores_of(pattern);
    const auto layers = static_cast<int64_t>(pattern.size());
    table.calibration = CalibrationInfo{.sources = {}, .sequences = 64, .seq_len = 128, .tokens = 8000};
    table.base_accuracy = 0.5;
    for (LayerScore& layer : table.layers) {
        // A permutation of the depths as far as 17 goes, so that few layers tie.
        const double cost =
            0.002 * static_cast<double>((layer.layer * 7 + 3) % 17) + 1e-5 * static_cast<double>(layer.layer);
        layer.loss_delta = cost;
        layer.loss_delta_ci = {{cost - 0.002, cost + 0.002}};
        layer.kl = 0.9 * cost + 1e-4;
        layer.hidden_mse = 0.01 * static_cast<double>(layers - layer.layer);
        layer.logit_nmse = 0.1 * cost;
        layer.cosine = 1 - cost;
        layer.top1_agreement = 1 - 2 * cost;
        layer.samples = 64;
    }
    PairScores& pairs = table.pairs.emplace();
    pairs.window = window;
    pairs.sequences = 32;
    for (int64_t first = 0; first < layers; ++first)
        for (int64_t second = first + 1; second < layers && second - first <= window; ++second) {
            const double interaction = 0.01 * std::sin(static_cast<double>(first * 3 + second * 5));
            const double both = *table.layers[static_cast<std::size_t>(first)].loss_delta +
                                *table.layers[static_cast<std::size_t>(second)].loss_delta;
            pairs.pairs.push_back({.first = first,
                                   .second = second,
                                   .loss_delta = both + interaction,
                                   .interaction = interaction,
                                   .interaction_ci = Interval{interaction - 0.001, interaction + 0.001}});
        }
    IterativeScores& iterative = table.iterative.emplace();
    iterative.sequences = 32;
    for (int64_t step = 0; step < steps; ++step) {
        const double total = 0.002 * static_cast<double>((step + 1) * (step + 1));
        iterative.steps.push_back({.removed = (step * 5 + 1) % layers,
                                   .loss_delta = total,
                                   .loss_delta_ci = Interval{total - 0.001, total + 0.001},
                                   .bytes = 1000 + step,
                                   .layers = std::vector<std::optional<double>>(pattern.size())});
    }
    RankStability& stability = table.stability.emplace();
    stability = {
        .resamples = 200, .documents = 64, .rank_correlation = 0.97, .ranks = {}, .split_half = 0.91};
    for (int64_t layer = 0; layer < layers; ++layer)
        stability.ranks.push_back({layer / 2, std::min(layers - 1, layer + layer % 3)});
    table.certainty = Certainty{.confidence = 0.95,
                                .tie = 0.002,
                                .drop = {0, 1},
                                .ties = {{1, 2}},
                                .open = {{0, 2}},
                                .layer_work = 0.41};
    table.precision = PrecisionCheck{.sweep = "fp8",
                                     .head = "bf16",
                                     .sequences = 8,
                                     .rank_correlation = 0.998,
                                     .rms_error = 0.0004,
                                     .largest_error = 0.001};
    return table;
}

// A text of a picture with the place it takes, estimated with some room.
struct PlacedText {
    std::string text;
    report::Box box;
};
inline std::vector<PlacedText> placed_texts(const std::string& svg) {
    static const std::regex kText(
        "<text class=\"([^\"]*)\" x=\"([^\"]*)\" y=\"([^\"]*)\" text-anchor=\"([^\"]*)\">([^<]*)</text>");
    std::vector<PlacedText> texts;
    for (std::sregex_iterator at(svg.begin(), svg.end(), kText), end; at != end; ++at) {
        const std::string css = (*at)[1], anchor = (*at)[4], text = (*at)[5];
        const double size = css.find("strong") != css.npos ? 13 : css.find("small") != css.npos ? 11 : 12;
        const double width = report::text_width(text, size), x = std::stod((*at)[2]);
        const double left = anchor == "start" ? x : anchor == "end" ? x - width : x - width / 2;
        // Digits and capitals reach 0.73 of the size above the line; a little below it for the rest.
        texts.push_back({text, {left, std::stod((*at)[3]) - 0.73 * size, width, 0.8 * size}});
    }
    return texts;
}
// The first two texts that lie on each other, or "".
inline std::string overlapping_texts(const std::string& svg) {
    const std::vector<PlacedText> texts = placed_texts(svg);
    for (std::size_t i = 0; i < texts.size(); ++i)
        for (std::size_t j = 0; j < i; ++j) {
            const report::Box &a = texts[i].box, &b = texts[j].box;
            if (a.x < b.right() && b.x < a.right() && a.y < b.bottom() && b.y < a.bottom())
                return fmt::format("\"{}\" at {}, {} on \"{}\" at {}, {}", texts[i].text, a.x, a.y,
                                   texts[j].text, b.x, b.y);
        }
    return "";
}

}  // namespace minipuzzle::test
