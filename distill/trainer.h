// `distill`: train a student on the teacher's logits (and features), or on the tokens alone.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "distill/losses.h"
#include "runtime/artefact.h"
#include "runtime/checkpoint.h"
#include "runtime/layer_activations.h"
#include "runtime/run_control.h"
#include "runtime/token_source.h"
#include "runtime/weight_source.h"

namespace minipuzzle::distill {

struct TrainOptions {
    int64_t tokens = 0;       // predicted positions in all; steps = ceil(tokens / (batch * seq_len))
    int64_t batch = 8;        // rows a step
    int64_t micro_batch = 0;  // rows at once (gradient accumulation); 0: the whole batch
    int64_t seq_len = 512;
    double learning_rate = 1e-4, min_lr_ratio = 0.1;
    int64_t warmup = 10;  // steps
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double clip = 1.0;  // largest global gradient norm; 0: no clipping
    LossWeights loss;
    bool isolate = true;
    int64_t save_every = 0;  // steps; 0: at the end and when interrupted only
    uint64_t seed = 0;       // of the data order
    bool resume = false;     // go on from the state in `out`; starts from the beginning where there is none
    bool resume_elsewhere = false;       // let `resume` cross library versions, devices or instruction sets
    bool dry_run = false;                // plan only: nothing is loaded, trained or written
    bool bf16_moments = false;           // AdamW's moments in bf16, not float32
    bool deterministic = true;           // attention's backward sums in one order
    std::optional<Recompute> recompute;  // not given: the least that fits the memory
    int64_t memory = 0;                  // bytes of device memory the run may take; 0: what is available
    // FLOPs a second of a large product on this device; 0: not known, then no share of it is logged.
    double product_rate = 0;
    RunControl control;
};

// The student and what its result is written like.
struct Student {
    Architecture architecture;
    const ParameterSource* source = nullptr;  // of the values it starts from
    // The folder whose tensor names, dtypes, config and other files the result takes. Its architecture is the
    // student's own or the teacher's (a student cut in memory; `teacher_layers` then says which layer's
    // dtypes a layer takes). Null: our own names, bf16 with float32 A_log and D, and `config`.
    const Checkpoint* layout = nullptr;
    Json config;  // the result's config.json where there is no layout, as parse_config_text gives it
    std::vector<std::filesystem::path> other_files;  // copied where there is no layout: tokenizer.json, ...
    std::map<std::string, std::string> texts;  // more files of the result, name -> content (a model card)
    // Teacher layer of each student layer, ascending; empty: unknown, then no feature term is possible.
    std::vector<int64_t> teacher_layers;
    std::string origin;  // what the initial weights are ("sha256:...", "random, seed 0"): a resume must agree
};

struct Teacher {
    const Architecture* architecture = nullptr;  // null: cross-entropy alone
    const ParameterSource* source = nullptr;
    StreamFrom from = StreamFrom::source;  // where its layers wait when they are streamed
    int64_t weight_memory = 0;             // bytes its weights may take on the device; 0: all are there
    std::string origin;                    // its weights_hash; a resume must agree
};

// One run: what is trained, on what, and the folder it fills.
struct TrainJob {
    Student& student;
    Teacher teacher;
    const Corpus& corpus;
    std::filesystem::path out;
    Provenance provenance;
    std::vector<std::filesystem::path> inputs;  // model folders the run reads: `out` must be none of them
};

struct TrainOutcome {
    int64_t steps = 0, tokens = 0;  // in all (planned ones with dry_run)
    double first_loss = 0, last_loss = 0;
    int64_t skipped = 0;       // steps whose update was skipped
    double step_flops = 0;     // useful ones (step_cost.h)
    int64_t peak_bytes = 0;    // device memory: weights, teacher, masters, gradients, moments, activations
    std::string memory_table;  // the same, a line each, and what is computed once more in the backward
};

// Trains. `out` becomes the model folder: run.jsonl grows in it from the first step, the resumable state lies
// in out/.state, and the model's own files appear at the very end, config.json last, so that an interrupted
// run never looks like a model. A finished run's state keeps its description only, without tensors.
//
// Errors: usage for options that make no sense or a folder with an unfinished run without `resume`; bad_input
// for a folder that is not ours, for a teacher of another vocabulary, or a resume under other options, data,
// models or (without resume_elsewhere) device; out_of_memory with what is missing, what would help and the
// memory table; other for NaN or infinity in a loss, or in the gradients of kMostSkipped steps in a row,
// naming the step and the first tensor at fault, the last saved state kept. Throws Interrupted once state was
// saved because the control asked to stop.
//
// A step whose gradients are not finite changes nothing but the data's position; the log counts it.
inline constexpr int64_t kMostSkipped = 10;
TrainOutcome train(Backend& backend, const TrainJob& job, const TrainOptions& options);

}  // namespace minipuzzle::distill
