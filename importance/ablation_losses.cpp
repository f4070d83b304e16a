#include "importance/ablation_losses.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "importance/confidence.h"

namespace minipuzzle::importance {

namespace {

// What one pass of its own for every set takes: separate_multiply_adds() counts the full model, too.
double separate_passes(const Architecture& architecture, const std::vector<StudentPlan>& plans,
                       int64_t length) {
    return separate_multiply_adds(architecture, plans, length, length) -
           separate_multiply_adds(architecture, {}, length, length);
}

}  // namespace

std::vector<StudentPlan> plans_of(const std::vector<LayerSet>& sets) {
    std::vector<StudentPlan> plans;
    for (const LayerSet& off : sets) plans.push_back({.drop = off});
    return plans;
}

LayerSet evenly_spread(int64_t count, int64_t layers) {
    LayerSet spread;
    for (int64_t i = 0; i < count; ++i) spread.push_back((2 * i + 1) * layers / (2 * count));
    return spread;
}

std::vector<std::vector<LayerSet>> cut_into_sweeps(const std::vector<LayerSet>& sets, int64_t most_states) {
    MP_ASSERT(std::is_sorted(sets.begin(), sets.end()));
    const std::size_t most = static_cast<std::size_t>(std::max<int64_t>(most_states, 3) - 1);
    std::vector<std::vector<LayerSet>> sweeps;
    for (auto begin = sets.begin(); begin != sets.end();) {
        const auto end = std::find_if(begin, sets.end(),
                                      [&](const LayerSet& off) { return off.front() != begin->front(); });
        const std::size_t count = static_cast<std::size_t>(end - begin);
        if (sweeps.empty() || sweeps.back().size() + count > most) sweeps.emplace_back();
        for (; begin != end; ++begin) {
            if (sweeps.back().size() == most) sweeps.emplace_back();
            sweeps.back().push_back(*begin);
        }
    }
    return sweeps;
}

AblationLosses::AblationLosses(ScoreRun& run, const SweepResult& layers, int64_t most_states)
    : run_(run), most_states_(most_states), tokens_(layers.tokens) {
    losses_[{}] = layers.base.loss;
    MP_ASSERT(layers.variants.size() >= architecture().layers.size());
    for (std::size_t l = 0; l < architecture().layers.size(); ++l)
        losses_[{static_cast<int64_t>(l)}] = layers.variants[l].loss;
}

bool AblationLosses::knows(const LayerSet& off, int64_t windows) const {
    const auto found = losses_.find(off);
    return found != losses_.end() && static_cast<int64_t>(found->second.size()) >= windows;
}

const std::vector<double>& AblationLosses::of(const LayerSet& off) const {
    const auto found = losses_.find(off);
    MP_ASSERT(found != losses_.end());
    return found->second;
}

void AblationLosses::measure(const std::string& stage, const std::vector<LayerSet>& sets, int64_t windows,
                             SweepWork& work) {
    MP_ASSERT(windows >= 1 && windows <= this->windows());
    std::vector<LayerSet> missing;
    for (const LayerSet& off : sets)
        if (!knows(off, windows)) missing.push_back(off);
    run_.announce(stage, plans_of(missing), windows);
    std::vector<int64_t> first(windows);
    std::iota(first.begin(), first.end(), 0);
    for (const std::vector<LayerSet>& chunk : cut_into_sweeps(missing, most_states_)) {
        // Where the list is cut depends on the memory that is free, so the name says which part this is: a
        // resumed run takes only what was measured for the same part.
        const std::string part =
            fmt::format("{}/{}..{}", stage, fmt::join(chunk.front(), ","), fmt::join(chunk.back(), ","));
        const std::vector<StudentPlan> plans = plans_of(chunk);
        SweepResult result = run_.sweep_losses(part, plans, first);
        for (std::size_t i = 0; i < chunk.size(); ++i) losses_[chunk[i]] = std::move(result.variants[i].loss);
        const SweepSchedule schedule = make_schedule(architecture(), plans);
        for (int64_t w = 0; w < windows; ++w)
            work.multiply_adds += shared_multiply_adds(architecture(), schedule, tokens_[w], tokens_[w]);
    }
    const std::vector<StudentPlan> all = plans_of(sets);
    std::map<int64_t, double> of_length;  // most windows have one length
    for (int64_t w = 0; w < windows; ++w) {
        const auto [known, fresh] = of_length.try_emplace(tokens_[w], 0);
        if (fresh) known->second = separate_passes(architecture(), all, tokens_[w]);
        work.separate_multiply_adds += known->second;
    }
}

std::vector<double> AblationLosses::differences(const LayerSet& off, const LayerSet& reference,
                                                int64_t windows) const {
    const std::vector<double>&loss = of(off), &less = of(reference);
    std::vector<double> differences(windows);
    for (int64_t w = 0; w < windows; ++w) differences[w] = loss.at(w) - less.at(w);
    return differences;
}

PairedMean AblationLosses::paired_mean(const std::vector<double>& differences) const {
    const std::vector<int64_t> tokens(tokens_.begin(),
                                      tokens_.begin() + static_cast<std::ptrdiff_t>(differences.size()));
    std::vector<int64_t> documents = run_.documents();
    documents.resize(differences.size());
    return {mean(differences, tokens), paired_interval(differences, tokens, documents)};
}

}  // namespace minipuzzle::importance
