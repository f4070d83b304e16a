#include "importance/random_sets.h"

#include <numeric>
#include <set>

#include "tests/catch.h"
#include "tests/importance/bench.h"
#include "tests/support/students.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

LayerSet layers_from(int64_t first, int64_t last) {
    LayerSet layers(last - first + 1);
    std::iota(layers.begin(), layers.end(), first);
    return layers;
}

}  // namespace

TEST_CASE("Random sets: different, of all sizes and splits, of candidates only, the same every time") {
    const Architecture architecture = Checkpoint(test::shared_folder() / "models" / "mini-20").architecture();
    const LayerSet candidates = layers_from(1, 19);
    const std::vector<double> alike(20);
    const auto sets = draw_sets(architecture, candidates, alike, 100, 7);
    CHECK(sets.size() == 100);
    CHECK(std::set<LayerSet>(sets.begin(), sets.end()).size() == 100);
    std::set<std::size_t> sizes, mamba;
    for (const LayerSet& off : sets) {
        CHECK(std::is_sorted(off.begin(), off.end()));
        CHECK(off.front() >= 1);
        sizes.insert(off.size());
        std::size_t count = 0;
        for (const int64_t l : off) count += type_of(architecture.layers[l]) == LayerType::mamba;
        mamba.insert(count);
    }
    CHECK(sizes == std::set<std::size_t>{3, 4, 5, 6, 7, 8, 9});
    CHECK(mamba.size() >= 6);
    CHECK(draw_sets(architecture, candidates, alike, 100, 7) == sets);
    CHECK(draw_sets(architecture, candidates, alike, 100, 8) != sets);
    // Six layers have twenty sets of three, five layers have no half of three.
    CHECK(draw_sets(architecture, layers_from(1, 6), alike, 100, 7).size() <= 20);
    CHECK(draw_sets(architecture, layers_from(1, 5), alike, 100, 7).empty());
}

TEST_CASE("Half of the random sets are cheap ones, and every size has both") {
    const Architecture architecture = Checkpoint(test::shared_folder() / "models" / "mini-20").architecture();
    // The later a layer the dearer: a set's mean index says how dear it is for its size.
    std::vector<double> cost(20);
    std::iota(cost.begin(), cost.end(), 0.0);
    const LayerSet candidates = layers_from(1, 19);
    const auto dearness = [](const std::vector<LayerSet>& sets) {
        double sum = 0;
        for (const LayerSet& off : sets)
            sum += std::accumulate(off.begin(), off.end(), 0.0) / static_cast<double>(off.size());
        return sum / static_cast<double>(sets.size());
    };
    const double cheap = dearness(draw_sets(architecture, candidates, cost, 200, 7));
    const double any = dearness(draw_sets(architecture, candidates, std::vector<double>(20), 200, 7));
    // Uniform: about 10, with a standard error of 0.15. The cheapest of 16 lies 1.77 standard deviations (2.2
    // for a mean of 3 to 9 of 19 layers) lower, for half of the sets.
    CHECK(any > 9);
    CHECK(cheap < any - 1);
}

TEST_CASE("A random set's loss is that of the model without its layers") {
    test::SingleLayers at;
    SweepWork work;
    const RandomSets scores = measure_random_sets(at.losses, 5, 3, work);
    CHECK(scores.sequences == 8);
    REQUIRE(scores.sets.size() == 5);
    const double base = mean(at.layers.base.loss, at.layers.tokens);
    for (const RandomSet& set : scores.sets) {
        const auto alone = test::losses_alone(*at.backend, at.architecture, at.mini.weights.weights(),
                                              set.drop, at.mini.corpus, at.run.windows());
        // Means of differences against differences of means: a few roundings of losses below 16.
        CHECK(std::abs(set.loss_delta - (mean(alone, at.layers.tokens) - base)) < 1e-13);
    }
}
