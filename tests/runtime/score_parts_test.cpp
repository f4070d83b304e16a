#include "runtime/score_parts.h"

#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

#include "runtime/files.h"

using namespace minipuzzle;

namespace {

ScoreTable table_with_parts() {
    ScoreTable table;
    table.model = {.path = "M", .pattern = "M-*-", .arch_hash = "sha256:0", .weights_hash = ""};
    const LayerType types[] = {LayerType::mamba, LayerType::ffn, LayerType::attention, LayerType::ffn};
    for (int64_t i = 0; i < 4; ++i) {
        table.layers.emplace_back();
        table.layers.back().layer = i;
        table.layers.back().type = types[i];
    }
    table.pairs = {.window = 2,
                   .sequences = 16,
                   .pairs = {{0, 1, 1.5, 0.25, Interval{0.1, 0.4}}, {1, 3, 0.5, -0.125, {}}}};
    table.iterative = {.sequences = 16,
                       .steps = {{1, 0.25, Interval{0.2, 0.3}, 1024, {1.0, 0.25, 0.5, 2.0}},
                                 {2, 0.75, {}, {}, {1.25, std::nullopt, 0.5, 2.5}}}};
    table.random_sets = {.sequences = 8, .sets = {{{0, 2, 3}, 1.25}, {{1}, 0.5}}};
    table.stability = {.resamples = 100,
                       .documents = 12,
                       .rank_correlation = 0.75,
                       .ranks = {{0, 1}, {0, 2}, {1, 3}, {2, 3}},
                       .split_half = 0.5};
    table.certainty = {
        .confidence = 0.95, .tie = 0.002, .drop = {1, 2}, .ties = {{{1, 3}}}, .open = {}, .layer_work = 0.5};
    table.precision = {.sweep = "fp8",
                       .head = "bf16",
                       .sequences = 8,
                       .rank_correlation = 0.5,
                       .rms_error = 0.25,
                       .largest_error = 0.75};
    return table;
}

}  // namespace

TEST_CASE("The optional parts of scores.json come back as they were written") {
    test::TempDir dir;
    const auto path = dir.path() / "scores.json";
    const std::string text = scores_json(table_with_parts());
    write_file_atomically(path, text);
    const ScoreTable back = read_scores(path);
    CHECK(scores_json(back) == text);
    REQUIRE(back.pairs);
    CHECK(back.pairs->pairs[1].interaction == -0.125);
    REQUIRE(back.iterative);
    CHECK_FALSE(back.iterative->steps[1].layers[1]);
    CHECK(back.iterative->steps[0].bytes == 1024);
    REQUIRE(back.random_sets);
    CHECK(back.random_sets->sequences == 8);
    CHECK(back.random_sets->sets[0].drop == std::vector<int64_t>{0, 2, 3});
    CHECK(back.random_sets->sets[1].loss_delta == 0.5);
    REQUIRE(back.certainty);
    CHECK(back.certainty->ties == std::vector<std::array<int64_t, 2>>{{1, 3}});
    CHECK(back.stability->split_half == 0.5);
    CHECK(back.precision->largest_error == 0.75);
}

TEST_CASE("A part that speaks of layers that are not there is refused") {
    test::TempDir dir;
    const auto path = dir.path() / "scores.json";
    ScoreTable table = table_with_parts();
    table.pairs->pairs[1].second = 4;
    write_file_atomically(path, scores_json(table));
    CHECK_THROWS_WITH(read_scores(path), Catch::Matchers::Contains("found layer 4, expected one of 0..3"));
    table = table_with_parts();
    table.random_sets->sets[0].drop = {0, 3, 3};
    write_file_atomically(path, scores_json(table));
    CHECK_THROWS_WITH(read_scores(path), Catch::Matchers::Contains("ascending order, each once"));
    table = table_with_parts();
    table.iterative->steps[0].layers.pop_back();
    write_file_atomically(path, scores_json(table));
    CHECK_THROWS_WITH(read_scores(path), Catch::Matchers::Contains("expected 4 numbers or nulls"));
}
