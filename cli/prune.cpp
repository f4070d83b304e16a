// minipuzzle prune
#include "nas/prune.h"

#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/model_loading.h"
#include "cli/student.h"
#include "cli/table.h"
#include "kernels/check.h"
#include "nas/search.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

struct CardInputs {
    const Checkpoint& teacher;
    const StudentPlan& plan;
    const nas::Candidate* candidate;  // null without a search
    std::string command;
};

std::string dropped_table(const CardInputs& in) {
    std::string text = "| layer of the teacher | type |\n|---|---|\n";
    for (int64_t layer : in.plan.drop)
        text += fmt::format("| {} | {} |\n", layer,
                            name(type_of(in.teacher.architecture().layers[narrow<std::size_t>(layer)])));
    return text;
}

std::string losses(const nas::Candidate& candidate) {
    std::string text;
    if (candidate.predicted.loss)
        text += fmt::format("- predicted loss: {:.6f} nats per token\n", *candidate.predicted.loss);
    else
        text += fmt::format("- predicted value: {:.6f}\n", candidate.predicted.value);
    if (candidate.measured)
        text += fmt::format(
            "- measured before any training: loss {:.6f}, KL to the teacher {:.6f}, next-token accuracy "
            "{:.4f}, "
            "top-1 agreement {:.4f} on {} tokens\n",
            candidate.measured->loss, candidate.measured->kl, candidate.measured->next_token_accuracy,
            candidate.measured->top1_agreement, candidate.measured->tokens);
    return text;
}

// What was dropped, the losses, the commands.
std::string model_card(const CardInputs& in) {
    const Architecture& teacher = in.teacher.architecture();
    const Architecture student = student_architecture(teacher, in.plan);
    std::string card = "---\nlibrary_name: transformers\ntags: [nemotron_h, pruned, minipuzzle]\n---\n";
    card += "# A student cut out of a larger hybrid model\n\n";
    card += fmt::format("Cut by minipuzzle {} from `{}` ({}).\n\n", version(), in.teacher.folder().string(),
                        in.teacher.weights_hash(false));
    card += "| | teacher | student |\n|---|---|---|\n";
    card += fmt::format("| pattern | `{}` | `{}` |\n", teacher.pattern(), student.pattern());
    card += fmt::format("| parameters | {} | {} |\n", parameters(teacher), parameters(student));
    card += fmt::format("| FFN width | {} | {} |\n\n", teacher.ffn_width(), student.ffn_width());
    card += fmt::format("The plan {}.\n\n", describe(in.plan, teacher));
    if (!in.plan.drop.empty()) card += dropped_table(in) + "\n";
    if (in.candidate) card += "## Losses\n\n" + losses(*in.candidate) + "\n";
    card +=
        "## Commands\n\n```\n" + in.command + "\n```\n\n`plan.yaml` beside this page is the plan itself.\n";
    return card;
}

}  // namespace

ChosenPlan choose_plan(const std::string& plan, const std::string& search, const std::string& id) {
    if (plan.empty() == search.empty()) fail_usage("give one of --plan FILE and --search FOLDER");
    if (!id.empty() && search.empty()) fail_usage("--id needs --search");
    ChosenPlan chosen;
    if (!plan.empty()) {
        chosen.plan = read_plan(plan);
        chosen.widths = width_scores_beside(plan, chosen.plan.width_scores);
        return chosen;
    }
    const fs::path file = fs::path(search) / "search.json";
    chosen.candidate = nas::find_candidate(nas::read_search(file), id);
    chosen.plan = chosen.candidate->plan;
    if (fs::exists(fs::path(search) / kWidthScoresFile)) {
        chosen.plan.width_scores = kWidthScoresFile;
        chosen.widths = width_scores_beside(file, kWidthScoresFile);
    }
    return chosen;
}

void write_student(const Checkpoint& teacher, const ChosenPlan& chosen, const std::string& command,
                   const fs::path& out) {
    const std::string card = model_card({.teacher = teacher,
                                         .plan = chosen.plan,
                                         .candidate = chosen.candidate ? &*chosen.candidate : nullptr,
                                         .command = command});
    nas::prune(teacher, chosen.plan, chosen.widths ? &*chosen.widths : nullptr, card, out);
    StudentPlan record = chosen.plan;
    record.width_scores.clear();  // its file lies elsewhere
    record.notes = "what this folder was cut by, out of " + teacher.folder().string();
    write_file_atomically(out / kPlanFile, plan_text(record));
}

OptionTable PruneCommand::options() {
    OptionTable table;
    table.text("model", "FOLDER", model, "the teacher");
    table.text("plan", "FILE.yaml", plan, "the student's plan");
    table.text("search", "FOLDER", search, "take the plan from what search wrote");
    table.text("id", "c012", id, "which candidate of the search; its best by default");
    table.text("out", "FOLDER", out, "the student's folder");
    return table;
}

CommandResult PruneCommand::run(const Context& context) {
    require_option(*this, "model", !model.empty());
    require_option(*this, "out", !out.empty());
    check_distinct(out, {model, search});
    const Checkpoint teacher(model);
    const ChosenPlan chosen = choose_plan(plan, search, id);
    check_plan(chosen.plan, teacher.architecture(), plan.empty() ? search : plan);
    context.console.note("the student " + describe(chosen.plan, teacher.architecture()));
    write_student(teacher, chosen, context.command_line, out);

    const Architecture student = student_architecture(teacher.architecture(), chosen.plan);
    Json json = {{"out", out},
                 {"pattern", student.pattern()},
                 {"params", parameters(student)},
                 {"teacher_params", parameters(teacher.architecture())},
                 {"drop", chosen.plan.drop},
                 {"ffn_width", student.ffn_width()}};
    if (chosen.plan.mamba_heads_per_group) json["mamba_heads_per_group"] = *chosen.plan.mamba_heads_per_group;
    return {.json = std::move(json),
            .text = fmt::format("{}: {} of {} parameters, {}\n", out, parameters(student),
                                parameters(teacher.architecture()), student.pattern())};
}

}  // namespace minipuzzle::cli
