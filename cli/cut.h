// score --until-certain: the options, and the cut that its layers are decided for.
#pragma once

#include <optional>
#include <string>

#include "cli/commands.h"
#include "importance/ablation.h"

namespace minipuzzle::cli {

// Error usage where options are given that do nothing without each other.
void check_certainty_options(const ScoreCommand& command);

// What --until-certain asks for; nullopt without it. The cut is the student that search picks for the budget;
// says the budget and the workload aloud. Error infeasible where no student fits, which scores have no say
// in.
std::optional<importance::UntilCertain> until_certain_options(const ScoreCommand& command,
                                                              const Context& context);

// For people: what the scores rest on, and why there is no interval where there is none.
std::string documents_line(const ScoreTable& scores, int64_t documents);
// Empty where enough windows were ranked.
std::string ranking_warning(const ScoreTable& scores, int64_t documents);

}  // namespace minipuzzle::cli
