#include "importance/ablation_losses.h"

#include "tests/catch.h"
#include "tests/importance/bench.h"
#include "tests/support/students.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

std::vector<LayerSet> all_pairs(int64_t layers) {
    std::vector<LayerSet> pairs;
    for (int64_t i = 0; i < layers; ++i)
        for (int64_t j = i + 1; j < layers; ++j) pairs.push_back({i, j});
    return pairs;
}

}  // namespace

TEST_CASE("A list of sets is cut where the first layer changes, within it only where it is too long") {
    const std::vector<LayerSet> pairs = all_pairs(5);  // 4, 3, 2 and 1 that begin with layers 0 to 3
    const auto sizes = [&](int64_t most_states) {
        std::vector<std::size_t> lengths;
        std::vector<LayerSet> joined;
        for (const auto& sweep : cut_into_sweeps(pairs, most_states)) {
            lengths.push_back(sweep.size());
            joined.insert(joined.end(), sweep.begin(), sweep.end());
        }
        CHECK(joined == pairs);
        return lengths;
    };
    CHECK(sizes(11) == std::vector<std::size_t>{10});
    CHECK(sizes(8) == std::vector<std::size_t>{7, 3});
    CHECK(sizes(7) == std::vector<std::size_t>{4, 6});
    CHECK(sizes(4) == std::vector<std::size_t>{3, 1, 3, 3});
    CHECK(cut_into_sweeps({}, 8).empty());
}

TEST_CASE("Sets measured in small sweeps have the bits of one sweep and of the student alone") {
    test::SingleLayers at;
    AblationLosses small(at.run, at.layers, 6);
    const std::vector<LayerSet> sets = {{0, 1},  {0, 7},  {0, 7, 19}, {3, 4},         {3, 9},
                                        {3, 10}, {3, 12}, {3, 13},    {6, 8, 11, 15}, {18, 19}};
    SweepWork whole_work, small_work;
    at.losses.measure("whole", sets, 8, whole_work);
    small.measure("small", sets, 8, small_work);
    for (const LayerSet& off : sets) CHECK(small.of(off) == at.losses.of(off));
    for (const LayerSet& off : {sets[1], sets[8]})
        CHECK(at.losses.of(off) == test::losses_alone(*at.backend, at.architecture, at.mini.weights.weights(),
                                                      off, at.mini.corpus, at.run.windows()));
    CHECK(whole_work.multiply_adds < small_work.multiply_adds);
    CHECK(whole_work.separate_multiply_adds == small_work.separate_multiply_adds);
    CHECK(whole_work.multiply_adds < whole_work.separate_multiply_adds);
}

TEST_CASE("What is known is not measured again; what is known of fewer windows is") {
    test::SingleLayers at;
    SweepWork single, half, whole, again;
    at.losses.measure("single", {{2}, {5}}, 8, single);
    CHECK(single.multiply_adds == 0);
    CHECK(single.separate_multiply_adds > 0);
    at.losses.measure("half", {{2, 5}}, 4, half);
    const std::vector<double> first = at.losses.of({2, 5});
    REQUIRE(first.size() == 4);
    at.losses.measure("whole", {{2, 5}}, 8, whole);
    CHECK(whole.multiply_adds > half.multiply_adds);
    REQUIRE(at.losses.of({2, 5}).size() == 8);
    for (std::size_t w = 0; w < 4; ++w) CHECK(at.losses.of({2, 5})[w] == first[w]);
    at.losses.measure("again", {{2, 5}}, 4, again);
    CHECK(again.multiply_adds == 0);
}
