#include "runtime/tasks.h"

#include <cmath>

#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/minis.h"

using namespace minipuzzle;
using Catch::Matchers::Contains;

namespace {

// mini-20 with its tokenizer; rows are written to a folder of the test's own.
struct Bench {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 0);
    test::Mini mini{*backend, "mini-20"};
    Tokenizer tokenizer{mini.checkpoint.folder() / "tokenizer.json"};
    test::TempDir folder;

    TaskContext context() const {
        return {.tokenizer = &tokenizer, .vocab = 2048, .prefix = 1, .longest = 8192};
    }
    TaskSet read(const std::string& text) const {
        return read_tasks(folder.write("rows.jsonl", text), context());
    }
    TaskResults run(const TaskSet& tasks, const std::vector<StudentPlan>& plans = {}) const {
        return run_tasks(*backend, mini.checkpoint.architecture(), mini.weights.weights(), plans, nullptr,
                         tasks, {});
    }
    std::vector<double> log_likelihood(const std::string& text) const {
        return run(read(text)).base.log_likelihood;
    }
};

// Where the numbers below come from: lm-evaluation-harness 0.4.13's own TemplateLM.loglikelihood over the
// `tokenizers` library, and mini-20 in numpy's float64 with the recurrence taken step by step, an
// implementation that shares nothing with this one.
constexpr const char* kRows =
    R"({"context": "", "choices": ["Who is Sarah shocking while stunning Galileo?", "Who is Sarah shocking Galileo while stunning?"], "answer": 0, "task": "adjunct_island", "field": "syntax"}
{"context": "The package installs the documentation in  ", "choices": ["/usr/share/doc", "Paris", "the"], "answer": 0, "task": "places"}
{"context": "The package installs the documentation in", "choices": [" /usr/share/doc", " Paris", " the"], "answer": 2, "task": "places"}
{"context": "for (int i = 0; i <", "choices": ["n", " n; ++i) {\n", "<s>"], "answer": 1, "task": "code"}
{"context": " \u00a0\t", "choices": ["a", "\u3000b\u00e9"], "answer": 1, "task": "code"}
{"context": "<s>Once", "choices": [" upon a time", " upon the"], "answer": 0}

{"context": "", "choices": ["<s>Once", "Once"], "answer": 0}
)";
struct Expected {
    int64_t read;  // tokens of the context
    std::vector<int32_t> continuation;
    double log_likelihood;
};
const std::vector<Expected> kExpected = {
    {1,
     {70, 87, 94, 323, 357, 298, 80, 87, 555, 1819, 303, 1698, 410, 324, 1244, 546, 295, 412, 94, 46},
     -90.9895115463153},
    {1,
     {70, 87, 94, 323, 357, 298, 80, 87, 555, 1819, 303, 546, 295, 412, 94, 1698, 410, 324, 1244, 46},
     -89.56936426268668},
    {10, {236, 978, 354, 97, 30, 1130, 534, 30, 83, 507}, -19.07682970921228},
    {10, {236, 414, 298, 286}, -19.38535184100985},
    {10, {236, 284}, -10.500150901551013},
    {10, {978, 354, 97, 30, 1130, 534, 30, 83, 507}, -10.031770164750979},
    {10, {414, 298, 286}, -13.478545501453217},
    {10, {284}, -0.9413912370818653},
    {11, {93}, -11.094572103231854},
    {11, {314, 42, 492, 26, 88, 24, 458}, -10.384627334158186},
    {11, {1}, -21.545611765218304},
    {1, {236, 461, 213, 80}, -26.478815710665582},
    {1, {236, 461, 213, 1236, 238, 81, 958}, -59.035267698077405},
    {3, {763, 279, 275, 946}, -18.052505090542773},
    {3, {763, 279, 284}, -12.263500187408315},
    {1, {62, 1026}, -8.604864526413868},
    {1, {62, 1026}, -8.604864526413868}};

std::string row(const std::string& rest) { return "{\"context\": \"The\", " + rest + "}\n"; }

}  // namespace

TEST_CASE("rows are tokenised and scored as lm-evaluation-harness does it") {
    const Bench bench;
    const TaskSet tasks = bench.read(kRows);
    REQUIRE(tasks.rows.size() == 7);
    CHECK(tasks.rows[6].line == 8);
    REQUIRE(tasks.sequences.size() == kExpected.size());
    const TaskScores scores = bench.run(tasks).base;
    for (std::size_t i = 0; i < kExpected.size(); ++i) {
        const TaskSequence& sequence = tasks.sequences[i];
        INFO("sequence " << i);
        CHECK(std::vector<int32_t>(sequence.tokens.end() - sequence.scored, sequence.tokens.end()) ==
              kExpected[i].continuation);
        CHECK(std::ssize(sequence.tokens) - sequence.scored == kExpected[i].read);
        // Float32 logits agree with the reference's to 1e-5 of their size (evaluate_test.cpp), about 1e-4
        // nats a token here.
        CHECK(scores.log_likelihood[i] ==
              Approx(kExpected[i].log_likelihood).margin(1e-4 * static_cast<double>(sequence.scored)));
    }
    // 3 of 7 by the sum; 4 of 7 per token (the first row of "places" is right there too).
    CHECK(scores.all.rows == 7);
    CHECK(scores.all.accuracy == Approx(3.0 / 7));
    CHECK(*scores.all.standard_error == Approx(0.2020305089104421));
    CHECK(scores.all.accuracy_per_token == Approx(4.0 / 7));
    CHECK(scores.per_task.at("places").accuracy == 0.5);
    CHECK(scores.per_task.at("places").accuracy_per_token == 1);
    CHECK(*scores.per_task.at("places").standard_error_per_token == 0);
    CHECK_FALSE(scores.per_task.at("adjunct_island").standard_error);
    CHECK(scores.per_task.at("").rows == 2);
}

TEST_CASE("a row's log-likelihoods are its own, whatever rows and students come with it") {
    const Bench bench;
    const std::vector<double> together = bench.log_likelihood(kRows);
    std::istringstream lines(kRows);
    std::vector<double> alone;
    for (std::string line; std::getline(lines, line);) {
        if (line.empty()) continue;
        for (const double value : bench.log_likelihood(line)) alone.push_back(value);
    }
    CHECK(alone == together);

    StudentPlan first, second;
    first.drop = {3};
    second.drop = {3, 12};
    const TaskSet tasks = bench.read(kRows);
    const TaskResults both = bench.run(tasks, {first, second});
    CHECK(both.base.log_likelihood == together);
    REQUIRE(both.variants.size() == 2);
    CHECK(both.variants[0].log_likelihood != together);
    CHECK(both.variants[1].log_likelihood == bench.run(tasks, {second}).variants[0].log_likelihood);
}

TEST_CASE("ties go to the lower index, standard errors are the sample's") {
    TaskSet tasks;
    for (int64_t i = 0; i < 4; ++i) tasks.rows.push_back({.answer = i % 2, .first = 2 * i, .choices = 2});
    for (int i = 0; i < 8; ++i) tasks.sequences.push_back({.tokens = {}, .scored = i % 2 == 0 ? 1 : 2});
    const TaskScores scores = task_scores(tasks, {-1, -1, -1, -1, -2, -1.5, -3, -1});
    // By the sum: 0 (right), 0 (wrong), 1 (wrong), 1 (right). Per token -1 against -0.5 is always 1.
    CHECK(scores.all.accuracy == 0.5);
    CHECK(*scores.all.standard_error == Approx(std::sqrt(0.25 / 3)));
    CHECK(scores.all.accuracy_per_token == 0.5);
}

TEST_CASE("rows that cannot be scored are refused with file and line") {
    const Bench bench;
    const auto fails = [&](const std::string& text, const std::string& says) {
        CHECK_THAT(test::bad_input([&] { bench.read(text); }), Contains("rows.jsonl") && Contains(says));
    };
    const std::string good = row(R"("choices": [" a", " b"], "answer": 1)");
    fails(good + row(R"("choices": [" a", " b"], "answer": 2)"), "rows.jsonl:2: \"answer\": found 2");
    fails(row(R"("choices": [" a"], "answer": -1)"), ":1: \"answer\": found -1");
    fails(row(R"("choices": [" a"], "answer": 0.5)"), ":1: \"answer\": found 0.5");
    fails(good + "\n" + row(R"("choices": [], "answer": 0)"), ":3: \"choices\"");
    fails(row(R"("choices": [3], "answer": 0)"), ":1: \"choices\": found the number 3");
    fails(row(R"("answer": 0)"), ":1: the row has no \"choices\"");
    fails(R"({"context": 1, "choices": ["a"], "answer": 0})", ":1: \"context\"");
    fails("[]\n", ":1: expected a row");
    fails("{", ":1");
    fails("\n\n", "holds no rows");
    // The harness stops here with an assertion: "long word" has no more tokens than "long w".
    fails(R"({"context": "long w", "choices": ["ord"], "answer": 0})", ":1: choice 0: gives no token");
    fails(row(R"("choices": [" a", ""], "answer": 0)"), ":1: choice 1: gives no token");

    TaskContext context = bench.context();
    context.longest = 3;
    const auto path =
        bench.folder.write("rows.jsonl", good + row(R"("choices": [" a b c d e"], "answer": 0)"));
    CHECK_THAT(test::bad_input([&] { read_tasks(path, context); }),
               Contains(":2: choice 0") && Contains("at most 3"));
    context = bench.context();
    context.prefix = -1;
    const auto bare = bench.folder.write("bare.jsonl", R"({"context": "", "choices": ["a"], "answer": 0})");
    CHECK_THAT(test::bad_input([&] { read_tasks(bare, context); }), Contains("bos_token_id"));
    context.tokenizer = nullptr;
    CHECK_THAT(test::bad_input([&] { read_tasks(bare, context); }), Contains("tokenizer.json"));
}
