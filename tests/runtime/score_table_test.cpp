#include "runtime/score_table.h"

#include <functional>

#include "runtime/safetensors.h"
#include "tests/catch.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using Catch::Matchers::Contains;

namespace {

// What reading this text as scores.json gives.
ScoreTable read_text(const std::string& text) {
    const test::TempDir folder;
    return read_scores(folder.write("scores.json", text));
}

ScoreTable example() { return read_scores(MINIPUZZLE_SOURCE_DIR "/../shared/examples/scores.json"); }

Json example_json() { return read_json(MINIPUZZLE_SOURCE_DIR "/../shared/examples/scores.json"); }

}  // namespace

TEST_CASE("the example scores are read whole") {
    const ScoreTable table = example();
    CHECK(table.model.pattern == "M-*-");
    REQUIRE(table.layers.size() == 4);
    CHECK(table.layers[0].loss_delta == 8.49);
    CHECK(table.layers[0].loss_delta_ci == std::array<double, 2>{8.31, 8.67});
    CHECK(table.layers[2].type == LayerType::attention);
    CHECK_FALSE(table.layers[2].loss_delta);
    CHECK_FALSE(table.layers[2].loss_delta_ci);
    CHECK(table.layers[2].hidden_mse == 0.351);
    CHECK(table.layers[3].samples == 32);
    CHECK(table.base_loss == 1.95);
    CHECK(table.base_accuracy == 0.578);
    CHECK(table.calibration->tokens == 16384);
    CHECK(table.calibration->sources.at(0).path == "calib.jsonl");
    REQUIRE(table.ffn_width_curve.size() == 2);
    CHECK(table.ffn_width_curve[1].ffn_width == 496);
    CHECK(table.ffn_width_curve[1].loss_delta == 0.004);
    CHECK(table.width_scores_file == "scores.width.safetensors");
    CHECK(table.provenance.command.find("minipuzzle score") == 0);
}

TEST_CASE("scores written and read again are the same file") {
    ScoreTable table = example();
    table.layers[1].hidden_mse_pre_norm = 0.1 + 0.2;  // needs all 17 digits
    table.ffn_width_curve[0].kl = 0.0;
    table.per_sequence["base"] = {1.0 / 3, 2};
    table.notes = "a \"note\"";
    const std::string text = scores_json(table);
    const ScoreTable again = read_text(text);
    CHECK(scores_json(again) == text);
    CHECK(again.layers[1].hidden_mse_pre_norm == 0.1 + 0.2);
    CHECK(again.per_sequence.at("base")[0] == 1.0 / 3);
    CHECK(again.ffn_width_curve[0].kl == 0.0);
    CHECK(again.notes == table.notes);
    CHECK(text.find("\"format\": \"minipuzzle.scores/1\"") != std::string::npos);
}

TEST_CASE("scores with nothing but one metric, as published ones are") {
    ScoreTable table;
    table.model = {.path = "m", .pattern = "M", .arch_hash = "sha256:00", .weights_hash = ""};
    LayerScore layer;
    layer.hidden_mse = 0.5;
    table.layers = {layer};
    const ScoreTable again = read_text(scores_json(table));
    CHECK_FALSE(again.calibration);
    CHECK_FALSE(again.base_loss);
    CHECK(again.layers[0].hidden_mse == 0.5);
    CHECK_FALSE(again.layers[0].kl);
}

TEST_CASE("keys that nobody knows are refused, inside the optional parts too") {
    for (const char* key : {"pairs", "iterative", "stability", "precision"}) {
        Json json = example_json();
        json[key] = {{"any", 1}};
        CHECK_THROWS_WITH(read_text(json.dump()), Contains(key));
    }
    Json unknown = example_json();
    unknown["layer"] = 1;
    CHECK_THROWS_WITH(read_text(unknown.dump()), Contains("layer"));
    unknown = example_json();
    unknown["layers"][3]["klx"] = 1.0;
    CHECK_THROWS_WITH(read_text(unknown.dump()), Contains("layers[3]") && Contains("klx"));
}

TEST_CASE("scores that contradict themselves are refused with the place") {
    const auto with = [](const std::function<void(Json&)>& change) {
        Json json = example_json();
        change(json);
        return json.dump();
    };
    CHECK_THROWS_WITH(read_text(with([](Json& j) { j["layers"][1]["type"] = "E"; })), Contains("layers[1]"));
    CHECK_THROWS_WITH(read_text(with([](Json& j) { j["layers"][1]["type"] = "M"; })), Contains("M-*-"));
    CHECK_THROWS_WITH(read_text(with([](Json& j) { j["layers"][1]["layer"] = 2; })), Contains("layers[1]"));
    CHECK_THROWS_WITH(read_text(with([](Json& j) { j["layers"][1]["kl"] = "x"; })), Contains("kl"));
    CHECK_THROWS_WITH(read_text(with([](Json& j) {
                          j["layers"][0]["loss_delta_ci"] = {2, 1};
                      })),
                      Contains("loss_delta_ci"));
    CHECK_THROWS_WITH(read_text(with([](Json& j) { j["ffn_width_curve"][1]["ffn_width"] = 512; })),
                      Contains("twice"));
}

TEST_CASE("objectives: names, values, the default") {
    LayerScore layer;
    layer.cosine = 0.75;
    CHECK(value(layer, Objective::one_minus_cosine) == 0.25);
    CHECK_FALSE(value(layer, Objective::kl));
    CHECK(parse_objective("logit_nmse") == Objective::logit_nmse);
    CHECK(name(Objective::one_minus_cosine) == "one_minus_cosine");
    CHECK_THROWS_WITH(parse_objective("mse"), Contains("hidden_mse"));
    ScoreTable table;
    table.layers = {layer, {}};
    CHECK(default_objective(table) == Objective::one_minus_cosine);
    table.layers[1].kl = 0.1;
    CHECK_THROWS_WITH(default_objective(table), Contains("kl, one_minus_cosine"));
    table.layers[1].loss_delta = 0.1;
    CHECK(default_objective(table) == Objective::loss_delta);
    table.layers.clear();
    CHECK_THROWS_AS(default_objective(table), Error);
}

TEST_CASE("scores.csv: a row per layer, null as an empty cell") {
    const std::string text = scores_csv(example());
    CHECK(text.find("layer,type,loss_delta,loss_delta_low,loss_delta_high,kl,hidden_mse,logit_nmse,cosine,"
                    "top1_agreement,samples\n") == 0);
    CHECK(text.find("\n0,M,8.49,8.31,8.67,8.455,9.31,1.02,0.11,0.005,32\n") != std::string::npos);
    CHECK(text.find("\n2,*,,,,,0.351,,,,32\n") != std::string::npos);
}

TEST_CASE("scores of another model are refused") {
    Architecture architecture;
    architecture.vocab = 16;
    architecture.width = 8;
    architecture.layers = {Ffn{.width = 4}};
    ScoreTable table;
    table.model.pattern = "-";
    check_scores(table, architecture, "scores.json");  // no hash: the pattern is all there is to check
    table.model.arch_hash = arch_hash(architecture);
    check_scores(table, architecture, "scores.json");
    table.model.arch_hash = "sha256:00";
    CHECK_THROWS_WITH(check_scores(table, architecture, "scores.json"), Contains("scores.json"));
    table.model.pattern = "--";
    CHECK_THROWS_WITH(check_scores(table, architecture, "scores.json"), Contains("pattern"));
}

TEST_CASE("width scores: written, read, the kept neurons ascending") {
    WidthScores scores;
    scores.ffn_order[3] = {2, 0, 3, 1};
    scores.ffn_score[3] = {0.5f, 0.25f, 1.0f, 0.125f};
    scores.ffn_order[1] = {1, 0};
    const test::TempDir folder;
    const std::filesystem::path path = folder / "width.safetensors";
    write_width_scores(path, scores);
    const WidthScores again = read_width_scores(path);
    CHECK(again.ffn_order == scores.ffn_order);
    CHECK(again.ffn_score == scores.ffn_score);
    CHECK(kept_neurons(again, 3, 3) == std::vector<int32_t>{0, 2, 3});
    CHECK(kept_neurons(again, 3, 4) == std::vector<int32_t>{0, 1, 2, 3});
    CHECK_THROWS_WITH(kept_neurons(again, 3, 5), Contains("layer 3"));
    CHECK_THROWS_WITH(kept_neurons(again, 0, 1), Contains("layer 0"));
    scores.ffn_order[1] = {1, 1};
    write_width_scores(path, scores);
    CHECK_THROWS_WITH(read_width_scores(path), Contains("layers.1.ffn_neuron_order") && Contains("twice"));
}

TEST_CASE("width scores: Mamba heads in their groups and KV heads are written, read and checked") {
    WidthScores scores;
    scores.mamba_head_order[0] = {{2, 0, 1}, {3, 5, 4}};
    scores.mamba_head_score[0] = {0.5f, 0.25f, 1.0f, 3.0f, 1.5f, 2.0f};
    scores.kv_head_order[4] = {1, 0};
    scores.kv_head_score[4] = {0.5f, 0.75f};
    const test::TempDir folder;
    const std::filesystem::path path = folder / "width.safetensors";
    const auto fails = [&](const WidthScores& bad, const std::string& words) {
        write_width_scores(path, bad);
        CHECK_THROWS_WITH(read_width_scores(path), Contains(words));
    };
    write_width_scores(path, scores);
    const SafetensorsFile file(path);
    CHECK(file.find("layers.0.mamba_head_order")->shape == std::vector<int64_t>{2, 3});
    CHECK(file.find("layers.4.kv_head_order")->shape == std::vector<int64_t>{2});
    const WidthScores again = read_width_scores(path);
    CHECK(again.mamba_head_order == scores.mamba_head_order);
    CHECK(again.mamba_head_score == scores.mamba_head_score);
    CHECK(again.kv_head_order == scores.kv_head_order);
    CHECK(again.kv_head_score == scores.kv_head_score);
    WidthScores bad = scores;
    bad.mamba_head_order[0][0][1] = 3;  // a head of the other group
    fails(bad, "layers.0.mamba_head_order: group 0: head 3 is out of range, expected each of 0..2 once");
    bad = scores;
    bad.mamba_head_order[0][1] = {3, 5, 2};
    fails(bad, "group 1: head 2 is out of range, expected each of 3..5 once");
    bad = scores;
    bad.mamba_head_order[0][1] = {3, 5, 3};
    fails(bad, "group 1: head 3 is listed twice");
    bad = scores;
    bad.mamba_head_score[0].pop_back();
    fails(bad, "layer 0 has 5 scores but 6 heads in its order");
    bad = scores;
    bad.kv_head_order[4] = {-1, 0};
    fails(bad, "layers.4.kv_head_order: KV head -1 is out of range");
}
