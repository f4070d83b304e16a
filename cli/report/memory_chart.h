// Where the memory goes: the teacher's and the student's bytes by purpose.
#pragma once

#include <string>

#include "nas/search.h"

namespace minipuzzle::report {

// Stacked bars with the budget line, and a table of the same numbers.
std::string memory_chart(const nas::SearchResult& search);

}  // namespace minipuzzle::report
