// Hostile and broken input: one clear line, the right exit code, nothing left behind.
#include <cstring>
#include <fstream>

#include "tests/catch.h"
#include "tests/support/program.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::content_of;
using test::demo_model;
using test::run;
using test::TempDir;
using test::token_rows;

constexpr const char* kShard = "model-00001-of-00001.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// Names of everything in a folder, to see that nothing was left behind.
std::vector<std::string> names(const fs::path& folder) {
    std::vector<std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) all.push_back(entry.path().string());
    std::sort(all.begin(), all.end());
    return all;
}

// Runs what must fail in `dir`: one line on stderr that holds every word of `says`, nothing new in the
// folder.
void fails(const TempDir& dir, int code, const std::vector<std::string>& arguments,
           const std::vector<std::string>& says) {
    const auto before = names(dir.path());
    const auto outcome = run(arguments);
    INFO("stderr: " << outcome.err);
    CHECK(outcome.code == code);
    CHECK(outcome.out.empty());
    CHECK(outcome.err.rfind("minipuzzle: ", 0) == 0);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    for (const std::string& word : says) CHECK(outcome.err.find(word) != std::string::npos);
    CHECK(names(dir.path()) == before);
}

// A copy of the demo model that may be broken, with data.
struct Broken {
    TempDir dir;
    std::string model, data, out;

    Broken()
        : model((dir / "model").string()),
          data(dir.write("data.jsonl", token_rows(2, 40)).string()),
          out((dir / "out").string()) {
        fs::copy(demo_model(), model);
    }
    void replace_in(const std::string& file, const std::string& from, const std::string& to) const {
        std::string text = content_of(dir / ("model/" + file));
        const auto at = text.find(from);
        REQUIRE(at != std::string::npos);
        dir.write("model/" + file, text.replace(at, from.size(), to));
    }
    // The shard with another header; offsets stay as they were where `edit` does not touch them.
    template <class Edit>
    void edit_header(Edit edit) const {
        const std::string shard = content_of(dir / (std::string("model/") + kShard));
        uint64_t length = 0;
        std::memcpy(&length, shard.data(), 8);
        json header = json::parse(shard.substr(8, length));
        edit(header);
        write_shard(header.dump(), shard.substr(8 + length));
    }
    void write_shard(const std::string& header, const std::string& body) const {
        const uint64_t size = header.size();
        std::string text(8, '\0');
        std::memcpy(text.data(), &size, 8);
        dir.write(std::string("model/") + kShard, text + header + body);
    }
    void eval_fails(const std::vector<std::string>& says, int code = 3) const {
        fails(dir, code,
              {"eval", "--model", model, "--data", data, "--seq-len", "32", "--out", out + ".json"}, says);
    }
};

TEST_CASE("missing and truncated shards") {
    const Broken broken;
    const fs::path shard = broken.dir / (std::string("model/") + kShard);
    fs::resize_file(shard, fs::file_size(shard) - 100);
    broken.eval_fails({kShard});
    fs::resize_file(shard, 5);
    broken.eval_fails({kShard});
    fs::remove(shard);
    broken.eval_fails({kShard});
    fs::remove_all(broken.model);
    broken.eval_fails({"model"});
}

TEST_CASE("headers with bad offsets, duplicate keys, sizes that overflow") {
    const std::string tensor = "backbone.layers.0.norm.weight";
    const auto with = [&](const json& offsets, const json& shape) {
        const Broken broken;
        broken.edit_header([&](json& header) {
            header[tensor]["data_offsets"] = offsets;
            header[tensor]["shape"] = shape;
        });
        broken.eval_fails({kShard});
    };
    with({0, 256}, {128});                                 // overlaps another tensor
    with({1'000'000'000, 1'000'000'256}, {128});           // beyond the file
    with({256, 0}, {128});                                 // ends before it begins
    with({-256, 0}, {128});                                // negative
    with({0, 256}, {int64_t{1} << 62, int64_t{1} << 62});  // elements overflow
    const Broken broken;
    broken.write_shard(
        R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
        std::string(8, '\0'));
    broken.eval_fails({kShard});
    broken.write_shard(std::string(200, '['), "");
    broken.eval_fails({kShard});
}

TEST_CASE("an index that leaves the folder") {
    for (const char* target : {"../evil.safetensors", "/etc/passwd", "a/../../evil.safetensors"}) {
        const Broken broken;
        broken.replace_in(kIndex, kShard, target);
        broken.eval_fails({kIndex});
    }
}

TEST_CASE("wrong shapes, NaN weights, tensors that the pattern does not have") {
    {
        const Broken broken;
        broken.replace_in("config.json", "\"intermediate_size\": 512", "\"intermediate_size\": 496");
        broken.eval_fails({"layers.1.mixer", "512", "496"});
    }
    {
        const Broken broken;
        const std::string shard = content_of(broken.dir / (std::string("model/") + kShard));
        uint64_t length = 0;
        std::memcpy(&length, shard.data(), 8);
        const json header = json::parse(shard.substr(8, length));
        const std::string name = "backbone.layers.2.norm.weight";
        std::string body = shard.substr(8 + length);
        body[header[name]["data_offsets"][0].get<std::size_t>() + 1] = '\x7f';  // bf16 0x7fc0 or 0x7fff: NaN
        body[header[name]["data_offsets"][0].get<std::size_t>()] = '\xc0';
        broken.write_shard(header.dump(), body);
        broken.eval_fails({name, "nan"});
    }
    {
        const Broken broken;
        broken.replace_in("config.json", "M-M-M*-M-M-M*-M-M-M-", "M-M-M*-M-M-M*-M-M-M");
        broken.replace_in("config.json", "\"num_hidden_layers\": 20", "\"num_hidden_layers\": 19");
        broken.eval_fails({"layers.19"});
    }
    for (const char* pattern : {"M-M-M*-M-M-M*-M-M-ME", "M-M-M*-M-M-M*-M-M-MX", "MMM-M*-M-M-M*-M-M-M-"}) {
        const Broken broken;
        broken.replace_in("config.json", "M-M-M*-M-M-M*-M-M-M-", pattern);
        broken.eval_fails({});
    }
}

TEST_CASE("data: empty, neither key, out of range, not JSON, not there") {
    const Broken broken;
    const auto row_fails = [&](const std::string& rows, const std::vector<std::string>& says) {
        broken.dir.write("data.jsonl", rows);
        broken.eval_fails(says);
    };
    row_fails("", {"data.jsonl"});
    row_fails("\n\n", {"data.jsonl"});
    row_fails(token_rows(1, 5) + "{\"txt\": \"x\"}\n", {"data.jsonl", "2"});
    row_fails("{\"source\": \"x\"}\n", {"data.jsonl"});
    row_fails("{\"text\": \"x\", \"tokens\": [1]}\n", {"data.jsonl"});
    row_fails("{\"tokens\": [1, 2048]}\n", {"data.jsonl", "2048"});
    row_fails("{\"tokens\": [1, -1]}\n", {"data.jsonl"});
    row_fails("{\"tokens\": [1, 2.5]}\n", {"data.jsonl"});
    row_fails("{\"tokens\": [1]}\n", {});  // nothing to predict
    row_fails("not json\n", {"data.jsonl"});
    row_fails("{\"text\": \"\xff\"}\n", {"data.jsonl"});
    fs::remove(broken.data);
    broken.eval_fails({"data.jsonl"});
}

TEST_CASE("budgets that do not parse exit 2") {
    const Broken broken;
    for (const char* budget : {"lots", "31.7Gi", "84 percent", "-5GB", ""})
        fails(broken.dir, 2,
              {"search", "--model", broken.model, "--scores", "none.json", "--mem-budget", budget, "--out",
               broken.out},
              {"mem-budget"});
}

TEST_CASE("pairs and removal that make no sense exit 2 before anything is written") {
    const Broken broken;
    const auto refused = [&](const std::vector<std::string>& options, const std::vector<std::string>& says) {
        std::vector<std::string> arguments = {"score",
                                              "--model",
                                              broken.model,
                                              "--data",
                                              broken.data,
                                              "--out",
                                              (broken.dir / "scores.json").string()};
        arguments.insert(arguments.end(), options.begin(), options.end());
        fails(broken.dir, 2, arguments, says);
    };
    refused({"--pairs", "some"}, {"--pairs some", "all"});
    refused({"--pairs", "20"}, {"--pairs 20", "1 to 19"});
    refused({"--pairs", "all", "--pair-candidates", "5"}, {"--pair-candidates"});
    refused({"--pair-candidates", "5"}, {"--pairs"});
    refused({"--pair-samples", "5"}, {"--pairs"});
    refused({"--random-sets", "5"}, {"--random-sets", "--pairs"});
    refused({"--pairs", "--pair-samples", "3"}, {"--pair-samples 3", "2 sequences"});
    refused({"--pairs", "--pair-candidates", "21"}, {"--pair-candidates 21", "20 layers"});
    refused({"--iterative", "20"}, {"--iterative 20", "at most 19"});
    refused({"--mem-budget", "84%"}, {"--iterative"});
}

TEST_CASE("outputs that exist and are not ours stay as they are") {
    const Broken broken;
    broken.dir.write("data.jsonl", token_rows(5, 40));
    broken.dir.write("out/precious.txt", "mine");
    broken.dir.write("scores.json", "{\"mine\": 1}\n");
    const auto plan = broken.dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3]\n").string();
    fails(broken.dir, 3, {"prune", "--model", broken.model, "--plan", plan, "--out", broken.out},
          {"not ours"});
    fails(broken.dir, 3,
          {"distill", "--init", broken.model, "--data", broken.data, "--seq-len", "16", "--batch", "1",
           "--tokens", "16", "--out", broken.out},
          {"not ours"});
    fails(broken.dir, 3,
          {"run", "--model", broken.model, "--data", broken.data, "--mem-budget", "84%", "--out", broken.out},
          {"not ours"});
    const std::string scores = (broken.dir / "scores.json").string();
    fails(broken.dir, 3, {"score", "--model", broken.model, "--data", broken.data, "--out", scores},
          {"not ours"});
    fails(broken.dir, 3, {"eval", "--model", broken.model, "--data", broken.data, "--out", scores},
          {"not ours"});
    fails(broken.dir, 2, {"prune", "--model", broken.model, "--plan", plan, "--out", broken.model},
          {"input"});
    CHECK(content_of(scores) == "{\"mine\": 1}\n");
    CHECK(content_of(broken.dir / "out/precious.txt") == "mine");
}

TEST_CASE("score --until-certain: options that need each other, too few documents, no student that fits") {
    const Broken broken;
    const auto score_fails = [&](int code, const std::vector<std::string>& options,
                                 const std::vector<std::string>& says) {
        std::vector<std::string> arguments = {"score",     "--model", broken.model,        "--data",
                                              broken.data, "--out",   broken.out + ".json"};
        arguments.insert(arguments.end(), options.begin(), options.end());
        fails(broken.dir, code, arguments, says);
    };
    score_fails(2, {"--until-certain"}, {"--mem-budget"});
    score_fails(2, {"--tie", "0.001"}, {"--until-certain"});
    score_fails(2, {"--mem-budget", "84%"}, {"--until-certain"});
    score_fails(2, {"--until-certain", "--mem-budget", "84%", "--tie", "-1"}, {"--tie"});
    score_fails(2, {"--until-certain", "--mem-budget", "84%", "--width"}, {"--width"});
    // two rows, whatever number of windows they give
    score_fails(3, {"--until-certain", "--mem-budget", "84%", "--seq-len", "2"},
                {"2 documents", "at least 8", "--samples"});
    // before anything is measured, and before the data is looked at
    score_fails(4, {"--until-certain", "--mem-budget", "1%"}, {"smallest"});
}

TEST_CASE("our own files broken: unknown keys, other formats, other models") {
    const Broken broken;
    const auto plan_fails = [&](const std::string& text, const std::vector<std::string>& says) {
        const auto plan = broken.dir.write("plan.yaml", text).string();
        fails(broken.dir, 3, {"prune", "--model", broken.model, "--plan", plan, "--out", broken.out}, says);
    };
    plan_fails("format: minipuzzle.plan/1\ndrop: [3]\ndropp: [4]\n", {"dropp"});
    plan_fails("format: minipuzzle.plan/2\ndrop: [3]\n", {"format"});
    plan_fails("format: minipuzzle.plan/1\ndrop: [20]\n", {"20"});
    plan_fails("format: minipuzzle.plan/1\ndrop: [3\n", {"plan.yaml"});
    plan_fails("format: minipuzzle.plan/1\ndrop: []\nffn_width: 480\n", {"width_scores"});
    broken.dir.write("r.yaml", "format: minipuzzle.recipe/1\nmodel: m\nout: o\nbudget: 5\n");
    fails(broken.dir, 3, {"run", (broken.dir / "r.yaml").string()}, {"r.yaml"});
    fails(broken.dir, 3, {"inspect", broken.data}, {"data.jsonl"});
}

TEST_CASE("a full disk leaves nothing half-written") {
    if (!fs::exists("/dev/full")) return;
    const Broken broken;
    // stdout on a full disk: the result cannot be printed.
    const auto outcome = run({"inspect", "--arch", "nemotron-h-8b"});
    REQUIRE(outcome.code == 0);
    const std::string command = std::string(MINIPUZZLE_PROGRAM) +
                                " inspect --arch nemotron-h-8b > /dev/full 2> " +
                                (broken.dir / "err").string();
    CHECK(WEXITSTATUS(std::system(command.c_str())) == 1);
    CHECK(content_of(broken.dir / "err").find("cannot write") != std::string::npos);
}

// A file-size limit stands in for a full disk: writes beyond it fail the same way.
TEST_CASE("a student that does not fit on the disk") {
    const Broken broken;
    const auto plan = broken.dir.write("plan.yaml", "format: minipuzzle.plan/1\ndrop: [3]\n").string();
    const auto before = names(broken.dir.path());
    const std::string command = "bash -c 'trap \"\" XFSZ; ulimit -f 1000; exec \"" +
                                std::string(MINIPUZZLE_PROGRAM) + "\" prune --model " + broken.model +
                                " --plan " + plan + " --out " + broken.out + "' > /dev/null 2> /dev/null";
    CHECK(WEXITSTATUS(std::system(command.c_str())) == 1);
    CHECK(names(broken.dir.path()) == before);
}

TEST_CASE("distill refuses options that would do nothing") {
    const TempDir dir;
    const auto data = dir.write("rows.jsonl", token_rows(2, 40)).string();
    const std::vector<std::string> alone = {"distill", "--init", demo_model(),          "--data",
                                            data,      "--out",  (dir / "out").string()};
    const auto with = [&](std::vector<std::string> arguments, const std::vector<std::string>& more) {
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    };
    for (const char* option : {"--weight-memory", "--reverse-kl", "--top-k", "--feature"}) {
        const char* value = std::string(option) == "--weight-memory" ? "1GiB" : "1";
        fails(dir, 2, with(alone, {option, value}), {option, "--teacher"});
    }
    fails(dir, 2, with(alone, {"--teacher", demo_model(), "--kl", "0", "--ce", "1", "--top-k", "4"}),
          {"--top-k", "--kl"});
    fails(dir, 2, with(alone, {"--teacher", demo_model(), "--reverse-kl", "1", "--top-k", "4"}),
          {"--reverse-kl", "--top-k"});
}

}  // namespace
}  // namespace minipuzzle::cli
