// `distill`: train a student on the teacher's logits (and features), or on the tokens alone.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "distill/losses.h"
#include "runtime/artefact.h"
#include "runtime/checkpoint.h"
#include "runtime/run_control.h"
#include "runtime/token_source.h"
#include "runtime/weights.h"

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
    bool resume_elsewhere = false;  // let `resume` cross library versions, devices or instruction sets
    bool dry_run = false;           // plan only: nothing is trained or written
    RunControl control;
};

// The student and what its result is written like.
struct Student {
    Architecture architecture;
    WeightMemory* weights = nullptr;  // trained in place
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
    const Weights* weights = nullptr;
    std::string origin;  // its weights_hash; a resume must agree
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
    int64_t peak_bytes = 0;    // device memory: weights, teacher, gradients, moments, activations
    std::string memory_table;  // the same, a line each
};

// Trains. `out` becomes the model folder: run.jsonl grows in it from the first step, the resumable state lies
// in out/.state, and the model's own files appear at the very end, config.json last, so that an interrupted
// run never looks like a model. A finished run's state keeps its description only, without tensors.
//
// Errors: usage for options that make no sense or a folder with an unfinished run without `resume`; bad_input
// for a folder that is not ours, for a teacher of another vocabulary, or a resume under other options, data,
// models or (without resume_elsewhere) device; out_of_memory with the memory table; other for NaN or
// infinity, naming the step and the first tensor at fault, the last saved state kept. Throws Interrupted once
// state was saved because the control asked to stop.
TrainOutcome train(Backend& backend, const TrainJob& job, const TrainOptions& options);

}  // namespace minipuzzle::distill
