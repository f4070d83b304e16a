// Multiple-choice tasks: which of a row's continuations does a model find likeliest? Tokenised and scored as
// EleutherAI's lm-evaluation-harness does it (0.4; api/model.py, TemplateLM; api/task.py, multiple_choice).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/run_control.h"
#include "runtime/token_source.h"
#include "runtime/tokenizer.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle {

// What of a model the rows need.
struct TaskContext {
    const Tokenizer* tokenizer = nullptr;  // null: Error ("needs tokenizer.json in the model folder")
    int64_t vocab = 0;
    int32_t prefix = -1;  // stands before a choice without context: bos, else eos; -1: none, Error
    int64_t longest = 0;  // tokens a sequence may have (max_position_embeddings); 0: any number
};

// A choice after its context: the model reads all tokens but the last and is asked for the last `scored`.
struct TaskSequence {
    std::vector<int32_t> tokens;
    int64_t scored = 0;
};
struct TaskRow {
    std::string task;            // "" where the row names none
    int64_t answer = 0;          // index of the right choice
    int64_t first = 0, choices;  // its sequences
    int64_t line = 0;            // in the file, from 1
};
struct TaskSet {
    DataFile file;
    std::vector<TaskRow> rows;
    std::vector<TaskSequence> sequences;
};

// JSONL rows {"context": text, "choices": [text...], "answer": index, "task": text}; other keys are the
// user's own. Tokens of a choice: white space that ends the context is moved to the continuation; then
// encode(context) and what encode(context + continuation) holds after that many tokens. An empty context is
// the prefix token, followed by the continuation without the tokenizer's template. Choices are taken as they
// are: a space between context and choice must stand in the row (the harness adds its target_delimiter).
// Errors (bad_input) with file and line: not such a row, no choices, an answer that is none of them, a choice
// without tokens of its own, a sequence longer than `longest`.
TaskSet read_tasks(const std::filesystem::path& path, const TaskContext& context);

// Shares of rows whose right choice is the likeliest, ties to the lower index (as numpy's argmax): by the sum
// of the log-likelihoods of the choice's tokens (the harness's acc), and by that sum divided by their number.
// The harness's acc_norm divides by the choice's characters instead, which depends less on the tokenizer.
// Standard errors are the sample's: sqrt(p (1 - p) / (n - 1)), the harness's mean_stderr of n zeros and ones;
// null for n = 1.
struct TaskAccuracy {
    int64_t rows = 0;
    double accuracy = 0, accuracy_per_token = 0;
    std::optional<double> standard_error, standard_error_per_token;
};
struct TaskScores {
    std::vector<double> log_likelihood;  // of each sequence, nats
    TaskAccuracy all;                    // over all rows, whatever their task
    std::map<std::string, TaskAccuracy> per_task;
};

// From the sequences' log-likelihoods.
TaskScores task_scores(const TaskSet& tasks, std::vector<double> log_likelihood);

struct TaskResults {
    TaskScores base;
    std::vector<TaskScores> variants;  // in the order of the plans
};
// Scores the full model and every plan in one shared-prefix sweep. A sequence's figures depend on it alone.
// Errors and interruption as sweep().
TaskResults run_tasks(Backend& backend, const Architecture& architecture, WeightSource weights,
                      const std::vector<StudentPlan>& plans, const WidthScores* width_scores,
                      const TaskSet& tasks, const RunControl& control);

}  // namespace minipuzzle
