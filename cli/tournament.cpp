#include "cli/tournament.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/opened_model.h"
#include "cli/student.h"
#include "nas/funnel.h"
#include "runtime/evaluate.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& out, const std::string& id) { return out / "tournament" / id; }
fs::path plan_file(const fs::path& out, const std::string& id) {
    return out / "tournament" / (id + ".plan.yaml");
}

// The K best measured; equal ones in order of prediction.
std::vector<const nas::Candidate*> entrants(const nas::SearchResult& result, int64_t count) {
    const nas::SelectBy select_by = nas::parse_select_by(result.select_by);
    std::vector<const nas::Candidate*> measured;
    for (const nas::Candidate& candidate : result.candidates)
        if (candidate.measured) measured.push_back(&candidate);
    std::stable_sort(measured.begin(), measured.end(), [&](const auto* a, const auto* b) {
        return nas::cost(*a->measured, select_by) < nas::cost(*b->measured, select_by);
    });
    measured.resize(std::min(measured.size(), static_cast<std::size_t>(count)));
    return measured;
}

// Writes the student's plan. Where an earlier search left another student of that id, that one goes.
void write_plan(const fs::path& out, const nas::Candidate& candidate) {
    StudentPlan plan = candidate.plan;
    if (plan.ffn_width || !plan.ffn_widths.empty()) plan.width_scores = std::string("../") + kWidthScoresFile;
    const std::string text = plan_text(plan);
    const fs::path file = plan_file(out, candidate.id), folder = folder_of(out, candidate.id);
    if (fs::exists(folder) && (!fs::exists(file) || read_file(file) != text)) {
        claim_folder(folder);  // Error where it is not ours
        fs::remove_all(folder);
    }
    write_file_atomically(file, text);
}

void distil(const SearchCommand& command, const Context& context, const std::string& id) {
    DistillCommand distill;
    distill.teacher = command.model;
    distill.plan = plan_file(command.out, id).string();
    distill.data = command.tournament.data;
    distill.out = folder_of(command.out, id).string();
    distill.tokens = command.tournament.tokens;
    distill.lr = command.tournament.lr;
    distill.seq_len = command.windows.seq_len;
    distill.weight_memory = command.weight_memory;
    distill.resume = true;
    distill.run(context);
}

nas::Measured measure(const fs::path& folder, const OpenedModel& teacher, const MeasuringRows& rows,
                      const Context& context) {
    const OpenedModel student(rows.backend, folder.string(), WeightOptions{}, context);
    const EvaluatedModel model{student.architecture(), student.weights()};
    const EvaluatedModel reference{teacher.architecture(), teacher.weights()};
    const Evaluation evaluation =
        evaluate(rows.backend, model, &reference, rows.corpus, rows.windows, context.control);
    nas::Measured measured{.loss = evaluation.loss,
                           .kl = evaluation.kl.value(),
                           .next_token_accuracy = evaluation.next_token_accuracy,
                           .top1_agreement = evaluation.top1_agreement.value(),
                           .tasks = std::nullopt};
    if (rows.tasks)
        measured.tasks = task_measurement(run_tasks(rows.backend, model.architecture, model.weights, {},
                                                    nullptr, *rows.tasks, context.control)
                                              .base);
    return measured;
}

}  // namespace

void TournamentOptions::add_to(OptionTable& table) {
    table.count("tournament", students, "distil this many of the best measured students and keep the best");
    table.count("tournament-tokens", tokens, "predicted tokens each of them is distilled on", 1);
    table.texts("tournament-data", "FILE...", data, "training rows for it");
    table.number("tournament-lr", lr, "its highest learning rate; all else as distill's defaults");
}

nas::TaskMeasurement task_measurement(const TaskScores& scores) {
    return {.accuracy = scores.all.accuracy, .standard_error = scores.all.standard_error};
}

void check_tournament(const SearchCommand& command) {
    if (command.tournament.students == 0) {
        if (!command.tournament.data.empty()) fail_usage("--tournament-data goes with --tournament");
        return;
    }
    if (command.data.empty()) fail_usage("--tournament needs --data: only measured students take part");
    if (command.tournament.data.empty())
        fail_usage("--tournament needs --tournament-data, rows to distil on");
}

void run_tournament(const SearchCommand& command, const Context& context, const MeasuringRows& rows,
                    nas::SearchResult& result) {
    fs::create_directories(fs::path(command.out) / "tournament");
    const std::vector<const nas::Candidate*> students = entrants(result, command.tournament.students);
    for (const nas::Candidate* student : students) {
        context.console.note(fmt::format("tournament: {} of {} students", student->id, students.size()));
        write_plan(command.out, *student);
        distil(command, context, student->id);
    }
    WeightOptions weights;
    weights.weight_memory = command.weight_memory;
    const OpenedModel teacher(rows.backend, command.model, weights, context);
    std::vector<nas::TournamentEntry> entries;
    for (const nas::Candidate* student : students)
        entries.push_back({.id = student->id,
                           .tokens = command.tournament.tokens,
                           .loss_before = student->measured->loss,
                           .after = measure(folder_of(command.out, student->id), teacher, rows, context)});
    const nas::SelectBy select_by = nas::parse_select_by(result.select_by);
    const auto winner = std::min_element(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
        return nas::cost(a.after, select_by) < nas::cost(b.after, select_by);
    });
    result.best = winner->id;
    result.tournament = std::move(entries);
}

void keep_winner(const fs::path& out, const nas::SearchResult& result) {
    for (const nas::TournamentEntry& entry : result.tournament) {
        if (entry.id == result.best) continue;
        fs::remove_all(folder_of(out, entry.id));
        fs::remove(plan_file(out, entry.id));
    }
}

}  // namespace minipuzzle::cli
