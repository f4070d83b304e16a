#include "distill/trainer.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>

#include "distill/fault.h"
#include "distill/model_writer.h"
#include "distill/run_log.h"
#include "distill/run_plan.h"

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
            const MemoryPlan& memory)
        : backend_(backend),
          job_(job),
          options_(options),
          plan_(plan),
          memory_(memory),
          optimizer_(backend, job.student.architecture, job.student.weights->weights(), plan.optimizer),
          arena_(DeviceArena::sized(backend, memory.activations)),
          step_(backend, arena_,
                {.student = job.student.architecture,
                 .weights = job.student.weights->weights(),
                 .gradients = optimizer_.gradients(),
                 .teacher = plan.teacher,
                 .teacher_weights = plan.teacher_weights},
                plan.shape),
          rows_(job.corpus, options.seq_len, options.seed, options.isolate),
          snapshots_(state_path(job.out)) {
        state_.provenance = job.provenance;
        state_.identity = identify(backend, job, options, plan);
    }

    void run(const std::optional<RunState>& saved) {
        start(saved);
        while (state_.step < plan_.steps) {
            if (options_.control.stopping()) interrupt();
            log_->append(step());
            const bool due = options_.save_every > 0 && state_.step % options_.save_every == 0;
            if (due && state_.step < plan_.steps) save();
        }
        save();
        publish_model(outgoing_student(backend_, job_.student), scratch_path(job_.out), job_.out);
        snapshots_.finish(state_);
    }

  private:
    void start(const std::optional<RunState>& saved) {
        if (!saved) {
            log_.emplace(log_path(job_.out), RunHeader{.provenance = job_.provenance,
                                                       .device = backend_.name(),
                                                       .options = options_json(options_, plan_)});
            return;
        }
        snapshots_.load(backend_, *saved, optimizer_.parameters());
        log_.emplace(log_path(job_.out), saved->step);
        state_.step = saved_step_ = saved->step;
        state_.tokens = saved->tokens;
        state_.next_row = saved->next_row;
    }

    RunStep step() {
        const auto begin = std::chrono::steady_clock::now();
        const int64_t number = state_.step + 1;
        const PackedBatch batch = rows_.rows(state_.next_row, options_.batch);
        const int64_t targets = count_targets(batch);
        if (targets == 0)
            fail_input(
                fmt::format("step {}: none of its {} positions has a target: the documents hold one "
                            "token each",
                            number, plan_.step_tokens));
        optimizer_.zero_gradients();
        const LossSums sums = accumulate_batch(step_, batch, plan_.shape.rows, targets);
        if (!sums.finite()) fail_not_finite(number, "loss");
        const double norm = optimizer_.gradient_norm();
        if (!std::isfinite(norm)) fail_not_finite(number, "gradient norm");
        const double rate = plan_.schedule.at(number);
        optimizer_.update(number, rate);
        backend_.synchronize();

        state_.step = number;
        state_.tokens += plan_.step_tokens;
        state_.next_row += options_.batch;
        const LossMeans loss = means(sums, plan_.shape.loss, targets);
        report(loss.loss);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        return {.step = number,
                .tokens = state_.tokens,
                .loss = loss.loss,
                .kl = loss.kl,
                .ce = loss.ce,
                .feature = loss.feature,
                .lr = rate,
                .grad_norm = norm,
                .tokens_per_second = static_cast<double>(plan_.step_tokens) / seconds.count(),
                .peak_bytes = memory_.total()};
    }

    void report(double loss) const {
        options_.control.report({.what = "distilling",
                                 .done = static_cast<double>(state_.tokens),
                                 .total = static_cast<double>(plan_.steps * plan_.step_tokens),
                                 .unit = "tokens",
                                 .detail = fmt::format("loss {:.4f}", loss)});
    }

    void save() {
        if (state_.step == saved_step_) return;
        log_->flush();
        snapshots_.save(backend_, state_, optimizer_.parameters());
        saved_step_ = state_.step;
    }

    [[noreturn]] void interrupt() {
        save();
        throw Interrupted{fmt::format("step {} of {} is saved in {}; go on with --resume", state_.step,
                                      plan_.steps, job_.out.string())};
    }

    [[noreturn]] void fail_not_finite(int64_t number, const char* what) {
        const std::string kept = saved_step_ > 0 ? fmt::format("the state of step {} is kept", saved_step_)
                                                 : std::string("no state was saved before");
        throw Error(
            ErrorKind::other,
            fmt::format("step {}: the {} is not finite; first tensor at fault: {}; {}: try a smaller --lr",
                        number, what, first_fault(backend_, optimizer_, step_), kept));
    }

    Backend& backend_;
    const TrainJob& job_;
    const TrainOptions& options_;
    const RunPlan& plan_;
    const MemoryPlan& memory_;
    Optimizer optimizer_;
    DeviceArena arena_;
    TrainStep step_;
    PackedRows rows_;
    SnapshotFolder snapshots_;
    std::optional<RunLogWriter> log_;
    RunState state_;
    int64_t saved_step_ = -1;
};

// Everything is allocated by the constructor: only there can the device turn out to be too small.
std::unique_ptr<Trainer> make_trainer(Backend& backend, const TrainJob& job, const TrainOptions& options,
                                      const RunPlan& plan, const MemoryPlan& memory) {
    try {
        return std::make_unique<Trainer>(backend, job, options, plan, memory);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        throw Error(ErrorKind::out_of_memory,
                    fmt::format("{}; this run needs, with --micro-batch {} and --seq-len {}:\n{}",
                                error.what(), plan.shape.rows, plan.shape.seq_len, memory.table()));
    }
}

}  // namespace

TrainOutcome train(Backend& backend, const TrainJob& job, const TrainOptions& options) {
    const RunPlan plan = plan_run(job, options);
    const MemoryPlan memory = measure_step(backend, job.student.architecture, plan.teacher, plan.shape);
    TrainOutcome outcome{.steps = plan.steps,
                         .tokens = plan.steps * plan.step_tokens,
                         .first_loss = 0,
                         .last_loss = 0,
                         .peak_bytes = memory.total(),
                         .memory_table = memory.table()};
    if (options.dry_run) return outcome;

    const std::optional<RunState> saved =
        open_out_folder(job, options, identify(backend, job, options, plan));
    if (saved && saved->finished)
        SnapshotFolder(state_path(job.out)).finish(*saved);  // a kill may have left its tensors
    else
        make_trainer(backend, job, options, plan, memory)->run(saved);
    const RunLog log = read_run_log(log_path(job.out));
    outcome.first_loss = log.steps.front().loss;
    outcome.last_loss = log.steps.back().loss;
    return outcome;
}

}  // namespace minipuzzle::distill
