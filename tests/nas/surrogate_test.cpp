// The predictor with pairs and larger removals, on losses that are known.
#include "nas/surrogate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/rank_correlation.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;

namespace {

// A model whose loss is known for any set of layers off. Interactions fall with the distance of two layers
// and have both signs; three layers add `third` times the geometric mean of their pairs.
struct KnownModel {
    Architecture teacher = architecture_of("M-M-*-M-M-*-M-M-*-M-M-", 64);
    int64_t layers = static_cast<int64_t>(teacher.layers.size());
    double third = 0;

    double cost(int64_t i) const { return 0.02 + 0.004 * static_cast<double>((i * 7) % 11); }
    double pair(int64_t i, int64_t j) const {
        const double sign = (i + j) % 5 == 0 ? -1 : 1;
        return sign * 0.01 / (1 + std::abs(static_cast<double>(i - j)));
    }
    double rise(const std::vector<int64_t>& drop) const {
        double sum = 0;
        for (std::size_t k = 0; k < drop.size(); ++k) {
            sum += cost(drop[k]);
            for (std::size_t j = 0; j < k; ++j) {
                sum += pair(drop[j], drop[k]);
                for (std::size_t i = 0; i < j; ++i)
                    sum += third * std::cbrt(std::abs(pair(drop[i], drop[j]) * pair(drop[i], drop[k]) *
                                                      pair(drop[j], drop[k])));
            }
        }
        return sum;
    }
    std::vector<int64_t> random_set(Random& random, int64_t count) const {
        std::vector<int64_t> set;
        while (static_cast<int64_t>(set.size()) < count) {
            const int64_t layer = random.below(layers);
            if (std::find(set.begin(), set.end(), layer) == set.end()) set.push_back(layer);
        }
        std::sort(set.begin(), set.end());
        return set;
    }
    ScoreTable singles() const {
        ScoreTable table;
        table.base_loss = 2.0;
        for (int64_t i = 0; i < layers; ++i) {
            LayerScore layer;
            layer.layer = i;
            layer.type = type_of(teacher.layers[static_cast<std::size_t>(i)]);
            layer.loss_delta = cost(i);
            table.layers.push_back(layer);
        }
        return table;
    }
    void add_pairs(ScoreTable& table, int64_t window) const {
        table.pairs = {.window = window, .sequences = 16, .pairs = {}};
        for (int64_t i = 0; i < layers; ++i)
            for (int64_t j = i + 1; j < layers && j <= i + window; ++j)
                table.pairs->pairs.push_back({i, j, rise({i, j}), pair(i, j), {}});
    }
    void add_random_sets(ScoreTable& table, uint64_t seed, int64_t count) const {
        Random random(seed);
        table.random_sets = {.sequences = 16, .sets = {}};
        for (int64_t n = 0; n < count; ++n) {
            const auto set = random_set(random, 3 + n % 9);
            table.random_sets->sets.push_back({set, rise(set)});
        }
    }
    void add_removal(ScoreTable& table, int64_t steps) const {
        table.iterative = {.sequences = 16, .steps = {}};
        std::vector<int64_t> gone;
        for (int64_t step = 0; step < steps; ++step) {
            RemovalStep removal;
            removal.layers.resize(static_cast<std::size_t>(layers));
            double least = 1e9;
            for (int64_t l = 0; l < layers; ++l) {
                if (std::binary_search(gone.begin(), gone.end(), l)) continue;
                auto more = gone;
                more.insert(std::lower_bound(more.begin(), more.end(), l), l);
                const double delta = rise(more) - rise(gone);
                removal.layers[static_cast<std::size_t>(l)] = delta;
                if (delta <= least) {
                    least = delta;
                    removal.removed = l;
                }
            }
            gone.insert(std::lower_bound(gone.begin(), gone.end(), removal.removed), removal.removed);
            removal.loss_delta = rise(gone);
            table.iterative->steps.push_back(std::move(removal));
        }
    }
    // Mean |predicted - true| over random students, as a share of the mean rise.
    double error(const Surrogate& surrogate, int64_t dropped) const {
        Random random(99);
        double off = 0, rises = 0;
        for (int64_t n = 0; n < 50; ++n) {
            const StudentPlan plan{.drop = random_set(random, dropped)};
            off += std::abs(predict(surrogate, teacher, plan).value - 2.0 - rise(plan.drop));
            rises += rise(plan.drop);
        }
        return off / rises;
    }
};

Surrogate surrogate_of(const ScoreTable& table) { return make_surrogate(table, Objective::loss_delta); }

}  // namespace

TEST_CASE("With every pair the predictor of a second-order loss is exact") {
    const KnownModel model;
    ScoreTable table = model.singles();
    CHECK(model.error(surrogate_of(table), 8) > 0.05);
    model.add_pairs(table, model.layers);
    // Sums of some tens of terms of order 0.1: rounding alone.
    CHECK(model.error(surrogate_of(table), 8) < 1e-13);
    // Larger removals that add nothing change nothing but by what they leave unsaid.
    model.add_random_sets(table, 1, 60);
    model.add_removal(table, 8);
    CHECK(model.error(surrogate_of(table), 8) < 0.01);
}

TEST_CASE("Larger removals teach the third order") {
    KnownModel model;
    model.third = 0.15;
    ScoreTable table = model.singles();
    model.add_pairs(table, model.layers);
    const double pairs_alone = model.error(surrogate_of(table), 10);
    CHECK(pairs_alone > 0.05);
    ScoreTable removal = table;
    model.add_removal(removal, 12);
    CHECK(model.error(surrogate_of(removal), 10) < 0.5 * pairs_alone);
    model.add_random_sets(table, 2, 150);
    CHECK(model.error(surrogate_of(table), 10) < 0.1 * pairs_alone);
}

TEST_CASE("Pairs that were not measured are found from larger removals") {
    const KnownModel model;
    ScoreTable table = model.singles();
    model.add_pairs(table, 3);
    const Surrogate near = surrogate_of(table);
    REQUIRE(near.interactions);
    CHECK(near.interactions->pairs({0, 10}) == 0);
    const double before = model.error(near, 9);
    model.add_random_sets(table, 3, 200);
    CHECK(model.error(surrogate_of(table), 9) < 0.5 * before);
}

TEST_CASE("Terms add up, fitting repeats bit for bit, and without pairs nothing changes") {
    KnownModel model;
    model.third = 0.15;
    ScoreTable table = model.singles();
    model.add_random_sets(table, 2, 40);
    const StudentPlan plan{.drop = {1, 4, 5, 9}};
    const Predicted additive = predict(surrogate_of(table), model.teacher, plan);
    CHECK_FALSE(additive.pairs);
    CHECK_FALSE(additive.correction);
    model.add_pairs(table, 4);
    const Surrogate surrogate = surrogate_of(table);
    CHECK(predict_additive(surrogate, model.teacher, plan).value == additive.value);
    const Predicted full = predict(surrogate, model.teacher, plan);
    REQUIRE(full.pairs);
    REQUIRE(full.correction);
    CHECK(full.value == Approx(*full.base + *full.layers + *full.pairs + *full.correction).epsilon(1e-15));
    CHECK(full.loss == full.value);
    CHECK(predict(surrogate_of(table), model.teacher, plan).value == full.value);
    // Pairs are in nats of loss: other objectives stay additive.
    for (LayerScore& layer : table.layers) layer.kl = 0.5;
    CHECK_FALSE(predict(make_surrogate(table, Objective::kl), model.teacher, plan).pairs);
}

TEST_CASE("Sets without a layer that carries the model are not learned from") {
    const KnownModel model;
    ScoreTable table = model.singles();
    table.layers[0].loss_delta = 6.0;
    model.add_pairs(table, model.layers);
    table.random_sets = {.sequences = 16, .sets = {{{0, 3, 7}, 3.0}, {{1, 2}, 0.1}}};
    const Surrogate carried = surrogate_of(table);
    REQUIRE(carried.interactions);
    CHECK_FALSE(carried.interactions->fitted());
    table.random_sets->sets.push_back({{2, 3, 7}, 0.4});
    CHECK(surrogate_of(table).interactions->fitted_sets() == 1);
}

// Singles, all pairs, 24 steps of removal and 400 random sets of mini-52 on 256 documents; the students are
// random ones that are none of those sets, their rises measured on 256 other documents.
TEST_CASE("Students of mini-52 on other documents are predicted inside each size") {
    const std::string folder = std::string(MINIPUZZLE_SOURCE_DIR) + "/tests/nas/data/";
    const ScoreTable table = read_scores(folder + "mini52_scores.json");
    REQUIRE(table.random_sets);
    const Architecture teacher = architecture_of(table.model.pattern, 64);
    const Surrogate surrogate = surrogate_of(table);
    struct Figures {
        std::vector<double> measured, full, additive;
    };
    std::map<int, Figures> sizes;
    for (const auto& student : nlohmann::json::parse(std::ifstream(folder + "mini52_students.json"))) {
        const StudentPlan plan{.drop = student["drop"].get<std::vector<int64_t>>()};
        REQUIRE(std::none_of(table.random_sets->sets.begin(), table.random_sets->sets.end(),
                             [&](const RandomSet& set) { return set.drop == plan.drop; }));
        Figures& figures = sizes[student["size"].get<int>()];
        figures.measured.push_back(student["rise"].get<double>());
        figures.full.push_back(predict(surrogate, teacher, plan).value - *table.base_loss);
        figures.additive.push_back(predict_additive(surrogate, teacher, plan).value - *table.base_loss);
    }
    REQUIRE(sizes.size() == 4);
    for (const auto& [size, figures] : sizes) {
        INFO("students of " << size << " % of the parameters");
        double off = 0, rises = 0;
        for (std::size_t i = 0; i < figures.measured.size(); ++i) {
            off += std::abs(figures.full[i] - figures.measured[i]);
            rises += figures.measured[i];
        }
        CHECK(off / rises < 0.1);
        const double full = *spearman(figures.full, figures.measured);
        CHECK(full > 0.97);
        CHECK(full > *spearman(figures.additive, figures.measured) + 0.02);
    }
}
