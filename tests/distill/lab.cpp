#include "tests/distill/lab.h"

#include <algorithm>
#include <fstream>

#include "runtime/files.h"
#include "tests/catch.h"

namespace minipuzzle::test {
namespace fs = std::filesystem;

namespace {

std::string log_without_costs(const fs::path& out) {
    std::ifstream file(out / "run.jsonl");
    std::string line, text;
    while (std::getline(file, line)) {
        Json json = Json::parse(line);
        for (const char* cost : {"tokens_per_second", "tflops", "peak_bytes"}) json.erase(cost);
        text += json.dump() + "\n";
    }
    return text;
}

}  // namespace

std::vector<std::string> names_in(const fs::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

void check_same_result(const fs::path& expected, const fs::path& found) {
    CHECK(names_in(found) == names_in(expected));
    for (const std::string& name : names_in(expected)) {
        INFO(name);
        if (name == "run.jsonl")
            CHECK(log_without_costs(found) == log_without_costs(expected));
        else if (name != ".state")
            CHECK(sha256_of_file(found / name) == sha256_of_file(expected / name));
    }
    CHECK(names_in(found / ".state") == std::vector<std::string>{"state.json"});
}

}  // namespace minipuzzle::test
