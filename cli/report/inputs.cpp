#include "cli/report/inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>

namespace minipuzzle::report {
namespace {

namespace fs = std::filesystem;

struct Found {
    fs::path path;
    std::string relative, format;
    int depth = 0;
};

// The `format` within the first bytes of a file, "" for files that are not ours: a tokenizer.json of many
// megabytes is never parsed.
std::string sniff_format(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string head(1024, '\0');
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    head.resize(static_cast<std::size_t>(file.gcount()));
    const std::size_t key = head.find("\"format\"");
    const std::size_t begin = head.find("\"minipuzzle.", key == head.npos ? head.size() : key);
    if (begin == head.npos || head.find_first_not_of(" \t\r\n:", key + 8) != begin) return "";
    const std::size_t end = head.find('"', begin + 1);
    return end == head.npos ? "" : head.substr(begin + 1, end - begin - 1);
}

std::vector<Found> find_artefacts(const fs::path& folder) {
    if (!fs::is_directory(folder))
        fail_input(fmt::format("{}: no such folder; expected the folder of a run, a search or a score",
                               folder.string()));
    std::vector<Found> found;
    for (auto it = fs::recursive_directory_iterator(folder); it != fs::recursive_directory_iterator(); ++it) {
        if (it->is_directory() && it.depth() >= 2) it.disable_recursion_pending();
        const std::string extension = it->path().extension().string();
        if (!it->is_regular_file() || (extension != ".json" && extension != ".jsonl")) continue;
        const std::string format = sniff_format(it->path());
        if (!format.empty())
            found.push_back({it->path(), fs::relative(it->path(), folder).string(), format, it.depth()});
    }
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
        return std::tie(a.depth, a.relative) < std::tie(b.depth, b.relative);
    });
    return found;
}

std::optional<EvaluationFile> read_evaluation(const Found& file, SourceFile& source) {
    const Json json = read_json(file.path);
    ObjectReader reader(json, file.path.string() + ": ");
    source.provenance = reader.header("minipuzzle.eval/1");
    if (reader.has("students") || reader.has("tasks")) return std::nullopt;
    EvaluationFile evaluation;
    evaluation.name = file.path.stem().string();
    evaluation.model = reader.model("model");
    evaluation.loss = reader.number("loss");
    evaluation.next_token_accuracy = reader.optional_number("next_token_accuracy");
    evaluation.kl = reader.optional_number("kl");
    evaluation.top1_agreement = reader.optional_number("top1_agreement");
    evaluation.tokens = reader.integer("tokens", 0);
    return evaluation;
}

std::string version_in(const fs::path& path) {
    std::ifstream file(path);
    std::string text(1024, '\0');
    file.read(text.data(), 1024);
    const std::size_t key = text.find("\"version\"");
    const std::size_t begin = key == text.npos ? key : text.find('"', key + 9);
    return begin == text.npos ? "" : text.substr(begin + 1, text.find('"', begin + 1) - begin - 1);
}

// Reads one file into its place; false where the page has no place for it.
bool take(const Found& file, SourceFile& source, ReportInputs& inputs) {
    if (file.format == "minipuzzle.scores/1" && !inputs.scores) {
        inputs.scores = read_scores(file.path);
        source.provenance = inputs.scores->provenance;
        return true;
    }
    if (file.format == "minipuzzle.search/1" && !inputs.search) {
        inputs.search = nas::read_search(file.path);
        source.provenance = inputs.search->provenance;
        return true;
    }
    if (file.format == "minipuzzle.run/1") {
        inputs.runs.push_back({file.relative, distill::read_run_log(file.path)});
        source.provenance = inputs.runs.back().log.header.provenance;
        return true;
    }
    if (file.format == "minipuzzle.eval/1")
        if (auto evaluation = read_evaluation(file, source)) {
            inputs.evaluations.push_back(*evaluation);
            return true;
        }
    return false;
}

int stage(const std::string& format) {
    constexpr std::string_view kStages[] = {"minipuzzle.scores/", "minipuzzle.search/", "minipuzzle.run/"};
    int stage = 0;
    while (stage < 3 && format.rfind(kStages[stage], 0) != 0) ++stage;
    return stage;
}

}  // namespace

ReportInputs read_report_inputs(const fs::path& folder) {
    ReportInputs inputs;
    inputs.folder = folder.string();
    for (const Found& file : find_artefacts(folder)) {
        SourceFile source{
            .path = file.relative, .format = file.format, .provenance = {}, .version = version_in(file.path)};
        if (take(file, source, inputs))
            inputs.sources.push_back(source);
        else
            inputs.left_aside.push_back(file.relative);
    }
    if (inputs.sources.empty())
        fail_input(
            fmt::format("{}: nothing to report: found no scores.json, search.json, run.jsonl or eval.json "
                        "here or in its sub-folders; make one with `minipuzzle score`, `search` or `run`",
                        folder.string()));
    std::stable_sort(
        inputs.sources.begin(), inputs.sources.end(),
        [](const SourceFile& a, const SourceFile& b) { return stage(a.format) < stage(b.format); });
    return inputs;
}

}  // namespace minipuzzle::report
