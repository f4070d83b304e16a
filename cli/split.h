// Keeping documents apart: one purpose each.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/model_loading.h"
#include "cli/recipe.h"

namespace minipuzzle::cli {

// Error bad_input where a document stands in two of train, calib, select and test; names both files and rows.
void check_disjoint(const RecipeData& data, const DataReader& reader);

// The rows of `files` as four files of `out`/data, by document in seeded order: a tenth each to calib, select
// and test, the rest to train; copies of a document stay together. Claims `out` once the rows are known to be
// good. Error bad_input under four documents.
RecipeData split_documents(const std::vector<std::string>& files, const DataReader& reader, uint64_t seed,
                           const std::filesystem::path& out);

}  // namespace minipuzzle::cli
