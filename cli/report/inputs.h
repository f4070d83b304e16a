// What a report is made of: the artefacts found in a folder.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "distill/run_log.h"
#include "nas/search.h"
#include "runtime/score_table.h"

namespace minipuzzle::report {

// An eval.json of one model (those of many students, eval --plans, have no place on the page), or what
// summary.json says of it.
struct EvaluationFile {
    std::string name;  // the file's stem: "teacher", "pruned", "distilled", ...
    ModelIdentity model;
    std::optional<int64_t> params, memory_bytes;  // from summary.json
    double loss = 0;
    std::optional<double> next_token_accuracy, kl, top1_agreement;
    int64_t tokens = 0;  // 0: unknown
};

struct NamedRun {
    std::string path;  // relative to the folder
    distill::RunLog log;
};

// Where a figure comes from: shown with the command that made it.
struct SourceFile {
    std::string path;    // relative to the folder
    std::string format;  // "minipuzzle.scores/1"
    Provenance provenance;
    std::string version;  // of the tool that wrote it
};

struct ReportInputs {
    std::string folder;
    std::optional<ScoreTable> scores;
    std::optional<nas::SearchResult> search;
    std::vector<NamedRun> runs;
    std::vector<EvaluationFile> evaluations;
    std::vector<SourceFile> sources;      // in the order score, search, distill, eval, summary
    std::vector<std::string> left_aside;  // files of a kind of which another one is shown, relative paths
};

// Looks through `folder` and two levels of sub-folders for .json and .jsonl files that open with a `format`
// of ours; the file nearest the top is taken where only one can be shown. Error bad_input: no such folder,
// nothing to show, a broken artefact.
ReportInputs read_report_inputs(const std::filesystem::path& folder);

}  // namespace minipuzzle::report
