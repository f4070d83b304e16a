// A student on its way from a plan to a folder: shared by prune and distill.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "nas/search.h"
#include "runtime/checkpoint.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"

namespace minipuzzle::cli {

// Where search keeps the neuron and head orders that its candidates' widths need, inside its folder.
inline constexpr const char* kWidthScoresFile = "scores.width.safetensors";

// The plan that a student was cut by, in the student's folder: its kept layers pair the features of
// distillation.
inline constexpr const char* kPlanFile = "plan.yaml";

struct ChosenPlan {
    StudentPlan plan;
    std::optional<WidthScores> widths;
    std::optional<nas::Candidate> candidate;  // with a search
};

// The plan of --plan FILE, or of candidate --id in --search FOLDER ("" for its best).
ChosenPlan choose_plan(const std::string& plan, const std::string& search, const std::string& id);

// The student's folder with its model card and its plan.
void write_student(const Checkpoint& teacher, const ChosenPlan& chosen, const std::string& command,
                   const std::filesystem::path& out);

}  // namespace minipuzzle::cli
