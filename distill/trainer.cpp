#include "distill/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "distill/fault.h"
#include "distill/model_writer.h"
#include "distill/run_log.h"
#include "distill/run_plan.h"
#include "distill/teacher_weights.h"

namespace minipuzzle::distill {
namespace {

namespace fs = std::filesystem;

// Where things lie in the output folder.
fs::path log_path(const fs::path& out) { return out / "run.jsonl"; }
fs::path state_path(const fs::path& out) { return out / ".state"; }
fs::path scratch_path(const fs::path& out) { return state_path(out) / "model"; }

void check_out_folder(const TrainJob& job) {
    for (const fs::path& input : job.inputs) {
        std::error_code ignored;  // a folder that does not exist yet is no input
        if (fs::equivalent(input, job.out, ignored))
            fail_usage(fmt::format("--out {}: the run reads its models there; name another folder",
                                   job.out.string()));
    }
}

// Claims the folder and settles where the run begins: the saved state with `resume`, else nothing.
std::optional<RunState> open_out_folder(const TrainJob& job, const TrainOptions& options,
                                        const RunIdentity& identity) {
    check_out_folder(job);
    claim_folder(job.out);
    SnapshotFolder snapshots(state_path(job.out));
    std::optional<RunState> state = snapshots.read();
    if (state && options.resume) {
        check_same_run(state->identity, identity, options.resume_elsewhere, job.out.string());
        return state;
    }
    if (state && !state->finished)
        fail_usage(
            fmt::format("{}: holds a run that stopped after step {}: go on with --resume, or remove the "
                        "folder to start anew",
                        job.out.string(), state->step));
    retract_model(job.out);
    snapshots.remove();
    return std::nullopt;
}

// The loop and what it works on, everything allocated before the first step.
class Trainer {
  public:
    Trainer(Backend& backend, const TrainJob& job, const TrainOptions& options, const RunPlan& plan,
            const MemoryPlan& memory, const PackedRows& rows)
        : backend_(backend),
          job_(job),
          options_(options),
          plan_(plan),
          memory_(memory),
          weights_(backend, job.student.architecture, false),
          arena_(DeviceArena::sized(backend, memory.activations)),
          rows_(rows),
          snapshots_(state_path(job.out)) {
        backend.reserve_scratch(memory.scratch);
        if (plan.teacher) teacher_.emplace(backend, *plan.teacher, job.teacher);
        RunModels models{.student = job.student.architecture,
                         .weights = weights_.weights(),
                         .teacher = plan.teacher,
                         .teacher_weights = {}};
        if (teacher_) models.teacher_weights = teacher_->source();
        step_.emplace(backend, arena_, models, plan.shape, plan.optimizer);
        state_.provenance = job.provenance;
        state_.identity = identify(backend, job, options, plan);
    }

    void run(const std::optional<RunState>& saved) {
        start(saved);
        step_->feed().start([this](int64_t step) { return rows_of(step); }, state_.step + 1, plan_.steps);
        while (state_.step < plan_.steps) {
            if (options_.control.stopping()) interrupt();
            log_->append(step());
            if (state_.skipped_in_a_row == kMostSkipped) fail_skipping();
            const bool due = options_.save_every > 0 && state_.step % options_.save_every == 0;
            if (due && state_.step < plan_.steps) save();
        }
        save();
        publish_model(outgoing_student(backend_, job_.student, parameters()), scratch_path(job_.out),
                      job_.out);
        snapshots_.finish(state_);
    }

  private:
    const std::vector<TrainedParameter>& parameters() { return step_->optimizer().parameters(); }

    void start(const std::optional<RunState>& saved) {
        if (!saved) {
            log_.emplace(log_path(job_.out), RunHeader{.provenance = job_.provenance,
                                                       .device = backend_.name(),
                                                       .options = options_json(options_, plan_)});
            step_->optimizer().fill(*job_.student.source);
            return;
        }
        snapshots_.load(backend_, *saved, parameters());
        log_.emplace(log_path(job_.out), saved->step);
        const RunState here = std::move(state_);
        state_ = *saved;
        state_.provenance = here.provenance;
        state_.identity = here.identity;
        saved_step_ = saved->step;
    }

    // Called from the feed's thread.
    PackedBatch rows_of(int64_t step) const {
        PackedBatch batch = rows_.rows((step - 1) * options_.batch, options_.batch);
        const auto has_target = [](int32_t target) { return target >= 0; };
        if (std::none_of(batch.targets.begin(), batch.targets.end(), has_target))
            fail_input(
                fmt::format("step {}: none of its {} positions has a target: the documents hold one "
                            "token each",
                            step, plan_.step_tokens));
        return batch;
    }

    RunStep step() {
        const auto begin = std::chrono::steady_clock::now();
        const int64_t number = state_.step + 1;
        const DeviceBatch& batch = step_->feed().next();
        const double rate = plan_.schedule.at(number);
        const StepResult result = step_->run(batch, number - state_.skipped, rate);
        if (!result.sums.finite()) {
            step_->rerun_to_fault(batch);
            fail_not_finite(fmt::format("step {}: the loss is not finite", number));
        }
        const bool skipped = !std::isfinite(result.gradient_norm);
        state_.skipped += skipped;
        state_.skipped_in_a_row = skipped ? state_.skipped_in_a_row + 1 : 0;
        state_.step = number;
        state_.tokens += plan_.step_tokens;
        state_.next_row += options_.batch;
        const LossMeans loss = means(result.sums, plan_.shape.loss, batch.target_count);
        report(loss.loss);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
        const double flops = plan_.step_flops / elapsed.count();
        RunStep line{.step = number,
                     .tokens = state_.tokens,
                     .loss = loss.loss,
                     .kl = loss.kl,
                     .ce = loss.ce,
                     .feature = loss.feature,
                     .reverse_kl = loss.reverse_kl,
                     .lr = rate,
                     .grad_norm = {},
                     .skipped = state_.skipped,
                     .tokens_per_second = static_cast<double>(plan_.step_tokens) / elapsed.count(),
                     .tflops = flops * 1e-12,
                     .limit_share = {},
                     .peak_bytes = memory_.total()};
        if (!skipped) line.grad_norm = result.gradient_norm;
        if (options_.product_rate > 0) line.limit_share = flops / options_.product_rate;
        return line;
    }

    void report(double loss) const {
        std::string detail = fmt::format("loss {:.4f}", loss);
        if (state_.skipped > 0) detail += fmt::format(", {} updates skipped", state_.skipped);
        options_.control.report({.what = "distilling",
                                 .done = static_cast<double>(state_.tokens),
                                 .total = static_cast<double>(plan_.steps * plan_.step_tokens),
                                 .unit = "tokens",
                                 .detail = detail});
    }

    void save() {
        if (state_.step == saved_step_) return;
        log_->flush();
        snapshots_.save(backend_, state_, parameters());
        saved_step_ = state_.step;
    }

    [[noreturn]] void interrupt() {
        save();
        throw Interrupted{fmt::format("step {} of {} is saved in {}; go on with --resume", state_.step,
                                      plan_.steps, job_.out.string())};
    }

    [[noreturn]] void fail_skipping() {
        fail_not_finite(
            fmt::format("step {}: {} updates in a row were skipped, their gradients are not finite",
                        state_.step, kMostSkipped));
    }

    [[noreturn]] void fail_not_finite(const std::string& what) {
        const std::string kept = saved_step_ > 0 ? fmt::format("the state of step {} is kept", saved_step_)
                                                 : std::string("no state was saved before");
        throw Error(ErrorKind::other,
                    fmt::format("{}; first tensor at fault: {}; {}: try a smaller --lr", what,
                                first_fault(backend_, step_->optimizer(), step_->micro_step()), kept));
    }

    Backend& backend_;
    const TrainJob& job_;
    const TrainOptions& options_;
    const RunPlan& plan_;
    const MemoryPlan& memory_;
    WeightMemory weights_;
    DeviceArena arena_;
    std::optional<TeacherWeights> teacher_;
    const PackedRows& rows_;  // read by the feed on its thread
    std::optional<WholeStep> step_;
    SnapshotFolder snapshots_;
    std::optional<RunLogWriter> log_;
    RunState state_;
    int64_t saved_step_ = -1;
};

// Everything is allocated by the constructor: only there can the device turn out to be too small.
std::unique_ptr<Trainer> make_trainer(Backend& backend, const TrainJob& job, const TrainOptions& options,
                                      const RunPlan& plan, const MemoryPlan& memory, const PackedRows& rows) {
    try {
        return std::make_unique<Trainer>(backend, job, options, plan, memory, rows);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        throw Error(ErrorKind::out_of_memory,
                    fmt::format("{}; this run needs, with --micro-batch {} and --seq-len {}:\n{}",
                                error.what(), plan.shape.rows, plan.shape.seq_len, memory.table()));
    }
}

}  // namespace

TrainOutcome train(Backend& backend, const TrainJob& job, const TrainOptions& options) {
    RunPlan plan = plan_run(job, options);
    const PackedRows rows(job.corpus, options.seq_len, options.seed, options.isolate);
    const MemoryPlan memory = settle_memory(backend, job, options, plan);
    TrainOutcome outcome{.steps = plan.steps,
                         .tokens = plan.steps * plan.step_tokens,
                         .step_flops = plan.step_flops,
                         .peak_bytes = memory.total(),
                         .memory_table = memory.table()};
    if (options.dry_run) return outcome;

    const std::optional<RunState> saved =
        open_out_folder(job, options, identify(backend, job, options, plan));
    if (saved && saved->finished)
        SnapshotFolder(state_path(job.out)).finish(*saved);  // a kill may have left its tensors
    else
        make_trainer(backend, job, options, plan, memory, rows)->run(saved);
    const RunLog log = read_run_log(log_path(job.out));
    outcome.first_loss = log.steps.front().loss;
    outcome.last_loss = log.steps.back().loss;
    outcome.skipped = log.steps.back().skipped;
    return outcome;
}

}  // namespace minipuzzle::distill
