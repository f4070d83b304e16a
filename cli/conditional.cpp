#include "cli/conditional.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/table.h"
#include "kernels/check.h"
#include "nas/memory_model.h"

namespace minipuzzle::cli {

namespace {

std::string cell(const std::optional<Interval>& interval) {
    return interval ? fmt::format("{:.4f} .. {:.4f}", (*interval)[0], (*interval)[1]) : "-";
}

int64_t window_of(const std::string& text) {
    try {
        return parse_count(text);
    } catch (const Error&) {
        fail_usage(fmt::format("--pairs {}: expected how many layers apart at most, or all", text));
    }
}

std::string type_name(const ScoreTable& scores, int64_t layer) {
    return std::string(name(scores.layers[layer].type));
}

}  // namespace

void ConditionalOptions::add_to(OptionTable& table) {
    table.count("iterative", iterative,
                "take away the least important layer so many times, each time measuring the rest anew");
    table.count("random-sets", random_sets,
                "measure so many random sets of layers off, for predicting students (with --pairs)");
    table.optional_text("pairs", "[W|all]", pairs,
                        "measure layers off two at a time: pairs at most W apart, and of likely layers [4]");
    table.count("pair-candidates", candidates,
                "how many layers, least important first, are paired at any distance [a third]");
    table.count("pair-samples", samples, "sequences that pairs are measured on; 0: all");
}

std::optional<importance::PairOptions> pair_options(const ConditionalOptions& options) {
    if (!options.pairs) {
        if (options.candidates) fail_usage("--pair-candidates goes with --pairs");
        if (options.samples > 0) fail_usage("--pair-samples goes with --pairs");
        if (options.random_sets > 0) fail_usage("--random-sets goes with --pairs");
        return std::nullopt;
    }
    importance::PairOptions pairs{
        .all = *options.pairs == "all", .candidates = options.candidates, .samples = options.samples};
    if (pairs.all && options.candidates)
        fail_usage("--pair-candidates: --pairs all leaves nothing to choose; give one of the two");
    if (!pairs.all && !options.pairs->empty()) pairs.window = window_of(*options.pairs);
    return pairs;
}

std::vector<int64_t> layer_bytes(const Architecture& architecture, const nas::Workload& workload) {
    std::vector<int64_t> bytes;
    for (const nas::MemoryUnits& layer : nas::layer_memory(architecture, workload).layers)
        bytes.push_back(layer.memory(0).total());
    return bytes;
}

std::string sharing_line(const std::string& what, const importance::SweepWork& work) {
    return fmt::format("{}: {:.4g} multiply-adds, {:.3f} of the {:.4g} that separate passes take\n", what,
                       work.multiply_adds, work.multiply_adds / work.separate_multiply_adds,
                       work.separate_multiply_adds);
}

std::string removal_summary(const ScoreTable& scores) {
    const auto& steps = scores.iterative->steps;
    const bool weighed = !steps.empty() && steps.front().bytes;
    std::vector<std::string> header = {"step", "layer", "type", "loss_delta in all", "95 % interval"};
    if (weighed) header.insert(header.end(), {"bytes", "bytes in all"});
    Table table(header);
    int64_t bytes = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
        std::vector<std::string> row = {std::to_string(i + 1), std::to_string(steps[i].removed),
                                        type_name(scores, steps[i].removed), cell(steps[i].loss_delta),
                                        cell(steps[i].loss_delta_ci)};
        if (weighed) {
            bytes += *steps[i].bytes;
            row.insert(row.end(), {std::to_string(*steps[i].bytes), std::to_string(bytes)});
        }
        table.add(row);
    }
    return fmt::format("layers taken away one after the other{}\n{}",
                       weighed ? ", the least rise of the loss per byte first" : "", table.text());
}

std::string pairs_summary(const ScoreTable& scores) {
    constexpr std::size_t kShown = 5;
    std::vector<const PairScore*> order;
    for (const PairScore& pair : scores.pairs->pairs) order.push_back(&pair);
    std::stable_sort(order.begin(), order.end(),
                     [](const PairScore* a, const PairScore* b) { return a->interaction > b->interaction; });
    Table table({"layers", "types", "interaction", "95 % interval", "loss_delta"});
    const auto add = [&](const PairScore& pair) {
        table.add({fmt::format("{} and {}", pair.first, pair.second),
                   fmt::format("{}, {}", type_name(scores, pair.first), type_name(scores, pair.second)),
                   cell(pair.interaction), cell(pair.interaction_ci), cell(pair.loss_delta)});
    };
    for (std::size_t i = 0; i < order.size() && i < kShown && order[i]->interaction > 0; ++i) add(*order[i]);
    const std::size_t from = order.size() > kShown ? order.size() - kShown : 0;
    for (std::size_t i = from; i < order.size(); ++i)
        if (order[i]->interaction <= 0) add(*order[i]);
    return fmt::format("{} pairs on {} sequences; those that stand in for each other most, and least\n{}",
                       order.size(), scores.pairs->sequences, table.text());
}

}  // namespace minipuzzle::cli
