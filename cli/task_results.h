// What tasks say, as JSON and for people: of eval --tasks, in eval.json and inspect.
#pragma once

#include <string>

#include "runtime/artefact.h"
#include "runtime/tasks.h"

namespace minipuzzle::cli {

// {"rows", "accuracy", "stderr", "accuracy_per_token", "stderr_per_token", "per_task": {name: the same}}.
Json to_json(const TaskScores& scores);
// The same of the full model, after the file and its hash.
Json to_json(const TaskSet& tasks, const TaskScores& scores);
// A table of such an object, a line a task and one for all.
std::string tasks_text(const Json& tasks);

// A line a student of eval --plans, of what its rows hold.
std::string students_table(const Json& students);

}  // namespace minipuzzle::cli
