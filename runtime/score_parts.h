// The optional parts of scores.json: pairs, iterative, stability, precision.
#pragma once

#include "runtime/score_table.h"

namespace minipuzzle {

// Both leave out what is not there. Reading checks layers against the table's, which must have been read
// before: Error bad_input.
void read_score_parts(ObjectReader& reader, ScoreTable& table);
void write_score_parts(const ScoreTable& table, Json& json);

}  // namespace minipuzzle
