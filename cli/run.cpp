// minipuzzle run: score, search, prune, distill, evaluate, report.
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/model_loading.h"
#include "cli/recipe.h"
#include "cli/split.h"
#include "cli/steps.h"
#include "kernels/check.h"
#include "nas/search.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// Where everything lies inside the run's folder.
struct Layout {
    fs::path out;
    std::string recipe() const { return (out / "recipe.yaml").string(); }
    std::string scores() const { return (out / "scores.json").string(); }
    std::string csv() const { return (out / "scores.csv").string(); }
    std::string width() const { return (out / "scores.width.safetensors").string(); }
    std::string score_state() const { return scores() + ".state"; }
    std::string search() const { return (out / "search").string(); }
    std::string student() const { return (out / "student").string(); }
    std::string distilled() const { return (out / "distilled").string(); }
    std::string evaluation(const std::string& of) const { return (out / "eval" / (of + ".json")).string(); }
    std::string report() const { return (out / "report.html").string(); }
    std::string summary() const { return (out / "summary.json").string(); }
};

// Runs commands one after another, each only where it is not finished already.
class Pipeline {
  public:
    Pipeline(const Recipe& recipe, const Layout& layout, const Context& context, bool resume)
        : globals_(context.globals), context_(context), log_(layout.out), resume_(resume) {
        if (!globals_.seed) globals_.seed = recipe.seed;
    }

    // `resume_flag` is the command's own, null where it has none.
    void step(const std::string& name, Command& command, const StepFiles& files,
              bool* resume_flag = nullptr) {
        const Json options = {{"options", command.options().to_json()}, {"seed", globals_.seed.value_or(0)}};
        const std::string key = StepLog::key_of(options, files);
        if (log_.finished(name, key, files)) {
            context_.console.note(name + ": done already");
            return;
        }
        context_.console.note(name);
        if (resume_flag && resume_ && log_.begun(name, key))
            *resume_flag = true;
        else
            for (const fs::path& output : files.outputs) fs::remove_all(output);
        log_.begin(name, key);
        const Context step_context{.globals = globals_,
                                   .command_line = command_line_of(command, globals_),
                                   .console = context_.console,
                                   .control = context_.control};
        command.run(step_context);
        log_.finish(name, key, files);
    }

  private:
    GlobalOptions globals_;
    const Context& context_;
    StepLog log_;
    bool resume_;
};

std::vector<fs::path> all_of(const std::vector<std::string>& files, const std::vector<std::string>& more) {
    std::vector<fs::path> paths(files.begin(), files.end());
    paths.insert(paths.end(), more.begin(), more.end());
    return paths;
}

void compress(Pipeline& pipeline, const Recipe& recipe, const Layout& at) {
    ScoreCommand score = score_step(recipe, at.recipe());
    score.model = recipe.model;
    score.data = recipe.data.calib;
    score.out = at.scores();
    pipeline.step("score", score,
                  {all_of(recipe.data.calib, {recipe.model}), {at.scores(), at.csv(), at.width()}},
                  &score.resume);

    SearchCommand search = search_step(recipe, at.recipe());
    search.model = recipe.model;
    search.scores = at.scores();
    search.data = recipe.data.select;
    search.out = at.search();
    pipeline.step("search", search,
                  {all_of(recipe.data.select, {recipe.model, at.scores(), at.width()}), {at.search()}});

    PruneCommand prune;
    prune.model = recipe.model;
    prune.search = at.search();
    prune.out = at.student();
    pipeline.step("prune", prune, {{recipe.model, at.search()}, {at.student()}});

    DistillCommand distill = distill_step(recipe, at.recipe());
    distill.teacher = recipe.model;
    distill.student = at.student();
    distill.data = recipe.data.train;
    distill.out = at.distilled();
    pipeline.step("distill", distill,
                  {all_of(recipe.data.train, {recipe.model, at.student()}), {at.distilled()}},
                  &distill.resume);
}

void evaluate_on_test(Pipeline& pipeline, const Recipe& recipe, const Layout& at) {
    const std::pair<const char*, std::string> models[] = {
        {"teacher", recipe.model}, {"pruned", at.student()}, {"distilled", at.distilled()}};
    fs::create_directories(at.out / "eval");
    for (const auto& [name, folder] : models) {
        EvalCommand eval = eval_step(recipe, at.recipe());
        eval.model = folder;
        if (folder != recipe.model) eval.reference = recipe.model;
        eval.data = recipe.data.test;
        eval.out = at.evaluation(name);
        pipeline.step(fmt::format("eval {}", name), eval,
                      {all_of(recipe.data.test, {folder, recipe.model}), {eval.out}});
    }
}

Json summary_json(const Recipe& recipe, const Layout& at, const Provenance& provenance) {
    Json summary = artefact_header("minipuzzle.summary/1", provenance);
    const nas::SearchResult search = nas::read_search(fs::path(at.search()) / "search.json");
    const nas::Candidate& best = nas::find_candidate(search, "");
    const auto row = [&at](const char* name, int64_t params, const nas::Memory& memory) -> Json {
        return {{"params", params},
                {"memory", memory.total()},
                {"test_loss", read_json(at.evaluation(name))["loss"]}};
    };
    summary["model"] = recipe.model;
    summary["budget"] = search.budget_bytes < 0 ? Json() : Json(search.budget_bytes);
    summary["teacher"] = row("teacher", search.teacher_params, search.teacher_memory);
    summary["pruned"] = row("pruned", best.params, best.memory);
    summary["distilled"] = row("distilled", best.params, best.memory);
    return summary;
}

std::string summary_text(const Json& summary, const Layout& at) {
    const auto loss = [&summary](const char* name) { return summary[name]["test_loss"].get<double>(); };
    const double memory =
        summary["distilled"]["memory"].get<double>() / summary["teacher"]["memory"].get<double>();
    std::string text;
    text += fmt::format("report     {}\nstudent    {}\npruned     {}\nsummary    {}\n", at.report(),
                        at.distilled(), at.student(), at.summary());
    text += fmt::format("memory     {:.1f} % of the teacher's\n", memory * 100);
    text += fmt::format("test loss  teacher {:.4f}, pruned {:.4f}, distilled {:.4f}\n", loss("teacher"),
                        loss("pruned"), loss("distilled"));
    const double gap = loss("pruned") - loss("teacher");
    if (gap > 0)
        text += fmt::format("distillation closed {:.0f} % of the gap that pruning opened\n",
                            100 * (loss("pruned") - loss("distilled")) / gap);
    return text;
}

// The recipe of `run --model M --data F --mem-budget B --out DIR`: the data split, every choice written down.
Recipe recipe_of(const RunCommand& command, const DataReader& reader, uint64_t seed) {
    Recipe recipe;
    recipe.model = command.model;
    recipe.out = command.out;
    recipe.seed = seed;
    recipe.data = split_documents(command.data, reader, seed, command.out);
    recipe.score = {{"seq-len", 512}, {"samples", 64}};
    recipe.search = {{"mem-budget", command.mem_budget->text()}, {"measure", 32}, {"samples", 64}};
    recipe.distill = {{"tokens", "1M"}, {"seq-len", 512}, {"batch", 8}, {"lr", 5e-4}, {"save-every", 50}};
    recipe.eval = {{"seq-len", 512}};
    return recipe;
}

void check_options(const RunCommand& command) {
    const bool form =
        !command.model.empty() || !command.data.empty() || command.mem_budget || !command.out.empty();
    if (command.recipe.empty() == !form)
        fail_usage("give a RECIPE.yaml, or --model, --data, --mem-budget and --out");
    if (!form) return;
    require_option(command, "model", !command.model.empty());
    require_option(command, "data", !command.data.empty());
    require_option(command, "mem-budget", command.mem_budget.has_value());
    require_option(command, "out", !command.out.empty());
}

}  // namespace

OptionTable RunCommand::options() {
    OptionTable table;
    table.positional("recipe", recipe, "recipe.yaml; its paths are relative to where the program runs");
    table.text("model", "FOLDER", model, "without a recipe: the teacher");
    table.texts("data", "FILE...", data,
                "without a recipe: rows, split by document into calib, select, train, test");
    table.amount("mem-budget", AmountOf::bytes, mem_budget, "without a recipe: the student's memory at most");
    table.text("out", "FOLDER", out, "without a recipe: where everything goes; its recipe is written there");
    table.flag("resume", resume,
               "go on inside the step that was interrupted; finished steps are skipped anyway");
    return table;
}

CommandResult RunCommand::run(const Context& context) {
    check_options(*this);
    Recipe plan;
    if (!recipe.empty()) plan = read_recipe(recipe);
    const Checkpoint teacher(recipe.empty() ? model : plan.model);
    const DataReader reader(teacher.folder(), teacher.architecture(), teacher.config());
    if (recipe.empty()) plan = recipe_of(*this, reader, context.seed());
    check_disjoint(plan.data, reader);
    const Layout layout{plan.out};
    claim_folder(layout.out);
    write_file_atomically(layout.recipe(), recipe_text(plan));

    Pipeline pipeline(plan, layout, context, resume);
    compress(pipeline, plan, layout);
    evaluate_on_test(pipeline, plan, layout);
    const Provenance provenance{context.command_line, plan.seed.value_or(context.seed())};
    const Json summary = summary_json(plan, layout, provenance);
    write_file_atomically(layout.summary(), pretty(summary));
    ReportCommand report;
    report.folder = layout.out.string();
    report.out = layout.report();
    report.run(context);
    return {.json = summary, .text = summary_text(summary, layout)};
}

}  // namespace minipuzzle::cli
