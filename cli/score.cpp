// minipuzzle score
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/cut.h"
#include "cli/inspect.h"
#include "cli/opened_model.h"
#include "cli/phases.h"
#include "importance/ablation.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// The files that one `score` writes: scores.json, scores.csv, scores.width.safetensors, and its state.
struct ScoreFiles {
    fs::path json, csv, width, state;

    explicit ScoreFiles(const fs::path& out)
        : json(out),
          csv(fs::path(out).replace_extension(".csv")),
          width(fs::path(out).replace_extension(".width.safetensors")),
          state(out.string() + ".state") {}

    // Siblings are ours where the JSON they belong to is.
    void check() const {
        if (json.extension() != ".json") fail_usage("--out: " + json.string() + " does not end in .json");
        check_output_file(json);
        if (fs::exists(json)) return;
        for (const fs::path& sibling : {csv, width})
            if (fs::exists(sibling))
                fail_input(sibling.string() + " exists and is not ours: choose another --out or remove it");
    }
};

// What `work` returns. Where it fails on its input, the state it began is taken away again; what an
// interrupted run saved stays.
template <class Work>
auto without_leftover(const fs::path& state, Work work) {
    const bool was_there = fs::exists(state);
    try {
        return work();
    } catch (const Error&) {
        if (!was_there) fs::remove(state);
        throw;
    }
}

std::string sharing_line(const importance::ScoreOutcome& outcome) {
    return fmt::format("{:.4g} multiply-adds, {:.3f} of the {:.4g} that separate passes take",
                       outcome.multiply_adds, outcome.multiply_adds / outcome.separate_multiply_adds,
                       outcome.separate_multiply_adds);
}

}  // namespace

OptionTable ScoreCommand::options() {
    OptionTable table;
    table.text("model", "FOLDER", model, "the model to score");
    weights.add_to(table);
    table.texts("data", "FILE...", data, "calibration rows");
    table.text("out", "FILE.json", out,
               "the scores; a .csv and, with --width, a .width.safetensors stand beside it");
    windows.add_to(table);
    table.optional_choices("width", width,
                           "rank FFN neurons and measure the model at these FFN widths [8 steps]");
    table.flag("until-certain", until_certain,
               "measure a layer only until it is certain on which side of the cut it lies: the layers that "
               "search drops for --mem-budget");
    table.number("tie", tie, "differences under so many nats count as ties [0.002]");
    table.amount("mem-budget", AmountOf::bytes, mem_budget,
                 "the student's deployment memory at most, for --until-certain");
    workload.add_to(table);
    table.flag("full-hash", full_hash, "hash the weights' content, not only their headers and sizes");
    table.flag("resume", resume, "go on where an interrupted run stopped");
    return table;
}

CommandResult ScoreCommand::run(const Context& context) {
    require_option(*this, "model", !model.empty() || !weights.arch.empty());
    require_option(*this, "data", !data.empty());
    check_certainty_options(*this);
    const ScoreFiles files(out);
    files.check();
    const std::optional<importance::UntilCertain> certain = until_certain_options(*this, context);

    Phases phases(context.console);
    phases.begin("context");
    const auto backend = open_backend(context);
    phases.begin("load");
    const OpenedModel loaded(*backend, model, weights, context);
    const Corpus corpus = loaded.reader().for_measuring(data);
    const ModelIdentity identity = loaded.identity(full_hash);
    const importance::ScoreOptions options{.seq_len = windows.seq_len,
                                           .samples = windows.samples,
                                           .seed = context.seed(),
                                           .width = width.has_value(),
                                           .widths = width.value_or(std::vector<int64_t>{}),
                                           .until_certain = certain,
                                           .state = files.state,
                                           .resume = resume,
                                           .control = context.control};
    phases.begin("compute");
    importance::ScoreOutcome outcome = without_leftover(files.state, [&] {
        return importance::score(*backend, loaded.architecture(), loaded.weights(), identity, corpus,
                                 options);
    });

    phases.finish();

    ScoreTable& scores = outcome.table;
    scores.provenance = context.provenance();
    scores.model = identity;
    if (width) {
        write_width_scores(files.width, outcome.width);
        scores.width_scores_file = files.width.filename().string();
        scores.width_scores_hash = sha256_of_file(files.width);
    }
    write_file_atomically(files.csv, scores_csv(scores));
    const std::string text = scores_json(scores);
    write_file_atomically(files.json, text);
    fs::remove(files.state);

    const std::string warning = ranking_warning(scores, outcome.documents);
    if (!warning.empty()) context.console.note(warning);
    Json json = Json::parse(text);
    return {.json = std::move(json),
            .text = scores_summary(scores) + certainty_summary(scores, outcome.documents) +
                    sharing_line(outcome) + "\nwrote " + files.json.string() + "\n"};
}

}  // namespace minipuzzle::cli
