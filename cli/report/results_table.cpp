#include "cli/report/results_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/report/html.h"
#include "cli/report/words.h"

namespace minipuzzle::report {
namespace {

enum class Role { teacher, pruned, distilled, other };

// By the name of the file or, where that says nothing, by the architecture.
Role role_of(const EvaluationFile& evaluation, const ReportInputs& inputs) {
    const auto named = [&](const char* word) { return evaluation.name.find(word) != std::string::npos; };
    if (named("teacher")) return Role::teacher;
    if (named("distill")) return Role::distilled;
    if (named("prune") || named("student")) return Role::pruned;
    const bool same = inputs.scores && !evaluation.model.arch_hash.empty() &&
                      evaluation.model.arch_hash == inputs.scores->model.arch_hash;
    return same ? Role::teacher : Role::other;
}

}  // namespace

std::string results_section(const ReportInputs& inputs) {
    if (inputs.evaluations.empty()) return "";
    std::vector<std::pair<Role, const EvaluationFile*>> list;
    for (const EvaluationFile& evaluation : inputs.evaluations)
        list.emplace_back(role_of(evaluation, inputs), &evaluation);
    std::stable_sort(list.begin(), list.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    const nas::Candidate* best = inputs.search ? best_of(*inputs.search) : nullptr;
    std::vector<Row> rows;
    for (const auto& [role, evaluation] : list) {
        std::string params = "\u2013", memory = "\u2013";
        if (role == Role::teacher && inputs.search) {
            params = count_text(inputs.search->teacher_params);
            memory = memory_text(inputs.search->teacher_memory.total());
        } else if ((role == Role::pruned || role == Role::distilled) && best) {
            params = count_text(best->params);
            memory = memory_text(best->memory.total());
        }
        rows.push_back(
            {.cells = {fmt::format("<span title=\"{}\">{}</span>", escape(evaluation->model.path),
                                   escape(evaluation->name)),
                       params, memory, fmt::format("<b>{}</b>", fixed_text(evaluation->loss, 4)),
                       fixed_text(std::exp(evaluation->loss), 2),
                       fixed_or_dash(evaluation->next_token_accuracy, 4), fixed_or_dash(evaluation->kl, 4),
                       fixed_or_dash(evaluation->top1_agreement, 4), count_text(evaluation->tokens)},
             .css_class = role == Role::distilled ? "best" : ""});
    }
    const std::vector<Column> columns = {
        {"model", CellKind::text}, {"params"}, {"memory"},          {"loss"},  {"perplexity"},
        {"next-token accuracy"},   {"KL"},     {"top-1 agreement"}, {"tokens"}};
    return "<section>\n<h2>Results</h2>\n<p>Loss in nats per token on the evaluation text; KL and agreement "
           "against the "
           "reference model where one was given.</p>\n" +
           table(columns, rows) + "</section>\n";
}

}  // namespace minipuzzle::report
