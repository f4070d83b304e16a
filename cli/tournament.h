// search --tournament: the best measured students are distilled for a while and measured again; what they are
// worth after training decides, not what they are worth cut.
#pragma once

#include <optional>
#include <vector>

#include "cli/commands.h"
#include "nas/search.h"
#include "runtime/tasks.h"

namespace minipuzzle::cli {

// What every student is measured on.
struct MeasuringRows {
    Backend& backend;
    const Corpus& corpus;
    const std::vector<Window>& windows;
    const std::optional<TaskSet>& tasks;
};

nas::TaskMeasurement task_measurement(const TaskScores& scores);

// Error usage where the options lack something.
void check_tournament(const SearchCommand& command);

// Distils the K best by --select-by as `distill` does, each into OUT/tournament/ID with its plan beside it,
// measures them against the teacher and makes the best one the result's best. A run that was stopped goes on
// with what is there: finished students are only measured. Interrupted leaves the result as it was.
void run_tournament(const SearchCommand& command, const Context& context, const MeasuringRows& rows,
                    nas::SearchResult& result);
// Removes what OUT/tournament holds besides the winner's folder and plan.
void keep_winner(const std::filesystem::path& out, const nas::SearchResult& result);

}  // namespace minipuzzle::cli
