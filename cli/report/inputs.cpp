#include "cli/report/inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <tuple>

namespace minipuzzle::report {
namespace {

namespace fs = std::filesystem;

struct Found {
    fs::path path;
    std::string relative, format, version;
    int depth = 0;
};

// The first string that stands under `key` in the opening bytes of a file, "" where there is none.
std::string text_in_head(const std::string& head, const std::string& key) {
    const std::size_t found = head.find("\"" + key + "\"");
    if (found == head.npos) return "";
    const std::size_t begin = head.find_first_not_of(" \t\r\n:", found + key.size() + 2);
    if (begin == head.npos || head[begin] != '"') return "";
    const std::size_t end = head.find('"', begin + 1);
    return end == head.npos ? "" : head.substr(begin + 1, end - begin - 1);
}

// Every artefact opens with its format: a tokenizer.json of many megabytes is never parsed.
std::string head_of(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string head(1024, '\0');
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    head.resize(static_cast<std::size_t>(file.gcount()));
    return head;
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
        const std::string head = head_of(it->path()), format = text_in_head(head, "format");
        if (format.rfind("minipuzzle.", 0) == 0)
            found.push_back({it->path(), fs::relative(it->path(), folder).string(), format,
                             text_in_head(head, "version"), it.depth()});
    }
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
        return std::tie(a.depth, a.relative) < std::tie(b.depth, b.relative);
    });
    return found;
}

std::optional<EvaluationFile> read_evaluation(const Found& file, SourceFile& source) {
    const Json json = read_json(file.path);
    ObjectReader reader(json, file.path.string());
    source.provenance = reader.header("minipuzzle.eval/1");
    if (reader.has("students") || !reader.has("loss")) return std::nullopt;
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

// The rows of a summary.json; their losses are those of the evaluations beside it.
std::vector<EvaluationFile> read_summary(const Found& file, SourceFile& source) {
    const Json json = read_json(file.path);
    ObjectReader reader(json, file.path.string());
    source.provenance = reader.header("minipuzzle.summary/1");
    std::vector<EvaluationFile> rows;
    for (const char* name : {"teacher", "pruned", "distilled"}) {
        if (!reader.has(name)) continue;
        ObjectReader row = reader.object(name);
        EvaluationFile evaluation;
        evaluation.name = name;
        evaluation.loss = row.number("test_loss");
        evaluation.params = row.integer("params");
        evaluation.memory_bytes = row.integer("memory");
        rows.push_back(evaluation);
    }
    return rows;
}

// An evaluation that the folder holds as a file says more than the summary's row of the same name.
void add_summary(ReportInputs& inputs, const std::vector<EvaluationFile>& rows) {
    for (const EvaluationFile& row : rows) {
        const auto same = std::find_if(inputs.evaluations.begin(), inputs.evaluations.end(),
                                       [&](const EvaluationFile& other) { return other.name == row.name; });
        if (same == inputs.evaluations.end()) {
            inputs.evaluations.push_back(row);
            continue;
        }
        same->params = row.params;
        same->memory_bytes = row.memory_bytes;
    }
}

// Reads one file into its place; false where the page has no place for it.
bool take(const Found& file, SourceFile& source, ReportInputs& inputs, std::vector<EvaluationFile>& summary) {
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
    if (file.format == "minipuzzle.summary/1" && summary.empty()) {
        summary = read_summary(file, source);
        return true;
    }
    return false;
}

// Where a format comes in the order of work; the count of stages for those that the page does not show.
constexpr std::string_view kStages[] = {"minipuzzle.scores/1", "minipuzzle.search/1", "minipuzzle.run/1",
                                        "minipuzzle.eval/1", "minipuzzle.summary/1"};
std::ptrdiff_t stage(const std::string& format) {
    return std::find(std::begin(kStages), std::end(kStages), format) - std::begin(kStages);
}

}  // namespace

ReportInputs read_report_inputs(const fs::path& folder) {
    ReportInputs inputs;
    inputs.folder = folder.string();
    std::vector<EvaluationFile> summary;
    for (const Found& file : find_artefacts(folder)) {
        if (stage(file.format) == std::ssize(kStages)) continue;
        SourceFile source;
        source.path = file.relative;
        source.format = file.format;
        source.version = file.version;
        if (take(file, source, inputs, summary))
            inputs.sources.push_back(source);
        else
            inputs.left_aside.push_back(file.relative);
    }
    add_summary(inputs, summary);
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
