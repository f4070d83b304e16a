#include <set>

#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

using nlohmann::json;
using test::refused;
using test::run;
using test::run_json;

TEST_CASE("bench ops measures and checks what --match names") {
    const json result = run_json(
        {"bench", "ops", "--match", "^(rms_norm|conv|ssd|add) ", "--device", "cpu", "--threads", "1"});
    CHECK(result["format"] == "minipuzzle.bench/1");
    CHECK(result["limits"]["bytes_per_second"].get<double>() > 0);
    CHECK(result["limits"]["flops_per_second"].get<double>() > 0);
    REQUIRE(result["operations"].size() == 4);
    std::set<std::string> names;
    for (const json& operation : result["operations"]) {
        INFO(operation.dump());
        names.insert(operation["operation"]);
        CHECK(operation["check"]["passed"] == true);
        CHECK(operation["launches"].get<int>() >= 20);
        CHECK(operation["ms"].get<double>() > 0);
        CHECK(operation["bytes"].get<double>() > 0);
        CHECK(operation["share"].get<double>() > 0);
        const bool memory = operation["limit"] == "memory";
        CHECK(operation["unit"] == (memory ? "GB/s" : "TFLOP/s"));
        const double work = operation[memory ? "bytes" : "flops"].get<double>();
        const double per_second = work / operation["ms"].get<double>() * 1e3;
        CHECK(operation["rate"].get<double>() == Approx(per_second * (memory ? 1e-9 : 1e-12)));
    }
    CHECK(names == std::set<std::string>{"add", "conv", "rms_norm", "ssd"});
}

TEST_CASE("every operation of bench ops agrees with the CPU twin", "[slow]") {
    const json result = run_json({"bench", "ops", "--device", "cpu"});
    CHECK(result["operations"].size() == 42);
    for (const json& operation : result["operations"]) {
        INFO(operation.dump());
        CHECK(operation["check"]["passed"] == true);
        // In double the twin differs from float32 by rounding; no difference at all would mean that it was
        // not computed. Sums of small numbers and copies are exact.
        if (operation["operation"] == "linear") CHECK(operation["check"]["error"].get<double>() > 0);
    }
}

TEST_CASE("bench ops prints a table") {
    const auto outcome = run({"bench", "ops", "--match", "squared_relu", "--device", "cpu", "-q"});
    REQUIRE(outcome.code == 0);
    CHECK(outcome.err.empty());
    for (const char* word : {"copy of", "product ", "operation", "squared_relu", "of limit", "PASS", "GB/s"})
        CHECK(outcome.out.find(word) != std::string::npos);
}

TEST_CASE("bench refuses what it does not know") {
    refused({"bench"}, "bench ops");
    refused({"bench", "everything"}, "everything");
    refused({"bench", "ops", "--device", "cpu", "--match", "no_such_operation"}, "rms_norm");
    refused({"bench", "ops", "--device", "cpu", "--match", "("}, "no regular expression");
    refused({"bench", "ops", "--device", "cpu", "--model", test::demo_model()}, "shapes of its own");
    refused({"bench", "ops", "--device", "cpu", "--sweep"}, "shapes of its own");
    refused({"bench", "--device", "cpu", "--model", test::demo_model(), "--match", "ssd"}, "bench ops");
}

}  // namespace
}  // namespace minipuzzle::cli
