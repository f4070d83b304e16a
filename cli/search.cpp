// minipuzzle search
#include "nas/search.h"

#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/explain.h"
#include "cli/fits.h"
#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/opened_model.h"
#include "cli/report/page.h"
#include "cli/search_text.h"
#include "cli/student.h"
#include "cli/tournament.h"
#include "kernels/check.h"
#include "runtime/files.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// The budgets in bytes and parameters, said aloud.
void apply_budgets(const SearchCommand& command, const Architecture& teacher, const Context& context,
                   nas::SearchOptions& options) {
    if (command.mem_budget) {
        const int64_t total = nas::memory_of(teacher, options.workload).total();
        options.mem_budget = command.mem_budget->of(total);
        context.console.note(describe_budget("budget", *command.mem_budget, AmountOf::bytes, total));
    }
    if (command.max_params) {
        const int64_t total = parameters(teacher);
        options.max_params = command.max_params->of(total);
        context.console.note(describe_budget("budget", *command.max_params, AmountOf::parameters, total));
    }
    context.console.note("workload: " + describe(options.workload));
    options.fits = fits_of(command.fits, teacher, options.workload);
    for (const nas::Fit& fit : options.fits) {
        const int64_t total = nas::memory_of(teacher, nas::workload_at(options.workload, fit)).total();
        context.console.note(fmt::format("fits context {}, batch {}: {} bytes at most, the teacher takes {}",
                                         fit.context, fit.batch, nas::budget_of(options, fit), total));
    }
}

nas::SearchOptions search_options(const SearchCommand& command, const ModelOrArch& teacher,
                                  const ScoreTable& scores, const Context& context) {
    nas::SearchOptions options;
    options.workload = workload_of(command.workload, teacher.checkpoint ? &*teacher.checkpoint : nullptr);
    apply_budgets(command, teacher.architecture, context, options);
    if (!command.objective.empty()) options.objective = parse_objective(command.objective);
    if (!command.type_corrections.empty())
        options.type_corrections = type_corrections_of(
            command.type_corrections, options.objective ? *options.objective : default_objective(scores));
    options.mamba_layers.values = command.mamba_layers;
    options.ffn_layers.values = command.ffn_layers;
    options.attention_layers.values = command.attention_layers;
    options.ffn_width.values = command.ffn_width;
    command.students.apply(options);
    options.all = command.all;
    options.measure = command.measure;
    options.rounds = command.rounds;
    options.select_by = command.select_by;
    if (!command.latency.empty()) options.latency = nas::read_latency(command.latency);
    options.max_latency = command.max_latency;
    return options;
}

// What measuring needs, kept alive for as long as the search runs.
struct MeasuringBench {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<OpenedModel> model;
    Corpus corpus;
    std::vector<Window> windows;
    std::optional<TaskSet> tasks;
    std::optional<nas::Measured> teacher;  // once anything was measured
};

std::unique_ptr<MeasuringBench> open_bench(const SearchCommand& command, const Context& context) {
    auto backend = open_backend(context);
    WeightOptions weights;
    weights.weight_memory = command.weight_memory;
    auto model = std::make_unique<OpenedModel>(*backend, command.model, weights, context);
    Corpus corpus = model->reader().for_measuring(command.data);
    auto windows = choose_windows(corpus, command.windows.seq_len, command.windows.samples, context.seed());
    std::optional<TaskSet> tasks;
    if (!command.tasks.empty()) tasks = model->reader().tasks(command.tasks);
    return std::make_unique<MeasuringBench>(MeasuringBench{
        std::move(backend), std::move(model), std::move(corpus), std::move(windows), std::move(tasks), {}});
}

// What one sweep saves: students that share their first layers share the work.
void print_saving(Console& console, int64_t round, std::size_t students, const SweepResult& sweep) {
    console.note(
        fmt::format("round {}: {} students in one sweep, {:.3f} of the arithmetic of separate passes", round,
                    students, sweep.multiply_adds / sweep.separate_multiply_adds));
}

nas::Measurer make_measurer(MeasuringBench& bench, const Architecture& architecture,
                            const WidthScores* widths, const Context& context) {
    return [&bench, &architecture, widths, &context,
            round = int64_t{0}](const std::vector<StudentPlan>& plans) mutable {
        const SweepResult sweep =
            minipuzzle::sweep(*bench.backend, architecture, bench.model->weights(), plans, widths,
                              bench.corpus, bench.windows, context.control);
        print_saving(context.console, ++round, plans.size(), sweep);
        std::vector<nas::Measured> measured;
        int64_t tokens = 0;
        for (int64_t each : sweep.tokens) tokens += each;
        bench.teacher = {.loss = mean(sweep.base.loss, sweep.tokens),
                         .kl = 0,
                         .next_token_accuracy = mean(sweep.base.accuracy, sweep.tokens),
                         .top1_agreement = 1,
                         .tokens = tokens,
                         .tasks = std::nullopt};
        for (const SequenceMetrics& student : sweep.variants)
            measured.push_back({.loss = mean(student.loss, sweep.tokens),
                                .kl = mean(student.kl, sweep.tokens),
                                .next_token_accuracy = mean(student.accuracy, sweep.tokens),
                                .top1_agreement = mean(student.top1_agreement, sweep.tokens),
                                .tokens = tokens,
                                .tasks = std::nullopt});
        if (bench.tasks) {
            const TaskResults tasks = run_tasks(*bench.backend, architecture, bench.model->weights(), plans,
                                                widths, *bench.tasks, context.control);
            for (std::size_t i = 0; i < plans.size(); ++i)
                measured[i].tasks = task_measurement(tasks.variants[i]);
        }
        return measured;
    };
}

void check_options(const SearchCommand& command) {
    require_option(command, "scores", !command.scores.empty());
    require_option(command, "out", !command.out.empty());
    if (!command.mem_budget && !command.max_params && command.fits.empty() && !command.max_latency)
        fail_usage("search needs --mem-budget, --fits, --max-params or --max-latency");
    if (!command.data.empty() && command.model.empty())
        fail_usage("--data needs --model: only weights can be measured");
    if (!command.data.empty() && command.students.mamba_heads)
        fail_usage(
            "--mamba-heads goes without --data: measuring narrows FFNs only; search by prediction, prune, "
            "then eval the pruned folder");
    if (!command.tasks.empty() && command.data.empty())
        fail_usage("--tasks goes with --data: candidates are measured on both");
    if (command.select_by == "tasks" && command.tasks.empty()) fail_usage("--select-by tasks needs --tasks");
    if (command.max_latency && command.latency.empty())
        fail_usage("--max-latency needs --latency, the times that bench --layer-latency measured");
    check_tournament(command);
    check_distinct(command.out, {command.model, command.scores, command.latency});
}

// The neuron and head orders that narrower layers need.
void write_orders(const ScoreTable& scores, const SearchCommand& command) {
    if (scores.width_scores_file.empty()) return;
    const fs::path orders = fs::path(command.scores).parent_path() / scores.width_scores_file;
    write_file_atomically(fs::path(command.out) / kWidthScoresFile, read_file(orders));
}

// The folder: search.json, best.plan.yaml, report.html.
void write_search(const nas::SearchResult& result, const SearchCommand& command) {
    const fs::path folder = command.out;
    StudentPlan best = nas::find_candidate(result, "").plan;
    if (!best.width_scores.empty()) best.width_scores = kWidthScoresFile;  // narrowed, by orders that we have
    write_file_atomically(folder / "best.plan.yaml", plan_text(best));
    write_file_atomically(folder / "search.json", nas::search_json(result));
    write_file_atomically(folder / "report.html", report::report_page(report::read_report_inputs(folder)));
}

}  // namespace

OptionTable SearchCommand::options() {
    OptionTable table;
    table.text("model", "FOLDER", model, "the teacher");
    table.text("arch", "NAME", arch, "or: a published architecture, without weights");
    table.text("scores", "FILE.json", scores, "what score measured");
    table.amount("mem-budget", AmountOf::bytes, mem_budget, "the student's deployment memory at most");
    table.amount("max-params", AmountOf::parameters, max_params, "the student's parameters at most");
    workload.add_to(table);
    table.texts("fits", "CONTEXTxBATCH[:SIZE]...", fits,
                "more workloads that the student must fit; SIZE is the --mem-budget by default");
    table.choices("mamba-layers", mamba_layers, "Mamba layers to keep");
    table.choices("ffn-layers", ffn_layers, "FFN layers to keep");
    table.choices("attention-layers", attention_layers, "attention layers to keep");
    table.choices("ffn-width", ffn_width, "common FFN width (also A..B:STEP)");
    students.add_to(table);
    table.word("objective", {"loss_delta", "kl", "hidden_mse", "logit_nmse", "one_minus_cosine"}, objective,
               "what the prediction adds up; loss_delta where the scores have it");
    table.text("type-corrections", "FILE.json", type_corrections,
               "another model's scores with random sets: what many layers of a type cost beyond the sum");
    table.flag("all", all, "keep every maximal candidate, not the 100 best");
    table.flag("explain", explain, "say of each layer why it stays or goes in the best student");
    table.texts("data", "FILE...", data, "measure candidates on these rows");
    table.count("measure", measure, "how many students at most", 1);
    table.count("rounds", rounds, "in how many rounds; each learns from those before", 1);
    table.text("tasks", "FILE.jsonl", tasks, "with --data: also multiple-choice rows, as of eval --tasks");
    table.word("select-by", {"loss", "kl", "accuracy", "agreement", "tasks"}, select_by,
               "measurement that picks the best");
    tournament.add_to(table);
    table.text("latency", "FILE.json", latency, "times of the teacher's layers, as bench wrote them");
    table.seconds("max-latency", max_latency, "sum of the student's times at most");
    windows.add_to(table);
    add_weight_memory(table, weight_memory);
    table.text("out", "FOLDER", out, "gets search.json, best.plan.yaml, report.html");
    return table;
}

CommandResult SearchCommand::run(const Context& context) {
    check_options(*this);
    const ModelOrArch teacher = model_or_arch(model, arch);
    const ScoreTable table = read_scores(scores);
    check_scores(table, teacher.architecture, scores);
    const nas::SearchOptions options = search_options(*this, teacher, table, context);

    std::optional<WidthScores> widths;
    std::unique_ptr<MeasuringBench> bench;
    nas::Measurer measurer;
    if (!data.empty()) {
        widths = width_scores_beside(scores, table.width_scores_file);
        bench = open_bench(*this, context);
        measurer = make_measurer(*bench, teacher.architecture, widths ? &*widths : nullptr, context);
    }
    nas::SearchResult result = nas::search(teacher.architecture, table, options, measurer);
    result.provenance = context.provenance();
    if (bench) result.teacher_measured = bench->teacher;
    context.console.note(fmt::format("objective {}", minipuzzle::name(result.objective)));
    claim_folder(out);
    write_orders(table, *this);
    write_search(result, *this);
    if (tournament.students > 0) {
        bench->model.reset();  // its place on the device is the distillation's
        run_tournament(*this, context, {*bench->backend, bench->corpus, bench->windows, bench->tasks},
                       result);
        write_search(result, *this);
        keep_winner(out, result);
    }
    CommandResult found = {.json = Json::parse(nas::search_json(result)), .text = search_summary(result)};
    if (explain) {
        const nas::Explanation explanation = nas::explain(teacher.architecture, table, result.objective,
                                                          options, nas::find_candidate(result, "").plan);
        found.json["explain"] = explain_json(explanation);
        found.text += "\n" + explain_text(explanation);
    }
    found.text += fmt::format("wrote {}\n", out);
    return found;
}

}  // namespace minipuzzle::cli
