// `score --dry-run`: what a score would do, what memory and about what time it takes.
#pragma once

#include "cli/commands.h"
#include "importance/ablation.h"

namespace minipuzzle::cli {

// Loads no weights and writes nothing.
CommandResult score_dry_run(const Context& context, Backend& backend, const ScoreCommand& command,
                            const importance::ScoreOptions& options);

}  // namespace minipuzzle::cli
