// The commands and their options. Each command's file holds its option table and its run().
#pragma once

#include "cli/command.h"
#include "runtime/layer_activations.h"

namespace minipuzzle::nas {
struct SearchOptions;
}

namespace minipuzzle::cli {

// What the deployment memory is computed for; shared by inspect and search.
struct WorkloadOptions {
    int64_t context = 8192, batch = 1, buffers = 0, prefill_chunk = 0, int4_group = 128;
    std::string weights = "file", kv = "bf16", ssm = "fp32", conv = "bf16";
    std::string embeddings_type, head_type, norms_type, ssm_parameters_type;  // empty: as all weights

    void add_to(OptionTable& table);
};

// Which rows of the data are measured.
struct WindowOptions {
    int64_t seq_len = 512, samples = 0;

    void add_to(OptionTable& table);
};

// Which weights a model runs with besides a folder's, and how much of the device's memory they may take.
struct WeightOptions {
    std::string arch;
    bool random_weights = false;
    int64_t weight_memory = 0;  // bytes; 0: all weights on the device
    std::string precision = "bf16";

    void add_to(OptionTable& table);
    Precision number_format() const;
};

// The one option of these that goes with any model.
void add_weight_memory(OptionTable& table, int64_t& weight_memory);

// What a training step keeps and how exact its order is; shared by distill and bench.
struct TrainingOptions {
    std::string moments = "f32", recompute = "auto";
    int64_t memory = 0;  // bytes; 0: what the device has available
    bool no_deterministic = false;

    void add_to(OptionTable& table);
    std::optional<Recompute> policy() const;  // none for "auto"
    bool bf16_moments() const { return moments == "bf16"; }
};

// What score measures of layers given others: pairs, and layers taken away one after the other.
struct ConditionalOptions {
    std::optional<std::string> pairs;  // "", a number or "all"
    std::optional<int64_t> candidates;
    int64_t samples = 0, iterative = 0, random_sets = 0;

    void add_to(OptionTable& table);
};

struct InspectCommand : Command {
    std::vector<std::string> targets;
    std::string arch, scores, plans, model, type_corrections, sort = "depth", type;
    WorkloadOptions workload;
    bool full_hash = false;

    const char* name() const override { return "inspect"; }
    const char* help() const override {
        return "Show a model, an architecture or one of our files; two of a kind: their difference";
    }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct ScoreCommand : Command {
    std::string model, out = "scores.json";
    WeightOptions weights;
    std::vector<std::string> data;
    WindowOptions windows;
    std::optional<std::vector<int64_t>> width;
    std::string width_aggregation = "mean,l2";
    ConditionalOptions conditional;
    bool until_certain = false;
    std::optional<double> tie;  // nats
    std::optional<Amount> mem_budget;
    WorkloadOptions workload;
    bool full_hash = false, resume = false, dry_run = false;

    const char* name() const override { return "score"; }
    const char* help() const override { return "Switch off each layer in turn and measure the damage"; }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

// What students may be made of, and how the best predicted one is found.
struct StudentOptions {
    std::vector<int64_t> keep, drop, ffn_widths;
    std::optional<int64_t> mamba_heads;
    std::string predictor = "auto";
    double solve_seconds = 60;

    void add_to(OptionTable& table);
    void apply(nas::SearchOptions& options) const;
};

// The best measured students of a search, distilled for a while and measured again.
struct TournamentOptions {
    int64_t students = 0, tokens = 1'000'000;
    std::vector<std::string> data;
    double lr = 1e-4;

    void add_to(OptionTable& table);
};

struct SearchCommand : Command {
    std::string model, arch, scores, out, objective, type_corrections, select_by = "loss";
    std::optional<Amount> mem_budget, max_params;
    WorkloadOptions workload;
    std::vector<std::string> fits;
    std::vector<int64_t> mamba_layers, ffn_layers, attention_layers, ffn_width;
    StudentOptions students;
    bool all = false, explain = false;
    std::vector<std::string> data;
    int64_t measure = 32, rounds = 6, weight_memory = 0;
    WindowOptions windows;
    std::string tasks, latency;
    std::optional<double> max_latency;  // seconds
    TournamentOptions tournament;

    const char* name() const override { return "search"; }
    const char* help() const override { return "Find the student that fits a budget and loses least"; }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct PruneCommand : Command {
    std::string model, plan, search, id, out;

    const char* name() const override { return "prune"; }
    const char* help() const override { return "Cut a student's weights out of its teacher's folder"; }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct DistillCommand : Command {
    std::string teacher, student, plan, init, out, feature_kind = "cosine";
    std::vector<std::string> data;
    int64_t tokens = 1'000'000, batch = 8, micro_batch = 0, seq_len = 512, warmup = 10, save_every = 0;
    double lr = 1e-4, min_lr_ratio = 0.1, weight_decay = 0.1, clip = 1.0;
    double kl = 1, ce = 0, feature = 0, temperature = 1, reverse_kl = 0;
    int64_t top_k = 0, weight_memory = 0;
    TrainingOptions training;
    bool no_isolate = false, resume = false, resume_elsewhere = false, dry_run = false;

    const char* name() const override { return "distill"; }
    const char* help() const override {
        return "Train a student on its teacher's logits, or a model on tokens";
    }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct EvalCommand : Command {
    std::string model, reference, plans, width_scores, tasks, out;
    WeightOptions weights;
    std::vector<std::string> data;
    WindowOptions windows;
    bool per_sequence = false;

    const char* name() const override { return "eval"; }
    const char* help() const override { return "Measure a model, or many students of it, on data"; }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct BenchCommand : Command {
    std::string what, match, model, distill;
    WeightOptions weights;
    int64_t prefill = 8192, batch = 1, samples = 0, seq_len = 8192;
    TrainingOptions training;
    bool sweep = false, layer_latency = false;
    std::vector<int64_t> ffn_widths;
    std::string out;
    std::optional<int64_t> decode;

    const char* name() const override { return "bench"; }
    const char* help() const override {
        return "Time a model's forward pass or training steps, or each operation against the limits of the "
               "device";
    }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct ReportCommand : Command {
    std::string folder, out;

    const char* name() const override { return "report"; }
    const char* help() const override { return "Make one page of everything a run's folder holds"; }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

struct RunCommand : Command {
    std::string recipe, model, out;
    std::vector<std::string> data;
    std::optional<Amount> mem_budget;
    bool resume = false;

    const char* name() const override { return "run"; }
    const char* help() const override {
        return "Score, search, prune, distill, evaluate and report from one recipe";
    }
    OptionTable options() override;
    CommandResult run(const Context& context) override;
};

}  // namespace minipuzzle::cli
