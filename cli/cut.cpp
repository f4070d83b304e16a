#include "cli/cut.h"

#include <fmt/format.h>

#include "cli/opened_model.h"
#include "importance/confidence.h"
#include "kernels/check.h"
#include "nas/search.h"

namespace minipuzzle::cli {

namespace {

// Windows, and documents, that a ranking wants at least.
constexpr int64_t kRankedAtLeast = 256;

// Scores that prefer no layer: enough to see whether any student fits.
ScoreTable equal_scores(const Architecture& architecture) {
    ScoreTable scores;
    scores.model.pattern = architecture.pattern();
    for (std::size_t l = 0; l < architecture.layers.size(); ++l)
        scores.layers.push_back(
            {.layer = static_cast<int64_t>(l), .type = type_of(architecture.layers[l]), .loss_delta = 0.0});
    return scores;
}

}  // namespace

void check_certainty_options(const ScoreCommand& command) {
    if (command.until_certain && !command.mem_budget)
        fail_usage("--until-certain needs --mem-budget: the cut is what search picks for it");
    if (!command.until_certain && command.tie) fail_usage("--tie goes with --until-certain");
    if (!command.until_certain && command.conditional.iterative == 0 && command.mem_budget)
        fail_usage("--mem-budget goes with --until-certain or --iterative");
}

std::optional<importance::UntilCertain> until_certain_options(const ScoreCommand& command,
                                                              const Context& context) {
    if (!command.until_certain) return std::nullopt;
    const ModelSource model(command.model, command.weights, context.seed());
    nas::SearchOptions options;
    options.workload = workload_of(command.workload, model.checkpoint ? &*model.checkpoint : nullptr);
    const int64_t total = nas::memory_of(model.architecture, options.workload).total();
    options.mem_budget = command.mem_budget->of(total);
    context.console.note(describe_budget("budget", *command.mem_budget, AmountOf::bytes, total));
    context.console.note("workload: " + describe(options.workload));
    importance::UntilCertain certain;
    certain.drop = [architecture = model.architecture, options](const ScoreTable& scores) {
        return nas::find_candidate(nas::search(architecture, scores, options, {}), "").plan.drop;
    };
    certain.cut = fmt::format("{} bytes; {}", options.mem_budget, describe(options.workload));
    if (command.tie) certain.tie = *command.tie;
    certain.drop(equal_scores(model.architecture));
    return certain;
}

std::string documents_line(const ScoreTable& scores, int64_t documents) {
    std::string text = fmt::format("{} windows from {} documents", scores.calibration->sequences, documents);
    if (documents < importance::kFewestDocuments)
        text += fmt::format("; no intervals: they take {} documents at least", importance::kFewestDocuments);
    return text + "\n";
}

std::string ranking_warning(const ScoreTable& scores, int64_t documents) {
    const int64_t windows = scores.calibration->sequences;
    if (scores.certainty || (windows >= kRankedAtLeast && documents >= kRankedAtLeast)) return "";
    return fmt::format("{} windows from {} documents: rankings want {} of each", windows, documents,
                       kRankedAtLeast);
}

}  // namespace minipuzzle::cli
