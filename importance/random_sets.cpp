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
// The cheapest of so many draws is cheap enough to be near the students that a search looks at, and still
// random.
constexpr int64_t kDrawsOfCheap = 16;

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

LayerSet draw_set(Draws& draws, const std::array<LayerSet, kTypes>& layers, int64_t size) {
    const Counts counts = draw_counts(draws, layers, size);
    LayerSet off;
    for (std::size_t t = 0; t < kTypes; ++t) {
        LayerSet left = layers[t];
        for (int64_t k = 0; k < counts[t]; ++k) {
            std::swap(left[k], left[k + draws.below(static_cast<int64_t>(left.size()) - k)]);
            off.push_back(left[k]);
        }
    }
    std::sort(off.begin(), off.end());
    return off;
}

double sum_of(const std::vector<double>& cost, const LayerSet& off) {
    return std::accumulate(off.begin(), off.end(), 0.0,
                           [&](double sum, int64_t l) { return sum + cost[static_cast<std::size_t>(l)]; });
}

// Of several draws of a size the one whose layers cost least alone; the first among equals.
LayerSet draw_cheap_set(Draws& draws, const std::array<LayerSet, kTypes>& layers, int64_t size,
                        const std::vector<double>& cost) {
    LayerSet cheapest = draw_set(draws, layers, size);
    for (int64_t n = 1; n < kDrawsOfCheap; ++n) {
        LayerSet off = draw_set(draws, layers, size);
        if (sum_of(cost, off) < sum_of(cost, cheapest)) cheapest = std::move(off);
    }
    return cheapest;
}

}  // namespace

std::vector<LayerSet> draw_sets(const Architecture& architecture, const LayerSet& candidates,
                                const std::vector<double>& cost, int64_t count, uint64_t seed) {
    std::array<LayerSet, kTypes> layers;
    for (const int64_t l : candidates)
        layers[static_cast<std::size_t>(type_of(architecture.layers[l]))].push_back(l);
    const int64_t most = static_cast<int64_t>(candidates.size()) / 2;
    std::set<LayerSet> sets;
    if (most < 3) return {};
    Draws draws(seed);
    // Small models have few different sets: twenty draws for each wanted are enough to find most.
    for (int64_t n = 0; n < 20 * count && static_cast<int64_t>(sets.size()) < count; ++n) {
        const int64_t size = 3 + n / 2 % (most - 2);
        sets.insert(n % 2 == 0 ? draw_set(draws, layers, size) : draw_cheap_set(draws, layers, size, cost));
    }
    return {sets.begin(), sets.end()};
}

void announce_random_sets(ScoreRun& run, int64_t count, uint64_t seed) {
    if (count == 0) return;
    // Which layers carry the model is not known yet, nor what each costs: as if none did and all cost alike.
    const Architecture& architecture = run.architecture();
    LayerSet all(architecture.layers.size());
    std::iota(all.begin(), all.end(), int64_t{0});
    run.announce(kStage, plans_of(draw_sets(architecture, all, std::vector<double>(all.size()), count, seed)),
                 static_cast<int64_t>(run.windows().size()));
}

RandomSets measure_random_sets(AblationLosses& losses, int64_t count, uint64_t seed, SweepWork& work) {
    const int64_t windows = losses.windows();
    LayerSet candidates;
    std::vector<double> cost;
    for (int64_t l = 0; l < losses.layers(); ++l) {
        cost.push_back(losses.paired_mean(losses.differences({l}, {}, windows)).mean);
        if (cost.back() <= kCarriesModel) candidates.push_back(l);
    }
    const std::vector<LayerSet> sets = draw_sets(losses.architecture(), candidates, cost, count, seed);
    losses.measure(kStage, sets, windows, work);
    RandomSets scores{.sequences = windows, .sets = {}};
    for (const LayerSet& off : sets)
        scores.sets.push_back({off, losses.paired_mean(losses.differences(off, {}, windows)).mean});
    return scores;
}

}  // namespace minipuzzle::importance
