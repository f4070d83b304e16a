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

using Rows = std::vector<std::pair<Role, const EvaluationFile*>>;

// In the order teacher, pruned, distilled, others.
Rows rows_of(const ReportInputs& inputs) {
    Rows rows;
    for (const EvaluationFile& evaluation : inputs.evaluations)
        rows.emplace_back(role_of(evaluation, inputs), &evaluation);
    std::stable_sort(rows.begin(), rows.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    return rows;
}

// The only evaluation of a role; null where there is none or a choice.
const EvaluationFile* only(const Rows& rows, Role role) {
    const EvaluationFile* found = nullptr;
    for (const auto& [other, evaluation] : rows) {
        if (other != role) continue;
        if (found) return nullptr;
        found = evaluation;
    }
    return found;
}

struct Size {
    std::optional<int64_t> params, memory;
};

// Of the summary, else of the search for the models that it speaks of.
Size size_of(Role role, const EvaluationFile& evaluation, const ReportInputs& inputs) {
    if (evaluation.params) return {evaluation.params, evaluation.memory_bytes};
    if (!inputs.search) return {};
    const nas::Candidate* best = best_of(*inputs.search);
    if (role == Role::teacher) return {inputs.search->teacher_params, inputs.search->teacher_memory.total()};
    if (role != Role::other && best) return {best->params, best->memory.total()};
    return {};
}

Row table_row(Role role, const EvaluationFile& evaluation, const ReportInputs& inputs, const Rows& rows) {
    const std::string dash = "\u2013";
    const auto [params, memory] = size_of(role, evaluation, inputs);
    const EvaluationFile* teacher = only(rows, Role::teacher);
    std::string excess = dash;
    if (teacher && teacher != &evaluation)
        excess =
            (evaluation.loss > teacher->loss ? "+" : "") + fixed_text(evaluation.loss - teacher->loss, 4);
    return {
        .cells = {fmt::format("<span title=\"{}\">{}</span>", escape(evaluation.model.path),
                              escape(evaluation.name)),
                  params ? count_text(*params) : dash, memory ? memory_text(*memory) : dash,
                  fmt::format("<b>{}</b>", fixed_text(evaluation.loss, 4)), excess,
                  fixed_text(std::exp(evaluation.loss), 2), fixed_or_dash(evaluation.next_token_accuracy, 4),
                  fixed_or_dash(evaluation.kl, 4), fixed_or_dash(evaluation.top1_agreement, 4),
                  evaluation.tokens > 0 ? count_text(evaluation.tokens) : dash},
        .css_class = role == Role::distilled ? "best" : ""};
}

// "Distillation closed 82 % of the gap that pruning opened."
std::string gap_words(const Rows& rows) {
    const EvaluationFile *teacher = only(rows, Role::teacher), *pruned = only(rows, Role::pruned),
                         *distilled = only(rows, Role::distilled);
    if (!teacher || !pruned || !distilled || pruned->loss <= teacher->loss) return "";
    const double share = (pruned->loss - distilled->loss) / (pruned->loss - teacher->loss);
    if (share < 0) return " Distillation made the student worse.";
    return fmt::format(" Distillation closed {:.0f} % of the gap that pruning opened.", 100 * share);
}

}  // namespace

std::string results_section(const ReportInputs& inputs) {
    if (inputs.evaluations.empty()) return "";
    const Rows list = rows_of(inputs);
    std::vector<Row> rows;
    for (const auto& [role, evaluation] : list) rows.push_back(table_row(role, *evaluation, inputs, list));
    const std::vector<Column> columns = {{"model", CellKind::text},
                                         {"params"},
                                         {"memory"},
                                         {"loss"},
                                         {"over teacher"},
                                         {"perplexity"},
                                         {"accuracy"},
                                         {"KL"},
                                         {"agreement"},
                                         {"tokens"}};
    return "<section>\n<h2>Results</h2>\n<p>Loss in nats per token on the evaluation text, accuracy of the "
           "next token; KL and "
           "top-1 agreement against the reference model where one was given." +
           gap_words(list) + "</p>\n" + table(columns, rows) + "</section>\n";
}

}  // namespace minipuzzle::report
