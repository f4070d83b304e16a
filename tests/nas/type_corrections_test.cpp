// Corrections per type: fitted to costs that are known, carried to other models, and in the exact search.
#include "nas/type_corrections.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "nas/solver.h"
#include "nas/surrogate.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"
#include "tests/support/errors.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;

namespace {

constexpr double kNatsPerError = 0.37;
const TypeCorrections kKnown{
    .objective = Objective::hidden_mse,
    .types = {{{.weight = 1, .growth = 2.5}, {.weight = 2.25, .growth = 0}, {.weight = 0.75, .growth = 4}}},
    .sets = 0,
    .origin = ""};

int64_t count_of(const ScoreTable& table, LayerType type) {
    return std::count_if(table.layers.begin(), table.layers.end(),
                         [&](const LayerScore& layer) { return layer.type == type; });
}

double sum_of(const TypeCorrections& corrections, const ScoreTable& table, const std::vector<int64_t>& drop) {
    double total = 0;
    for (const LayerType type : kLayerTypes) {
        double sum = 0;
        int64_t dropped = 0;
        for (const int64_t index : drop) {
            const LayerScore& layer = table.layers[static_cast<std::size_t>(index)];
            if (layer.type != type) continue;
            sum += *layer.hidden_mse;
            ++dropped;
        }
        total += corrections.cost(type, sum, dropped, count_of(table, type));
    }
    return total;
}

ScoreTable singles(const std::string& pattern) {
    ScoreTable table;
    table.model = {.path = "known", .pattern = pattern, .arch_hash = "", .weights_hash = ""};
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        LayerScore layer;
        layer.layer = static_cast<int64_t>(i);
        layer.type = pattern[i] == 'M'   ? LayerType::mamba
                     : pattern[i] == '*' ? LayerType::attention
                                         : LayerType::ffn;
        layer.hidden_mse = 0.01 + 0.002 * static_cast<double>((i * 5) % 7);
        layer.loss_delta = 0.05;
        table.layers.push_back(layer);
    }
    return table;
}

// Random sets whose rise is `kKnown`'s cost to the last bit.
ScoreTable measured(int64_t sets, uint64_t seed) {
    ScoreTable table = singles("M-M-*-M-M-*-M-M-*-M-M-");
    Random random(seed);
    RandomSets& out = table.random_sets.emplace();
    out.sequences = 16;
    while (static_cast<int64_t>(out.sets.size()) < sets) {
        std::vector<int64_t> drop;
        for (std::size_t i = 0; i < table.layers.size(); ++i)
            if (random.chance(3)) drop.push_back(static_cast<int64_t>(i));
        if (!drop.empty()) out.sets.push_back({drop, kNatsPerError * sum_of(kKnown, table, drop)});
    }
    return table;
}

}  // namespace

TEST_CASE("Costs that follow the formula give back its weights and growths, whatever the unit") {
    const TypeCorrections found = fit_type_corrections(measured(60, 7), Objective::hidden_mse, "known.json");
    CHECK(found.sets == 60);
    CHECK(found.origin == "known");
    for (std::size_t t = 0; t < found.types.size(); ++t) {
        // A well conditioned fit without noise: rounding alone is left.
        CHECK(found.types[t].weight == Approx(kKnown.types[t].weight).margin(1e-9));
        CHECK(found.types[t].growth == Approx(kKnown.types[t].growth).margin(1e-9));
    }
    ScoreTable scaled = measured(60, 7);
    for (RandomSet& set : scaled.random_sets->sets) set.loss_delta *= 0.125;
    const TypeCorrections same = fit_type_corrections(scaled, Objective::hidden_mse, "known.json");
    for (std::size_t t = 0; t < found.types.size(); ++t)
        CHECK(same.types[t].weight == Approx(found.types[t].weight).margin(1e-9));
}

TEST_CASE("A type whose further layers cost less than the first is given no growth") {
    ScoreTable table = measured(80, 3);
    for (RandomSet& set : table.random_sets->sets) {
        double sum = 0;
        for (const int64_t layer : set.drop)
            if (table.layers[static_cast<std::size_t>(layer)].type == LayerType::attention)
                sum += *table.layers[static_cast<std::size_t>(layer)].hidden_mse;
        const auto gone = std::count_if(set.drop.begin(), set.drop.end(), [&](int64_t layer) {
            return table.layers[static_cast<std::size_t>(layer)].type == LayerType::attention;
        });
        set.loss_delta -= kNatsPerError * 0.5 * sum * static_cast<double>(gone - 1) / 2.0 * (gone > 0);
    }
    const TypeCorrections found = fit_type_corrections(table, Objective::hidden_mse, "known.json");
    CHECK(found.types[static_cast<std::size_t>(LayerType::attention)].growth == 0.0);
}

TEST_CASE("Measurements that cannot tell are refused, naming the file") {
    const auto refused = [](const ScoreTable& table, const char* what) {
        const std::string message =
            test::bad_input([&] { fit_type_corrections(table, Objective::hidden_mse, "known.json"); });
        CHECK(message.find("known.json") != message.npos);
        CHECK(message.find(what) != message.npos);
    };
    refused(measured(29, 1), "29 usable random sets");
    ScoreTable table = measured(60, 1);
    table.layers[4].hidden_mse.reset();
    refused(table, "layer 4 has no hidden_mse");
    table = measured(200, 1);
    std::erase_if(table.random_sets->sets, [&](const RandomSet& set) {
        return std::any_of(set.drop.begin(), set.drop.end(), [&](int64_t layer) {
            return table.layers[static_cast<std::size_t>(layer)].type == LayerType::attention;
        });
    });
    REQUIRE(table.random_sets->sets.size() >= 30);
    refused(table, "attention");
    table = measured(60, 1);
    table.layers[0].loss_delta = 3.0;  // carries the model: sets with it are left out
    CHECK(fit_type_corrections(table, Objective::hidden_mse, "known.json").sets < 60);
    table.random_sets.reset();
    refused(table, "0 usable");
    test::error_of(ErrorKind::usage,
                   [&] { fit_type_corrections(measured(60, 1), Objective::loss_delta, "known.json"); });
}

TEST_CASE("Corrected: every student of the space is predicted as its plan is, and the frontier is exact") {
    const ScoreTable table = singles("M-M-*-M-M-*-M-M-*-M-M-");
    const Architecture teacher = architecture_of(table.model.pattern, 64);
    Surrogate surrogate = make_surrogate(table, Objective::hidden_mse);
    surrogate.type_corrections = kKnown;
    const Space space(teacher, surrogate, {});
    const Solution solution = solve(space, {});
    std::map<int64_t, double> lowest;  // by total, of all students
    space.for_each([&](const Point& point) {
        const StudentPlan plan = space.plan(point);
        const Predicted predicted = space.predicted(point), again = predict(surrogate, teacher, plan);
        REQUIRE(predicted.value == again.value);
        REQUIRE(predicted.correction == again.correction);
        // The sums are the same but for the order of additions.
        REQUIRE(predicted.value == Approx(sum_of(kKnown, table, plan.drop)).margin(1e-12));
        const auto at = lowest.emplace(space.memory(point).total(), predicted.value).first;
        at->second = std::min(at->second, predicted.value);
    });
    double least = INFINITY;
    std::size_t next = 0;
    for (const auto& [total, value] : lowest) {
        if (value >= least) continue;
        least = value;
        REQUIRE(next < solution.frontier.size());
        CHECK(solution.frontier[next].total == total);
        CHECK(solution.frontier[next++].value == value);
    }
    CHECK(next == solution.frontier.size());
}

// Singles and random sets as shipped; the students are none of those sets and were measured on other
// documents. Predictions in another unit are compared after the one scale that suits them best.
TEST_CASE("Corrections of mini-52 halve the error of its milder students") {
    const std::string source = MINIPUZZLE_SOURCE_DIR;
    const ScoreTable table = read_scores(source + "/configs/corrections/mini-52.json");
    const TypeCorrections corrections = fit_type_corrections(table, Objective::hidden_mse, "mini-52");
    CHECK(corrections.sets == 400);
    TypeCorrections none = corrections;
    none.types = {};
    struct Figures {
        std::vector<double> measured, corrected, plain;
        std::vector<int> size;
    } figures;
    for (const auto& student :
         nlohmann::json::parse(std::ifstream(source + "/tests/nas/data/mini52_students.json"))) {
        const auto drop = student["drop"].get<std::vector<int64_t>>();
        figures.size.push_back(student["size"].get<int>());
        figures.measured.push_back(student["rise"].get<double>());
        figures.corrected.push_back(sum_of(corrections, table, drop));
        figures.plain.push_back(sum_of(none, table, drop));
    }
    const auto errors = [&](const std::vector<double>& predicted) {
        double both = 0, square = 0;
        for (std::size_t i = 0; i < predicted.size(); ++i) {
            both += predicted[i] * figures.measured[i];
            square += predicted[i] * predicted[i];
        }
        std::map<int, double> off, rises;
        for (std::size_t i = 0; i < predicted.size(); ++i) {
            off[figures.size[i]] += std::abs(both / square * predicted[i] - figures.measured[i]);
            rises[figures.size[i]] += figures.measured[i];
        }
        for (auto& [size, error] : off) error /= rises[size];
        return off;
    };
    auto corrected = errors(figures.corrected), plain = errors(figures.plain);
    for (const auto& [size, error] : corrected) {
        INFO("students of " << size << " % of the parameters: " << error << " against " << plain[size]);
        CHECK(error < 0.17);
        CHECK(error < plain[size]);
    }
    CHECK(corrected[90] < 0.5 * plain[90]);
}
