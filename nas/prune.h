// `prune`: the student's weights, cut out of the teacher's folder.
#pragma once

#include <filesystem>
#include <string>

#include "runtime/checkpoint.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"

namespace minipuzzle::nas {

// Layers renumbered, FFN rows and columns of the neurons kept and those of the Mamba heads kept (ascending),
// every dtype as it was, unknown tensors and every other file of the folder carried over, config.json
// rewritten, `model_card` as README.md. Dropping nothing reproduces every tensor's bytes. `width` may be null
// when the plan narrows nothing. Error bad_input where it lacks the order of a layer that is narrowed.
void prune(const Checkpoint& teacher, const StudentPlan& plan, const WidthScores* width,
           const std::string& model_card, const std::filesystem::path& out);

}  // namespace minipuzzle::nas
