// --fits: more workloads that a student must fit.
#pragma once

#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::cli {

// "1Mx1", "8kx64:40GiB" or "8kx64:84%" (of the teacher's total at that workload, which shares all but context
// and batch with `workload`). Error usage names the word that is none.
std::vector<nas::Fit> fits_of(const std::vector<std::string>& words, const Architecture& teacher,
                              const nas::Workload& workload);

}  // namespace minipuzzle::cli
