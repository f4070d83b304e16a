#include "cli/conditional.h"

#include <fmt/format.h>

#include "kernels/check.h"
#include "nas/memory_model.h"

namespace minipuzzle::cli {

namespace {

int64_t window_of(const std::string& text) {
    try {
        return parse_count(text);
    } catch (const Error&) {
        fail_usage(fmt::format("--pairs {}: expected how many layers apart at most, or all", text));
    }
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
    nas::Workload held = workload;
    held.prefill_chunk = 0;  // one layer's workspace serves them all
    for (const nas::MemoryUnits& layer : nas::layer_memory(architecture, held).layers)
        bytes.push_back(layer.memory(0).total());
    return bytes;
}

std::string sharing_line(const std::string& what, const importance::SweepWork& work) {
    return fmt::format("{}: {:.4g} multiply-adds, {:.3f} of the {:.4g} that separate passes take\n", what,
                       work.multiply_adds, work.multiply_adds / work.separate_multiply_adds,
                       work.separate_multiply_adds);
}

}  // namespace minipuzzle::cli
