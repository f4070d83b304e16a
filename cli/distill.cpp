// minipuzzle distill
#include <fmt/format.h>

#include <filesystem>

#include "cli/bench/limits.h"
#include "cli/commands.h"
#include "cli/model_loading.h"
#include "cli/student.h"
#include "distill/trainer.h"
#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// A student cut for this run; beside what train() writes, gone once it has finished.
constexpr const char* kCutStudent = ".student";

distill::TrainOptions train_options(const DistillCommand& command, const Context& context) {
    distill::TrainOptions options{.tokens = command.tokens,
                                  .batch = command.batch,
                                  .micro_batch = command.micro_batch,
                                  .seq_len = command.seq_len,
                                  .learning_rate = command.lr,
                                  .min_lr_ratio = command.min_lr_ratio,
                                  .warmup = command.warmup,
                                  .weight_decay = command.weight_decay,
                                  .clip = command.clip,
                                  .isolate = !command.no_isolate,
                                  .save_every = command.save_every,
                                  .seed = context.seed(),
                                  .resume = command.resume,
                                  .resume_elsewhere = command.resume_elsewhere,
                                  .dry_run = command.dry_run,
                                  .bf16_moments = command.training.bf16_moments(),
                                  .deterministic = !command.training.no_deterministic,
                                  .recompute = command.training.policy(),
                                  .memory = command.training.memory,
                                  .control = context.control};
    options.loss.kl = command.kl;
    options.loss.ce = command.ce;
    options.loss.feature = command.feature;
    options.loss.temperature = command.temperature;
    options.loss.reverse_kl = command.reverse_kl;
    options.loss.top_k = command.top_k;
    options.loss.feature_kind = distill::parse_feature_kind(command.feature_kind);
    return options;
}

// The student of the command, whichever way it is given; owns what distill::Student points to, once it lies
// where it stays (see settle).
struct StudentHome {
    std::optional<Checkpoint> checkpoint;  // with --student or --plan
    std::unique_ptr<ParameterSource> source;
    distill::Student student;
    fs::path data_folder;  // where its tokenizer lies
    Json config;

    void settle() {
        if (checkpoint) {
            student.layout = &*checkpoint;
            source = checkpoint_source(*checkpoint);
        }
        student.source = source.get();
    }
};

StudentHome from_folder(const fs::path& folder, const Checkpoint* teacher) {
    StudentHome home;
    home.checkpoint.emplace(folder);
    home.data_folder = folder;
    home.config = home.checkpoint->config();
    home.student.architecture = home.checkpoint->architecture();
    home.student.origin = home.checkpoint->weights_hash(true);
    if (teacher && fs::exists(folder / kPlanFile)) {
        const StudentPlan plan = read_plan(folder / kPlanFile);
        check_plan(plan, teacher->architecture(), (folder / kPlanFile).string());
        home.student.teacher_layers = plan.kept(teacher->architecture());
    } else if (teacher && teacher->architecture().pattern() == home.student.architecture.pattern()) {
        home.student.teacher_layers = StudentPlan{}.kept(teacher->architecture());
    }
    return home;
}

// What a plan would cut, without a folder: for a dry run.
StudentHome from_plan(const StudentPlan& plan, const Checkpoint& teacher) {
    StudentHome home;
    home.data_folder = teacher.folder();
    home.config = teacher.config();
    home.student.architecture = student_architecture(teacher.architecture(), plan);
    home.student.teacher_layers = plan.kept(teacher.architecture());
    return home;
}

StudentHome from_config(const fs::path& init, uint64_t seed) {
    const fs::path file = fs::is_directory(init) ? init / "config.json" : init;
    StudentHome home;
    home.data_folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    home.config = parse_config_text(read_file(file), file.string());
    home.student.architecture = parse_architecture(home.config, file.string());
    const auto range = home.config.find("initializer_range");
    const double spread = range != home.config.end() && range->is_number() ? range->get<double>() : 0.02;
    home.source = random_source(home.student.architecture, seed, spread);
    home.student.config = home.config;
    for (const char* name :
         {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"})
        if (fs::exists(home.data_folder / name)) home.student.other_files.push_back(home.data_folder / name);
    home.student.origin = fmt::format("random, seed {}", seed);
    return home;
}

// The student; of a plan it is cut first, into `cut`, unless nothing is to be written. Everything that may be
// wrong with the input is looked at before that folder is made, the `corpus` among it.
StudentHome open_student(const DistillCommand& command, const Context& context, const Checkpoint* teacher,
                         const fs::path& cut, std::optional<Corpus>& corpus) {
    if (!command.init.empty()) return from_config(command.init, context.seed());
    if (command.plan.empty()) return from_folder(command.student, teacher);
    const ChosenPlan chosen = choose_plan(command.plan, "", "");
    check_plan(chosen.plan, teacher->architecture(), command.plan);
    corpus.emplace(
        DataReader(teacher->folder(), teacher->architecture(), teacher->config()).for_training(command.data));
    if (command.dry_run) return from_plan(chosen.plan, *teacher);
    claim_folder(command.out);
    write_student(*teacher, chosen, context.command_line, cut);
    return from_folder(cut, teacher);
}

// What a whole run takes at least: its useful FLOPs at the rate of one large product.
std::string expected_time(const distill::TrainOutcome& outcome, double product_rate) {
    const double flops = outcome.step_flops * static_cast<double>(outcome.steps);
    return fmt::format(
        "at least {:.4g} s: {:.4g} TFLOP of products at the {:.4g} TFLOP/s that one large product reached on "
        "this device just now; real steps take longer\n",
        flops / product_rate, flops * 1e-12, product_rate * 1e-12);
}

CommandResult result_of(const distill::TrainOutcome& outcome, const DistillCommand& command,
                        double product_rate) {
    Json json = {{"out", command.out},
                 {"steps", outcome.steps},
                 {"tokens", outcome.tokens},
                 {"first_loss", outcome.first_loss},
                 {"last_loss", outcome.last_loss},
                 {"skipped", outcome.skipped},
                 {"step_flops", outcome.step_flops},
                 {"peak_bytes", outcome.peak_bytes},
                 {"dry_run", command.dry_run}};
    std::string text =
        command.dry_run
            ? fmt::format("would train {} steps, {} tokens\n", outcome.steps, outcome.tokens)
            : fmt::format("{}: {} steps, {} tokens, loss {:.6f} at first, {:.6f} at last\n", command.out,
                          outcome.steps, outcome.tokens, outcome.first_loss, outcome.last_loss);
    text += fmt::format("peak memory {}\n", format_bytes(outcome.peak_bytes));
    if (outcome.skipped > 0)
        text += fmt::format("{} updates were skipped: their gradients were not finite\n", outcome.skipped);
    if (command.dry_run) text += expected_time(outcome, product_rate) + outcome.memory_table;
    return {std::move(json), text};
}

void check_options(const DistillCommand& command) {
    require_option(command, "data", !command.data.empty());
    require_option(command, "out", !command.out.empty());
    const int starts = !command.student.empty() + !command.plan.empty() + !command.init.empty();
    if (starts != 1) fail_usage("give one of --student FOLDER, --plan FILE and --init CONFIG");
    if (!command.plan.empty() && command.teacher.empty()) fail_usage("--plan needs --teacher to cut from");
    const bool about_teacher =
        command.weight_memory > 0 || command.reverse_kl > 0 || command.top_k > 0 || command.feature > 0;
    if (command.teacher.empty() && about_teacher)
        fail_usage("--weight-memory, --reverse-kl, --top-k and --feature need a --teacher");
    if (command.top_k > 0 && command.kl == 0) fail_usage("--top-k goes with --kl, whose weight is 0");
    check_distinct(command.out, {command.teacher, command.student, command.init});
}

// The folders the run reads, which must not be written to.
std::vector<fs::path> model_folders(const DistillCommand& command) {
    std::vector<fs::path> folders;
    for (const std::string& folder : {command.teacher, command.student})
        if (!folder.empty()) folders.push_back(folder);
    return folders;
}

}  // namespace

OptionTable DistillCommand::options() {
    OptionTable table;
    table.text("teacher", "FOLDER", teacher,
               "the model to learn from; none: cross-entropy on the tokens alone");
    table.text("student", "FOLDER", student, "the model to train, as prune wrote it");
    table.text("plan", "FILE.yaml", plan, "or: the student's plan, cut from the teacher first");
    table.text("init", "CONFIG", init, "or: a config.json to initialise at random");
    table.texts("data", "FILE...", data, "training rows");
    table.text("out", "FOLDER", out, "the trained model's folder");
    table.count("tokens", tokens, "predicted tokens in all", 1);
    table.number("lr", lr, "highest learning rate");
    table.number("min-lr-ratio", min_lr_ratio, "share of it at the end of the cosine");
    table.count("warmup", warmup, "steps to reach it");
    table.count("batch", batch, "rows a step", 1);
    table.count("micro-batch", micro_batch, "rows at once, gradients accumulate; 0: the whole batch");
    table.count("seq-len", seq_len, "tokens a row", 1);
    table.number("kl", kl, "weight of the forward KL to the teacher's logits");
    table.number("ce", ce, "weight of the cross-entropy");
    table.number("feature", feature, "weight of the hidden states' distance");
    table.word("feature-kind", {"cosine", "mse"}, feature_kind, "that distance");
    table.number("temperature", temperature, "of the KL");
    table.number("reverse-kl", reverse_kl, "weight of the KL from the student to the teacher");
    table.count("top-k", top_k, "the KL sees the teacher's K likeliest tokens only; 0: all");
    table.number("weight-decay", weight_decay, "AdamW's, on matrices");
    table.number("clip", clip, "largest global gradient norm; 0: none");
    add_weight_memory(table, weight_memory);
    training.add_to(table);
    table.flag("no-isolate", no_isolate, "let the documents of a row see each other");
    table.count("save-every", save_every, "steps between checkpoints; 0: at the end and when interrupted");
    table.flag("resume", resume, "go on from the last checkpoint in --out");
    table.flag("resume-elsewhere", resume_elsewhere, "resume under another version or device too");
    table.flag("dry-run", dry_run, "say what would be done and what memory it takes");
    return table;
}

CommandResult DistillCommand::run(const Context& context) {
    check_options(*this);
    const auto backend = open_backend(context);
    std::optional<Checkpoint> teacher_checkpoint;
    if (!teacher.empty()) teacher_checkpoint.emplace(teacher);

    const fs::path cut = fs::path(out) / kCutStudent;
    std::optional<Corpus> corpus;
    StudentHome home =
        open_student(*this, context, teacher_checkpoint ? &*teacher_checkpoint : nullptr, cut, corpus);
    home.settle();
    if (!corpus)
        corpus.emplace(
            DataReader(home.data_folder, home.student.architecture, home.config).for_training(data));

    distill::Teacher teacher_view;
    std::unique_ptr<ParameterSource> teacher_source;
    if (teacher_checkpoint) {
        teacher_source = checkpoint_source(*teacher_checkpoint);
        teacher_view = {.architecture = &teacher_checkpoint->architecture(),
                        .source = teacher_source.get(),
                        .weight_memory = weight_memory,
                        .origin = teacher_checkpoint->weights_hash(true)};
    }
    distill::TrainOptions options = train_options(*this, context);
    if (dry_run || backend->device() != DeviceKind::cpu)
        options.product_rate = bench::measure_product_rate(*backend);
    const distill::TrainOutcome outcome = distill::train(*backend,
                                                         {.student = home.student,
                                                          .teacher = teacher_view,
                                                          .corpus = *corpus,
                                                          .out = out,
                                                          .provenance = context.provenance(),
                                                          .inputs = model_folders(*this)},
                                                         options);
    context.console.detail(outcome.memory_table);
    if (!plan.empty() && !dry_run) fs::remove_all(cut);
    return result_of(outcome, *this, options.product_rate);
}

}  // namespace minipuzzle::cli
