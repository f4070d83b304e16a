#include "runtime/student_plan.h"

#include "tests/catch.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using Catch::Matchers::Contains;

namespace {

Architecture teacher() {
    Architecture architecture;
    architecture.vocab = 16;
    architecture.width = 8;
    architecture.layers = {Mamba{.heads = 4, .head_dim = 2, .state = 4, .groups = 2, .conv_kernel = 4},
                           Ffn{.width = 512}, Attention{.heads = 2, .kv_heads = 1, .head_dim = 4},
                           Ffn{.width = 512}};
    return architecture;
}

StudentPlan dropping(std::vector<int64_t> layers) {
    StudentPlan plan;
    plan.drop = std::move(layers);
    return plan;
}

StudentPlan read_text(const std::string& text) {
    const test::TempDir folder;
    return read_plan(folder.write("plan.yaml", text));
}

}  // namespace

TEST_CASE("the example plan is read whole") {
    const StudentPlan plan = read_plan(MINIPUZZLE_SOURCE_DIR "/../shared/examples/plan.yaml");
    CHECK(plan.drop == std::vector<int64_t>{3});
    CHECK(plan.ffn_width == 496);
    CHECK(plan.width_scores == "scores.width.safetensors");
    CHECK(plan.notes == "written by hand");
}

TEST_CASE("a plan's text reads back as the plan") {
    StudentPlan plan = dropping({0, 3});
    plan.width_scores = "odd \"name\": #1.safetensors";
    plan.notes = "two\nlines, a colon: and 'quotes'";
    CHECK(read_text(plan_text(plan)) == plan);
    plan.ffn_width = 256;
    CHECK(read_text(plan_text(plan)) == plan);
    plan.ffn_width.reset();
    plan.ffn_widths = {{1, 480}, {3, 16}};
    plan.mamba_heads_per_group = 1;
    CHECK(read_text(plan_text(plan)) == plan);
    CHECK(read_text(plan_text(dropping({}))) == dropping({}));
}

TEST_CASE("plan files with slips are refused with the place and the reason") {
    const std::string head = "format: minipuzzle.plan/1\n";
    CHECK_THROWS_WITH(read_text(head + "drop: [3, 3]\n"), Contains("drop") && Contains("twice"));
    CHECK_THROWS_WITH(read_text(head + "drop: [1]\nwidth: 3\n"), Contains("width"));
    CHECK_THROWS_WITH(read_text(head + "drop: [1]\nffn_width: wide\n"), Contains("ffn_width"));
    CHECK_THROWS_WITH(read_text(head + "drop: [1]\nffn_width: {x: 3}\n"), Contains("ffn_width"));
    CHECK_THROWS_WITH(read_text("format: minipuzzle.scores/1\ndrop: []\n"), Contains("minipuzzle.plan/1"));
    CHECK_THROWS_AS(read_text(head), Error);
}

TEST_CASE("the student's architecture keeps, narrows and renumbers") {
    StudentPlan plan = dropping({1});
    plan.ffn_width = 496;
    check_plan(plan, teacher(), "plan");
    const Architecture student = student_architecture(teacher(), plan);
    CHECK(student.pattern() == "M*-");
    CHECK(std::get<Ffn>(student.layers[2]).width == 496);
    CHECK(plan.kept(teacher()) == std::vector<int64_t>{0, 2, 3});

    StudentPlan own;
    own.ffn_widths = {{3, 100}};
    own.mamba_heads_per_group = 1;
    check_plan(own, teacher(), "plan");
    const Architecture mixed = student_architecture(teacher(), own);
    CHECK(std::get<Ffn>(mixed.layers[1]).width == 512);
    CHECK(std::get<Ffn>(mixed.layers[3]).width == 100);
    CHECK(std::get<Mamba>(mixed.layers[0]).heads == 2);
    CHECK(student_architecture(teacher(), StudentPlan{}) == teacher());
}

TEST_CASE("plans that do not fit the teacher are refused") {
    CHECK_THROWS_WITH(check_plan(dropping({4}), teacher(), "p.yaml"), Contains("p.yaml") && Contains("0..3"));
    CHECK_THROWS_WITH(check_plan(dropping({0, 1, 2, 3}), teacher(), "p"), Contains("at least one"));
    CHECK_THROWS_AS(check_plan(dropping({2, 1}), teacher(), "p"), Error);
    StudentPlan plan;
    plan.ffn_width = 513;
    CHECK_THROWS_WITH(check_plan(plan, teacher(), "p"), Contains("1..512"));
    plan.ffn_width.reset();
    plan.ffn_widths = {{0, 4}};
    CHECK_THROWS_WITH(check_plan(plan, teacher(), "p"), Contains("no FFN layer"));
    plan.ffn_widths = {{1, 0}};
    CHECK_THROWS_WITH(check_plan(plan, teacher(), "p"), Contains("1..512"));
    plan = dropping({1});
    plan.ffn_widths = {{1, 4}};
    CHECK_THROWS_WITH(check_plan(plan, teacher(), "p"), Contains("dropped"));
    plan = {};
    plan.mamba_heads_per_group = 3;
    CHECK_THROWS_WITH(check_plan(plan, teacher(), "p"), Contains("1..2"));
}

TEST_CASE("plan rows: one student a line") {
    const test::TempDir folder;
    const std::vector<StudentPlan> plans = read_plan_rows(
        folder.write("rows.jsonl",
                     "{\"drop\": [3], \"ffn_width\": null}\n\n{\"drop\": [], \"ffn_width\": 8}\n"
                     "{\"drop\": [2, 0]}\n"));
    REQUIRE(plans.size() == 3);
    CHECK(plans[0] == dropping({3}));
    CHECK(plans[1].ffn_width == 8);
    CHECK(plans[2].drop == std::vector<int64_t>{0, 2});
    const auto bad = folder.write("bad.jsonl", "{\"drop\": [3]}\n{\"drop\": [1], \"keep\": 2}\n");
    CHECK_THROWS_WITH(read_plan_rows(bad), Contains("bad.jsonl:2") && Contains("keep"));
    CHECK_THROWS_AS(read_plan_rows(folder.write("empty.jsonl", "\n")), Error);
}
