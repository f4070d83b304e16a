// search --explain: why each layer stays or goes.
#pragma once

#include <string>

#include "nas/explain.h"

namespace minipuzzle::cli {

// The cuts and a row per layer.
Json explain_json(const nas::Explanation& explanation);
std::string explain_text(const nas::Explanation& explanation);

}  // namespace minipuzzle::cli
