// minipuzzle search
#include "nas/search.h"

#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/fits.h"
#include "cli/inspect.h"
#include "cli/model_loading.h"
#include "cli/opened_model.h"
#include "cli/report/page.h"
#include "cli/student.h"
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
                                  const Context& context) {
    nas::SearchOptions options;
    options.workload = workload_of(command.workload, teacher.checkpoint ? &*teacher.checkpoint : nullptr);
    apply_budgets(command, teacher.architecture, context, options);
    if (!command.objective.empty()) options.objective = parse_objective(command.objective);
    options.mamba_layers.values = command.mamba_layers;
    options.ffn_layers.values = command.ffn_layers;
    options.attention_layers.values = command.attention_layers;
    options.ffn_width.values = command.ffn_width;
    command.students.apply(options);
    options.all = command.all;
    options.measure = command.measure;
    options.select_by = command.select_by;
    return options;
}

// What measuring needs, kept alive for as long as the search runs.
struct MeasuringBench {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<OpenedModel> model;
    Corpus corpus;
    std::vector<Window> windows;
};

std::unique_ptr<MeasuringBench> open_bench(const SearchCommand& command, const Context& context) {
    auto backend = open_backend(context);
    WeightOptions weights;
    weights.weight_memory = command.weight_memory;
    auto model = std::make_unique<OpenedModel>(*backend, command.model, weights, context);
    Corpus corpus = model->reader().for_measuring(command.data);
    auto windows = choose_windows(corpus, command.windows.seq_len, command.windows.samples, context.seed());
    return std::make_unique<MeasuringBench>(
        MeasuringBench{std::move(backend), std::move(model), std::move(corpus), std::move(windows)});
}

nas::Measurer make_measurer(const MeasuringBench& bench, const Architecture& architecture,
                            const WidthScores* widths, const RunControl& control) {
    return [&bench, &architecture, widths, control](const std::vector<StudentPlan>& plans) {
        const SweepResult sweep = minipuzzle::sweep(*bench.backend, architecture, bench.model->weights(),
                                                    plans, widths, bench.corpus, bench.windows, control);
        std::vector<nas::Measured> measured;
        int64_t tokens = 0;
        for (int64_t each : sweep.tokens) tokens += each;
        for (const SequenceMetrics& student : sweep.variants)
            measured.push_back({.loss = mean(student.loss, sweep.tokens),
                                .kl = mean(student.kl, sweep.tokens),
                                .next_token_accuracy = mean(student.accuracy, sweep.tokens),
                                .top1_agreement = mean(student.top1_agreement, sweep.tokens),
                                .tokens = tokens});
        return measured;
    };
}

void check_options(const SearchCommand& command) {
    require_option(command, "scores", !command.scores.empty());
    require_option(command, "out", !command.out.empty());
    if (!command.mem_budget && !command.max_params && command.fits.empty())
        fail_usage("search needs --mem-budget, --fits or --max-params");
    if (!command.data.empty() && command.model.empty())
        fail_usage("--data needs --model: only weights can be measured");
    if (!command.data.empty() && command.students.mamba_heads)
        fail_usage(
            "--mamba-heads with --data: students with fewer heads cannot be measured by this version; leave "
            "one out");
    check_distinct(command.out, {command.model, command.scores});
}

// The folder: search.json, best.plan.yaml, the neuron orders that widths need, report.html.
void write_search(const nas::SearchResult& result, const ScoreTable& scores, const SearchCommand& command) {
    const fs::path folder = command.out;
    claim_folder(folder);
    StudentPlan best = nas::find_candidate(result, "").plan;
    if (!scores.width_scores_file.empty()) {
        const fs::path orders = fs::path(command.scores).parent_path() / scores.width_scores_file;
        write_file_atomically(folder / kWidthScoresFile, read_file(orders));
        if (best.ffn_width || !best.ffn_widths.empty()) best.width_scores = kWidthScoresFile;
    }
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
    table.flag("all", all, "keep every maximal candidate, not the 100 best");
    table.texts("data", "FILE...", data, "measure candidates on these rows");
    table.count("measure", measure, "how many candidates, spread over compositions", 1);
    table.word("select-by", {"loss", "kl", "accuracy", "agreement"}, select_by,
               "measurement that picks the best");
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
    const nas::SearchOptions options = search_options(*this, teacher, context);

    std::optional<WidthScores> widths;
    std::unique_ptr<MeasuringBench> bench;
    nas::Measurer measurer;
    if (!data.empty()) {
        widths = width_scores_beside(scores, table.width_scores_file);
        bench = open_bench(*this, context);
        measurer = make_measurer(*bench, teacher.architecture, widths ? &*widths : nullptr, context.control);
    }
    nas::SearchResult result = nas::search(teacher.architecture, table, options, measurer);
    result.provenance = context.provenance();
    context.console.note(fmt::format("objective {}", minipuzzle::name(result.objective)));
    write_search(result, table, *this);
    return {.json = Json::parse(nas::search_json(result)),
            .text = search_summary(result) + fmt::format("wrote {}\n", out)};
}

}  // namespace minipuzzle::cli
