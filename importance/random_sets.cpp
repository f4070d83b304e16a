#include "importance/random_sets.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "kernels/random.h"

namespace minipuzzle::importance {

namespace {

constexpr const char* kStage = "random sets";
constexpr std::size_t kTypes = 3;
using Counts = std::array<int64_t, kTypes>;

// Draws from one stream, one after the other.
class Draws {
  public:
    explicit Draws(uint64_t seed) : random_(seed, kStage) {}
    int64_t below(int64_t n) {
        return static_cast<int64_t>(random_.uniform(next_++) * static_cast<double>(n));
    }

  private:
    CounterRandom random_;
    int64_t next_ = 0;
};

// Every way to split `size` among the types is as likely as any other.
Counts draw_counts(Draws& draws, const std::array<LayerSet, kTypes>& layers, int64_t size) {
    Counts counts;
    do {
        for (std::size_t t = 0; t < kTypes; ++t)
            counts[t] = draws.below(static_cast<int64_t>(layers[t].size()) + 1);
    } while (std::accumulate(counts.begin(), counts.end(), int64_t{0}) != size);
    return counts;
}

}  // namespace

std::vector<LayerSet> draw_sets(const Architecture& architecture, const LayerSet& candidates, int64_t count,
                                uint64_t seed) {
    std::array<LayerSet, kTypes> layers;
    for (const int64_t l : candidates)
        layers[static_cast<std::size_t>(type_of(architecture.layers[l]))].push_back(l);
    const int64_t most = static_cast<int64_t>(candidates.size()) / 2;
    std::set<LayerSet> sets;
    if (most < 3) return {};
    Draws draws(seed);
    // Small models have few different sets: twenty draws for each wanted are enough to find most.
    for (int64_t n = 0; n < 20 * count && static_cast<int64_t>(sets.size()) < count; ++n) {
        const Counts counts = draw_counts(draws, layers, 3 + n % (most - 2));
        LayerSet off;
        for (std::size_t t = 0; t < kTypes; ++t) {
            LayerSet left = layers[t];
            for (int64_t k = 0; k < counts[t]; ++k) {
                std::swap(left[k], left[k + draws.below(static_cast<int64_t>(left.size()) - k)]);
                off.push_back(left[k]);
            }
        }
        std::sort(off.begin(), off.end());
        sets.insert(std::move(off));
    }
    return {sets.begin(), sets.end()};
}

void announce_random_sets(ScoreRun& run, int64_t count, uint64_t seed) {
    if (count == 0) return;
    // Which layers carry the model is not known yet: as if none did.
    const Architecture& architecture = run.architecture();
    LayerSet all(architecture.layers.size());
    std::iota(all.begin(), all.end(), int64_t{0});
    run.announce(kStage, plans_of(draw_sets(architecture, all, count, seed)),
                 static_cast<int64_t>(run.windows().size()));
}

RandomSets measure_random_sets(AblationLosses& losses, int64_t count, uint64_t seed, SweepWork& work) {
    const int64_t windows = losses.windows();
    LayerSet candidates;
    for (int64_t l = 0; l < losses.layers(); ++l)
        if (losses.paired_mean(losses.differences({l}, {}, windows)).mean <= kCarriesModel)
            candidates.push_back(l);
    const std::vector<LayerSet> sets = draw_sets(losses.architecture(), candidates, count, seed);
    losses.measure(kStage, sets, windows, work);
    RandomSets scores{.sequences = windows, .sets = {}};
    for (const LayerSet& off : sets)
        scores.sets.push_back({off, losses.paired_mean(losses.differences(off, {}, windows)).mean});
    return scores;
}

}  // namespace minipuzzle::importance
