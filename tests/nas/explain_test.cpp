// Why a layer stays or goes.
#include "nas/explain.h"

#include "tests/catch.h"
#include "tests/nas/instances.h"

using namespace minipuzzle;
using namespace minipuzzle::nas;
using minipuzzle::nas::testing::architecture_of;

namespace {

struct Problem {
    Architecture teacher = architecture_of("M-*M-M-", 16);
    ScoreTable scores;
    SearchOptions options;

    Problem() {
        scores.model.pattern = teacher.pattern();
        scores.base_loss = 2.0;
        const std::vector<std::optional<double>> losses = {0.5, 0.25, 0.125, 0.0625, 0.375, {}, 0.75};
        for (std::size_t i = 0; i < losses.size(); ++i)
            scores.layers.push_back({.layer = static_cast<int64_t>(i),
                                     .type = type_of(teacher.layers[i]),
                                     .loss_delta = losses[i]});
        options.workload.context = 64;
    }
    Explanation explain(const StudentPlan& plan) const {
        return nas::explain(teacher, scores, Objective::loss_delta, options, plan);
    }
};

StudentPlan dropping(std::vector<int64_t> layers) {
    StudentPlan plan;
    plan.drop = std::move(layers);
    return plan;
}

}  // namespace

TEST_CASE("by score: every layer is held against its type's cut") {
    const Problem problem;
    const Explanation told = problem.explain(dropping({1, 3}));
    REQUIRE(told.layers.size() == 7);
    REQUIRE(told.cuts.size() == 3);
    const Cut& mamba = told.cuts[0];
    CHECK((mamba.kept == 2 && mamba.dropped == 1));
    CHECK(mamba.last_dropped == 3);
    CHECK(mamba.first_kept == 0);  // layer 5 has no score
    const Cut& attention = told.cuts[1];
    CHECK_FALSE(attention.last_dropped);
    CHECK(attention.first_kept == 2);

    const LayerVerdict& gone = told.layers[3];
    CHECK(gone.dropped);
    CHECK(gone.rank == 0);
    CHECK(*gone.against_cut == 0.0625 - 0.5);
    CHECK(gone.why == "costs less than every kept one of its type");
    const LayerVerdict& kept = told.layers[0];
    CHECK(kept.rank == 1);
    CHECK(*kept.against_cut == 0.5 - 0.0625);
    CHECK(kept.why == "costs more than every dropped one of its type");
    CHECK(told.layers[5].why == "no score: never dropped");
    CHECK_FALSE(told.layers[5].rank);
    CHECK_FALSE(told.layers[5].loss_per_mib);
    CHECK(told.layers[2].why == "none of its type had to go");

    // The layers' bytes are what the memory model says that each saves.
    const Memory full = memory_of(problem.teacher, problem.options.workload);
    for (const LayerVerdict& layer : told.layers) {
        const Memory without = memory_of(problem.teacher, dropping({layer.layer}), problem.options.workload);
        CHECK(layer.bytes == full.total() - without.total());
        if (layer.loss) CHECK(*layer.loss_per_mib == Approx(*layer.loss * (1 << 20) / layer.bytes));
    }
}

TEST_CASE("a student outside the order of scores says which layer costs less") {
    Problem problem;
    problem.options.keep = {2};
    problem.options.drop = {4};
    const Explanation told = problem.explain(dropping({0, 4, 6}));
    CHECK(told.layers[0].why == "goes though layer 3 costs less alone");
    CHECK(told.layers[3].why == "stays though layer 0 costs more alone");
    CHECK(*told.layers[3].against_cut < 0);
    CHECK(told.layers[2].why == "pinned by --keep");
    CHECK(told.layers[4].why == "named by --drop");
    CHECK(told.layers[6].why == "goes though layer 1 costs less alone");
    // Neither pinned layers nor those named are a cut.
    CHECK_FALSE(told.cuts[1].first_kept);
    CHECK(told.cuts[2].last_dropped == 6);
}

TEST_CASE("bytes are those of the student's widths, without a share of the workspace") {
    Problem problem;
    StudentPlan narrow = dropping({1});
    narrow.ffn_width = 8;
    problem.options.workload.prefill_chunk = 64;
    const Explanation told = problem.explain(narrow);
    CHECK(told.layers[4].bytes == 2 * (8 + 2 * 8 * 8));
    StudentPlan own = dropping({1});
    own.ffn_widths = {{4, 12}};
    CHECK(problem.explain(own).layers[4].bytes == 2 * (8 + 2 * 12 * 8));
    CHECK(problem.explain(own).layers[6].bytes == 2 * (8 + 2 * 16 * 8));
}

TEST_CASE("nothing left of a type, and equal losses go from the end") {
    Problem problem;
    problem.scores.layers[1].loss_delta = problem.scores.layers[4].loss_delta;
    const Explanation told = problem.explain(dropping({2, 4}));
    CHECK(told.layers[2].why == "all of its type that may go are gone");
    CHECK(told.layers[4].why == "costs less than every kept one of its type");
    CHECK(told.layers[1].why == "costs more than every dropped one of its type");
    CHECK(*told.layers[1].against_cut == 0);
}
