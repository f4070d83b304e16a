#include "runtime/evaluate.h"

#include <cmath>

#include "tests/catch.h"
#include "tests/support/minis.h"
#include "tests/support/npy.h"

using namespace minipuzzle;

namespace {

void check_base(const test::Mini& mini, Backend& backend) {
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    const Evaluation evaluation = evaluate(backend, model, nullptr, mini.corpus, mini.windows, {});
    const auto& base = mini.reference["base"];
    CHECK(evaluation.tokens == 16384);
    CHECK(evaluation.sequences == 32);
    CHECK(evaluation.loss == Approx(base["loss"].get<double>()).epsilon(1e-5).margin(0));
    for (std::size_t i = 0; i < 32; ++i)
        CHECK(evaluation.per_sequence_loss[i] ==
              Approx(base["per_sequence_loss"][i].get<double>()).epsilon(2e-5));
    CHECK(evaluation.next_token_accuracy ==
          Approx(base["next_token_accuracy"].get<double>()).margin(4.0 / 16384));
    CHECK(evaluation.perplexity() == Approx(std::exp(evaluation.loss)));
}

void check_logits(const test::Mini& mini, Backend& backend) {
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    std::vector<int32_t> tokens = mini.reference["calibration_tokens"][0];
    tokens.resize(48);
    const std::vector<float> logits = logits_of(backend, model, tokens);
    const test::NpyArray expected = test::read_npy(mini.checkpoint.folder() / "logits_first48.npy");
    REQUIRE(expected.values.size() == logits.size());
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        error += std::pow(static_cast<double>(logits[i]) - expected.values[i], 2);
        norm += std::pow(static_cast<double>(expected.values[i]), 2);
    }
    CHECK(std::sqrt(error) < 1e-5 * std::sqrt(norm));
}

void check_greedy(const test::Mini& mini, Backend& backend) {
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    const auto& greedy = mini.reference["greedy"];
    for (std::size_t i = 0; i < greedy["prompt"].size(); ++i) {
        const std::vector<int32_t> expected = greedy["continuation"][i];
        CHECK(greedy_continuation(backend, model, greedy["prompt"][i],
                                  static_cast<int64_t>(expected.size())) == expected);
    }
}

void check_mini(const std::string& name) {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, name);
    check_base(mini, *backend);
    check_logits(mini, *backend);
    check_greedy(mini, *backend);
}

}  // namespace

TEST_CASE("mini-20 gives the reference's losses, logits and greedy continuations", "[slow]") {
    check_mini("mini-20");
}
TEST_CASE("mini-52 gives the reference's losses, logits and greedy continuations", "[slow]") {
    check_mini("mini-52");
}

TEST_CASE("A model against itself: no divergence, full agreement") {
    const auto backend = make_cpu_backend(DType::f32, 0);
    const test::Mini mini(*backend, "mini-20");
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    const std::vector<Window> some(mini.windows.begin(), mini.windows.begin() + 2);
    const Evaluation alone = evaluate(*backend, model, nullptr, mini.corpus, some, {});
    const Evaluation both = evaluate(*backend, model, &model, mini.corpus, some, {});
    CHECK(both.loss == alone.loss);
    CHECK(both.next_token_accuracy == alone.next_token_accuracy);
    CHECK(std::abs(both.kl.value()) < 1e-7);
    CHECK(both.top1_agreement.value() == 1.0);
    CHECK(!alone.kl.has_value());
}

TEST_CASE("Sources are reported apart and weigh in by their tokens") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const test::Mini mini(*backend, "mini-20");
    std::ofstream(mini.scratch.path() / "rows.jsonl") << R"({"tokens": [5, 6, 7, 8, 9], "source": "a"})"
                                                      << "\n"
                                                      << R"({"tokens": [9, 8, 7], "source": "b"})"
                                                      << "\n";
    const Corpus corpus({(mini.scratch.path() / "rows.jsonl").string()},
                        {.tokenizer = nullptr, .vocab = 2048}, false);
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    const Evaluation e = evaluate(*backend, model, nullptr, corpus, choose_windows(corpus, 512, 0, 0), {});
    REQUIRE(e.per_source.size() == 2);
    CHECK(e.per_source.at("a").tokens == 4);
    CHECK(e.per_source.at("b").tokens == 2);
    CHECK(e.loss == Approx((4 * e.per_source.at("a").loss + 2 * e.per_source.at("b").loss) / 6));
}

TEST_CASE("A reference of another vocabulary is refused") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    const test::Mini mini(*backend, "mini-20");
    Architecture other = mini.checkpoint.architecture();
    other.vocab = 1024;
    const EvaluatedModel model{mini.checkpoint.architecture(), mini.weights.weights()};
    const EvaluatedModel reference{other, mini.weights.weights()};
    CHECK_THROWS_AS(evaluate(*backend, model, &reference, mini.corpus, mini.windows, {}), Error);
}
