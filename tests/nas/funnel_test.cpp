// The funnel on losses that are known for every student.
#include "nas/funnel.h"

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "nas/proposals.h"
#include "nas/rise_process.h"
#include "nas/search.h"
#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using minipuzzle::nas::testing::architecture_of;
using minipuzzle::nas::testing::Random;

namespace {

// Twenty layers whose loss with any set off is known: neighbours of a type stand in for each other, so that
// the cheapest layers by score are the wrong ones together, and the rise grows faster than the sum.
struct KnownLoss {
    Architecture teacher = architecture_of("M-M-*-M-M-*-M-M-*-M-", 64);
    uint64_t seed = 0;

    double cost(int64_t i) const {
        Random random(seed * 100 + static_cast<uint64_t>(i));
        return 0.01 + 0.002 * static_cast<double>(random.below(20));
    }
    double pair(int64_t i, int64_t j) const {
        const auto type = [&](int64_t l) { return type_of(teacher.layers[static_cast<std::size_t>(l)]); };
        const double sign = type(i) == type(j) ? 1.5 : -0.3;
        return sign * std::sqrt(cost(i) * cost(j)) / static_cast<double>(j - i);
    }
    double rise(const std::vector<int64_t>& drop) const {
        double sum = 0;
        for (std::size_t k = 0; k < drop.size(); ++k) {
            sum += cost(drop[k]);
            for (std::size_t j = 0; j < k; ++j) sum += pair(drop[j], drop[k]);
        }
        return sum + 0.3 * sum * std::abs(sum);
    }
    ScoreTable scores() const {
        ScoreTable table;
        table.model.pattern = teacher.pattern();
        table.base_loss = 2.0;
        for (int64_t i = 0; i < static_cast<int64_t>(teacher.layers.size()); ++i) {
            LayerScore layer;
            layer.layer = i;
            layer.type = type_of(teacher.layers[static_cast<std::size_t>(i)]);
            layer.loss_delta = rise({i});
            table.layers.push_back(layer);
        }
        return table;
    }
    SearchOptions options() const {
        SearchOptions options;
        options.max_params = parameters(teacher) * 75 / 100;
        options.measure = 60;
        return options;
    }
    // The least rise of all students within the parameters.
    double optimum() const {
        const int64_t limit = *options().max_params;
        std::vector<int64_t> params;
        for (const Layer& layer : teacher.layers) params.push_back(parameters(teacher, layer));
        double least = std::numeric_limits<double>::infinity();
        for (unsigned mask = 0; mask < 1u << teacher.layers.size(); ++mask) {
            int64_t left = parameters(teacher);
            std::vector<int64_t> drop;
            for (std::size_t l = 0; l < params.size(); ++l)
                if (mask >> l & 1) {
                    left -= params[l];
                    drop.push_back(static_cast<int64_t>(l));
                }
            if (left <= limit && drop.size() <= 8) least = std::min(least, rise(drop));
        }
        return least;
    }
    Measurer measurer(std::vector<StudentPlan>& measured) const {
        return [this, &measured](const std::vector<StudentPlan>& plans) {
            std::vector<Measured> results;
            for (const StudentPlan& plan : plans) {
                if (!plan.drop.empty()) measured.push_back(plan);
                const double loss = 2.5 + rise(plan.drop);  // other documents than the scores'
                results.push_back({.loss = loss,
                                   .kl = loss - 2.5,
                                   .next_token_accuracy = 1 / loss,
                                   .top1_agreement = 2.5 / loss,
                                   .tokens = 100});
            }
            return results;
        };
    }
};

}  // namespace

TEST_CASE("The funnel finds the best student of a loss that additive scores get wrong") {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
        INFO("seed " << seed);
        const KnownLoss known{.seed = seed};
        std::vector<StudentPlan> measured;
        const SearchResult result =
            search(known.teacher, known.scores(), known.options(), known.measurer(measured));
        const double optimum = known.optimum();
        const double found = find_candidate(result, "").measured->loss - 2.5;
        const double additive = known.rise(measured.front().drop);
        CHECK(found <= optimum * 1.02);
        CHECK(found <= additive);
        // The budget holds, no student is measured twice, and every one fits.
        CHECK(measured.size() <= 60);
        std::set<std::vector<int64_t>> different;
        for (const StudentPlan& plan : measured) {
            different.insert(plan.drop);
            CHECK(parameters(student_architecture(known.teacher, plan)) <= *known.options().max_params);
        }
        CHECK(different.size() == measured.size());
    }
}

TEST_CASE("Rounds, finalists and terms of a measured search") {
    const KnownLoss known{.seed = 3};
    std::vector<StudentPlan> measured;
    const SearchResult result =
        search(known.teacher, known.scores(), known.options(), known.measurer(measured));
    REQUIRE(result.rounds.size() >= 2);
    int64_t so_far = 0;
    double best = std::numeric_limits<double>::infinity();
    for (const SearchRound& round : result.rounds) {
        so_far += round.fresh;
        CHECK(round.measured == so_far);
        CHECK(round.best_cost <= best);
        best = round.best_cost;
    }
    CHECK(so_far == static_cast<int64_t>(measured.size()));
    CHECK(result.rounds.back().best == result.best);
    REQUIRE(result.finalists.size() == 5);
    CHECK(result.finalists.front() == result.best);
    const StudentPlan& chosen = find_candidate(result, "").plan;
    CHECK(std::any_of(result.finalists.begin(), result.finalists.end(), [&](const std::string& id) {
        return difference(chosen, find_candidate(result, id).plan) >= 0.2;
    }));
    for (const Candidate& candidate : result.candidates) {
        CHECK(candidate.round.has_value() == candidate.measured.has_value());
        CHECK(candidate.predicted.fitted.has_value() == candidate.measured.has_value());
    }
    // The same again, bit for bit.
    std::vector<StudentPlan> again;
    search(known.teacher, known.scores(), known.options(), known.measurer(again));
    CHECK(again == measured);
}

TEST_CASE("Costs that are not in the scores' unit are minimised too") {
    const KnownLoss known{.seed = 2};
    for (const char* select_by : {"kl", "accuracy", "agreement"}) {
        SearchOptions options = known.options();
        options.select_by = select_by;
        std::vector<StudentPlan> measured;
        const SearchResult result = search(known.teacher, known.scores(), options, known.measurer(measured));
        // All three fall and rise with the loss.
        CHECK(find_candidate(result, "").measured->kl <= known.optimum() * 1.05);
    }
}

TEST_CASE("The fit's polynomial, its mean and its certainty agree with what was measured") {
    const KnownLoss known{.seed = 5};
    const ScoreTable scores = known.scores();
    const Surrogate surrogate = make_surrogate(scores, Objective::loss_delta);
    RiseProcess process(known.teacher, surrogate, true);
    Random random(7);
    std::vector<ProcessPoint> points;
    std::vector<double> rises;
    for (int n = 0; n < 40; ++n) {
        ProcessPoint point;
        std::vector<int64_t> drop;
        for (int64_t l = 0; l < 20; ++l)
            if (random.chance(4)) {
                point.removal.push_back({l});
                drop.push_back(l);
            }
        if (drop.empty()) continue;
        points.push_back(point);
        rises.push_back(known.rise(drop));
    }
    const Eigen::MatrixXd before = process.covariance(points);
    process.fit(points, rises);
    const Eigen::MatrixXd after = process.covariance(points);
    const LossPolynomial polynomial = process.polynomial(std::nullopt);
    for (std::size_t n = 0; n < points.size(); ++n) {
        const Eigen::Index i = static_cast<Eigen::Index>(n);
        // The same sums in another order.
        CHECK(polynomial.at(points[n].removal) == Approx(process.mean(points[n])).epsilon(1e-9));
        // A measurement leaves at most its own noise.
        CHECK(after(i, i) <= process.noise(rises[n]) * (1 + 1e-6));
        CHECK(after(i, i) < before(i, i));
        CHECK(std::abs(process.mean(points[n]) - rises[n]) < 4 * std::sqrt(process.noise(rises[n])));
    }
}

TEST_CASE("A polynomial's changes are differences of its values") {
    LossPolynomial polynomial(7);
    Random random(3);
    const auto draw = [&] { return static_cast<double>(random.below(100)) / 64 - 0.5; };
    polynomial.constant = draw();
    for (int64_t i = 0; i < 7; ++i) {
        polynomial.single(i) = draw();
        for (int64_t j = 0; j < i; ++j) {
            polynomial.pair(i, j) = polynomial.pair(j, i) = draw();
            for (int64_t k = 0; k < j; ++k) polynomial.add_triple(i, j, k, draw());
        }
    }
    PolynomialPoint point(polynomial, {{1, 1.0}, {4, 0.5}});
    const double here = polynomial.at({{1, 1.0}, {4, 0.5}});
    // Sums of some tens of terms of order 1.
    CHECK(here + point.change(6, 1) == Approx(polynomial.at({{1, 1.0}, {4, 0.5}, {6, 1.0}})).epsilon(1e-12));
    CHECK(here + point.change(1, -1, 2, 0.25) == Approx(polynomial.at({{2, 0.25}, {4, 0.5}})).epsilon(1e-12));
    point.move(1, -1);
    CHECK(point.change(4, -0.5) ==
          Approx(polynomial.constant - polynomial.at({{4, 0.5}})).epsilon(1e-12).margin(1e-12));
}
