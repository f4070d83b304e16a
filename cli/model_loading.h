// What commands load: backends, models, data, plans, and what they may write over.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/commands.h"
#include "kernels/backend.h"
#include "nas/memory_model.h"
#include "nas/type_corrections.h"
#include "runtime/checkpoint.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"
#include "runtime/tasks.h"
#include "runtime/token_source.h"
#include "runtime/tokenizer.h"

namespace minipuzzle::cli {

// The device that --device and --threads ask for; says which it took where the user left it open.
std::unique_ptr<Backend> open_backend(const Context& context);

// The tokenizer of a folder (none where it has no tokenizer.json, or there is no folder), with what else
// Corpus needs.
class DataReader {
  public:
    DataReader(const std::filesystem::path& folder, const Architecture& architecture, const Json& config);
    // Rows to measure on, or to train on (text rows then end with eos).
    Corpus for_measuring(const std::vector<std::string>& paths) const {
        return Corpus(paths, context(), false);
    }
    Corpus for_training(const std::vector<std::string>& paths) const {
        return Corpus(paths, context(), true);
    }
    // Rows of multiple choice.
    TaskSet tasks(const std::filesystem::path& path) const;

  private:
    TokenizerContext context() const;
    std::optional<Tokenizer> tokenizer_;
    int64_t vocab_, longest_ = 0;
    int32_t eos_ = -1, bos_ = -1;
};

// --model FOLDER or --arch NAME, exactly one of the two.
struct ModelOrArch {
    Architecture architecture;
    std::optional<Checkpoint> checkpoint;  // with --model
    std::string label;                     // the folder or the name
};
ModelOrArch model_or_arch(const std::string& model, const std::string& arch);

// The workload of the options. Weights "file": as the checkpoint stores them, bf16 where there is none.
nas::Workload workload_of(const WorkloadOptions& options, const Checkpoint* checkpoint);
// "weights bf16, kv bf16, ssm fp32, conv bf16, buffers 0 bytes, batch 1, context 8192".
std::string describe(const nas::Workload& workload);

// --type-corrections: fitted to the random sets of another model's scores.json.
nas::TypeCorrections type_corrections_of(const std::string& file, Objective objective);

// The neuron and head orders that a scores.json or a plan names, relative to that file; nullopt where it
// names none.
std::optional<WidthScores> width_scores_beside(const std::filesystem::path& file, const std::string& name);

// The plan's line for people: "drops 3 of 20 layers (1 Mamba, 2 FFN), FFN width 480".
std::string describe(const StudentPlan& plan, const Architecture& teacher);

// Error usage unless a required option was given.
void require_option(const Command& command, const std::string& name, bool given);
// Error bad_input where `path` exists and no file of ours stands there, or its folder does not exist.
void check_output_file(const std::filesystem::path& path);
// Error usage where an output is one of the inputs.
void check_distinct(const std::string& out, const std::vector<std::string>& inputs);

}  // namespace minipuzzle::cli
