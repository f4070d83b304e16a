#include "runtime/artefact.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;

namespace {

const std::string kExamples = MINIPUZZLE_SOURCE_DIR "/../shared/examples/";

Json yaml(const std::string& text) {
    const TempDir dir;
    return read_yaml(dir.write("file.yaml", text));
}

std::string yaml_error(const std::string& text) {
    return bad_input([&] { yaml(text); });
}

}  // namespace

TEST_CASE("the example artefacts are read") {
    const std::vector<std::pair<std::string, std::string>> examples = {
        {"scores.json", "minipuzzle.scores/1"},
        {"search.json", "minipuzzle.search/1"},
        {"eval.json", "minipuzzle.eval/1"},
        {"eval.plans.json", "minipuzzle.eval/1"}};
    for (const auto& [file, format] : examples) {
        INFO(file);
        const Json json = read_json(kExamples + file);
        ObjectReader reader(json, file);
        const Provenance provenance = reader.header(format);
        CHECK_THAT(provenance.command, Contains("minipuzzle"));
        CHECK(parse_json(pretty(json), file) == json);
        // What was asked for is the header alone, so the first other key is refused.
        CHECK_THAT(bad_input([&] { reader.finish(); }),
                   Catch::Matchers::StartsWith(fmt::format("{}: the key", file)));
    }
    const Json scores = read_json(kExamples + "scores.json");
    ObjectReader reader(scores, "scores.json");
    const ModelIdentity model = reader.model("model");
    CHECK(model.pattern == "M-*-");
    CHECK(to_json(model) == scores["model"]);
    const Json eval = read_json(kExamples + "eval.json");
    CHECK(to_json(ObjectReader(eval, "eval.json").model("model")) == eval["model"]);
}

TEST_CASE("the example YAML files are read") {
    const Json plan = read_yaml(kExamples + "plan.yaml");
    CHECK(plan["drop"] == Json({3}));
    CHECK(plan["ffn_width"] == 496);
    CHECK(plan["width_scores"] == "scores.width.safetensors");
    CHECK(plan["notes"] == "written by hand");
    const Json recipe = read_yaml(kExamples + "recipe.yaml");
    CHECK(recipe["search"]["mem-budget"] == "84%");
    CHECK(recipe["distill"]["tokens"] == "120k");
    CHECK(recipe["distill"]["lr"] == 0.001);
    const std::string run = read_file(kExamples + "run.jsonl");
    const Json header = parse_json(run.substr(0, run.find('\n')), "run.jsonl");
    CHECK(ObjectReader(header, "run.jsonl").header("minipuzzle.run/1").seed == 0);
}

TEST_CASE("an artefact opens with who made it") {
    const Json header = artefact_header("minipuzzle.plan/1", {.command = "minipuzzle search", .seed = 7});
    CHECK(pretty(header).find("{\n  \"format\": \"minipuzzle.plan/1\",\n  \"version\": \"") == 0);
    const Provenance back = ObjectReader(header, "x").header("minipuzzle.plan/1");
    CHECK(back.command == "minipuzzle search");
    CHECK(back.seed == 7);
    CHECK_THAT(bad_input([&] { ObjectReader(header, "x").header("minipuzzle.scores/1"); }),
               Contains("x: format: found \"minipuzzle.plan/1\", expected \"minipuzzle.scores/1\""));
}

TEST_CASE("values are read by kind and place") {
    const Json json = parse_json(
        R"({"text": "t", "whole": 3, "float_whole": 1e6, "real": 0.5, "none": null, "yes": true,
            "list": [1, 2.0], "rows": [{"kl": 1}, {"kl": "much"}], "inner": {"a": 1}, "notes": [1, "free"]})",
        "f");
    ObjectReader reader(json, "f.json");
    CHECK(reader.text("text") == "t");
    CHECK(reader.text("absent", "else") == "else");
    CHECK(reader.integer("whole") == 3);
    CHECK(reader.integer("float_whole") == 1000000);
    CHECK(reader.integer("none", 5) == 5);
    CHECK(reader.number("real") == 0.5);
    CHECK(reader.number("whole") == 3.0);
    CHECK_FALSE(reader.optional_number("none"));
    CHECK_FALSE(reader.optional_number("absent"));
    CHECK(reader.boolean("yes", false));
    CHECK(reader.integers("list") == std::vector<int64_t>{1, 2});
    CHECK(reader.object("inner").integer("a") == 1);
    CHECK(reader.optional("absent") == nullptr);
    CHECK_FALSE(reader.has("none"));
    CHECK(bad_input([&] { reader.each("rows", [](ObjectReader row) { row.optional_number("kl"); }); }) ==
          "f.json: rows[1].kl: found \"much\", expected a number or null");
    reader.finish();
}

TEST_CASE("values of the wrong kind are refused with their place") {
    const Json json = parse_json(R"({"a": "x", "b": 1.5, "c": [1, "x"], "d": {"e": 1}, "big": 1e300,
                                     "huge": 18446744073709551615})",
                                 "f");
    const auto said = [&](auto read) {
        ObjectReader reader(json, "f.json");
        return bad_input([&] { read(reader); });
    };
    CHECK(said([](ObjectReader& r) { r.integer("a"); }) == "f.json: a: found \"x\", expected a whole number");
    CHECK(said([](ObjectReader& r) { r.integer("b"); }) ==
          "f.json: b: found the number 1.5, expected a whole number");
    CHECK_THAT(said([](ObjectReader& r) { r.integer("big"); }), Contains("expected a whole number"));
    CHECK_THAT(said([](ObjectReader& r) { r.integer("huge"); }), Contains("expected a whole number"));
    CHECK(said([](ObjectReader& r) { r.integers("c"); }) ==
          "f.json: c[1]: found \"x\", expected a whole number");
    CHECK(said([](ObjectReader& r) { r.text("b"); }) == "f.json: b: found the number 1.5, expected a string");
    CHECK(said([](ObjectReader& r) { r.number("d"); }) == "f.json: d: found an object, expected a number");
    CHECK(said([](ObjectReader& r) { r.required("z"); }) == "f.json: the key \"z\" is missing");
    CHECK(said([](ObjectReader& r) { r.object("a"); }) == "f.json: a: found \"x\", expected an object");
    CHECK_THAT(said([](ObjectReader& r) { r.object("d").finish(); }),
               Contains("f.json: d: the key \"e\" is unknown"));
    CHECK(bad_input([] { ObjectReader reader(Json::array(), "f.json"); }) ==
          "f.json: found an array, expected an object");
}

TEST_CASE("JSON is strict") {
    for (const char* bad :
         {"", "{", "{} {}", "{\"a\": 1, \"a\": 1}", "[NaN]", "{\"a\": \"\xc3\"}", "[1,]", "// x\n1"})
        CHECK_THAT(bad_input([&] { parse_json(bad, "f.json"); }), Catch::Matchers::StartsWith("f.json: "));
    CHECK_THAT(bad_input([] { parse_json(std::string(200, '[').append(200, ']'), "f"); }),
               Contains("nested"));
    // The same key in two objects is not twice in one.
    CHECK(parse_json(R"([{"a": {"a": 1}}, {"a": 2}])", "f").size() == 2);
}

TEST_CASE("YAML scalars follow the core schema") {
    const Json json = yaml(R"(
whole: 12
negative: -3
plus: +4
octal: 0o17
hex: 0x1F
real: 1.5e3
dot: .5
nothing: ~
empty:
null_word: null
yes_word: yes
true_word: True
quoted: "12"
single: '3'
size: 31.7GiB
share: 84%
list: [3]
range: 1..4
minus: "-"
plain_dash: M-*-
date: 2024-01-01
inf_word: inf
tagged: !!str 12
block: |
  12
map: {1: 480}
)");
    CHECK(json["whole"] == 12);
    CHECK(json["negative"] == -3);
    CHECK(json["plus"] == 4);
    CHECK(json["octal"] == 15);
    CHECK(json["hex"] == 31);
    CHECK(json["real"] == 1500.0);
    CHECK(json["dot"] == 0.5);
    CHECK(json["nothing"].is_null());
    CHECK(json["empty"].is_null());
    CHECK(json["null_word"].is_null());
    CHECK(json["yes_word"] == "yes");
    CHECK(json["true_word"] == true);
    CHECK(json["quoted"] == "12");
    CHECK(json["single"] == "3");
    CHECK(json["size"] == "31.7GiB");
    CHECK(json["share"] == "84%");
    CHECK(json["list"] == Json({3}));
    CHECK(json["range"] == "1..4");
    CHECK(json["plain_dash"] == "M-*-");
    CHECK(json["date"] == "2024-01-01");
    CHECK(json["inf_word"] == "inf");
    CHECK(json["tagged"] == "12");
    CHECK(json["block"] == "12\n");
    CHECK(json["map"]["1"] == 480);
    for (const char* text : {"+-5", ".", "e5", "1e", "0x", "0xZZ", "0x-1", "1.2.3"}) {
        INFO(text);
        CHECK(yaml(fmt::format("a: {}", text))["a"] == text);
    }
}

TEST_CASE("YAML that is ambiguous or hostile is refused") {
    CHECK_THAT(yaml_error("a: 1\nb: 2\na: 3\n"), Contains("line 3") && Contains("\"a\" appears twice"));
    CHECK_THAT(yaml_error("a: [1, 2"), Contains("is not valid YAML"));
    CHECK_THAT(yaml_error("a: 1\n---\nb: 2\n"), Contains("several documents"));
    CHECK_THAT(yaml_error("a: .inf"), Contains("finite"));
    CHECK_THAT(yaml_error("a: -.nan"), Contains("finite"));
    CHECK_THAT(yaml_error("a: 99999999999999999999"), Contains("too large"));
    CHECK_THAT(yaml_error("a: 1e999"), Contains("too large"));
    CHECK_THAT(yaml_error("a: !!binary aGk="), Contains("tag"));
    CHECK_THAT(yaml_error("[1]: 2"), Contains("key"));
    std::string laughs = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n";
    for (int i = 1; i < 9; ++i) {
        laughs += fmt::format("a{0}: &a{0} [", i);
        for (int j = 0; j < 10; ++j) laughs += fmt::format("*a{}, ", i - 1);
        laughs += "1]\n";
    }
    CHECK_THAT(yaml_error(laughs), Contains("too large"));
    CHECK_THAT(yaml_error(std::string(200, '[').append(200, ']')), Contains("too deep"));
    CHECK(yaml("").is_null());
}

TEST_CASE("numbers survive pretty to the last bit") {
    for (double value :
         {0.1, 1.0, -0.0, 1e-5, 1e16, 123456789.125, 5e-324, 1.7976931348623157e308, 1.0 / 3}) {
        const Json back = parse_json(pretty(Json{{"v", value}}), "f");
        CHECK(back["v"].is_number_float());
        CHECK(std::signbit(back["v"].get<double>()) == std::signbit(value));
        CHECK(back["v"].get<double>() == value);
    }
    CHECK(pretty(Json{{"v", 0.1}}) == "{\n  \"v\": 0.1\n}\n");
    CHECK(pretty(Json{{"v", std::numeric_limits<double>::quiet_NaN()}}) == "{\n  \"v\": null\n}\n");
}

TEST_CASE("pretty keeps rows on a line and fills long lists") {
    Json json = {{"rows", Json::array()}, {"empty", Json::object()}, {"bad", "\xff"}};
    json["rows"].push_back({{"layer", 0}, {"ci", {0.5, 1.5}}});
    json["rows"].push_back({{"layer", 1}, {"ci", nullptr}});
    json["long"] = std::vector<int>(100, 1000);
    const std::string text = pretty(json);
    CHECK_THAT(text, Contains("{\"layer\": 0, \"ci\": [0.5, 1.5]}"));
    CHECK_THAT(text, Contains("\"empty\": {}"));
    CHECK(parse_json(text, "f")["long"].size() == 100);
    std::size_t longest = 0;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = text.find('\n', begin);
        longest = std::max(longest, end - begin);
        begin = end + 1;
    }
    CHECK(longest <= 110);
}
