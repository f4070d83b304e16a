// The order in which documents are taken: by --until-certain and for halves of the data.
#pragma once

#include <vector>

#include "runtime/token_source.h"

namespace minipuzzle::importance {

// Documents of the windows in seeded order: their numbers ascending, then permuted by seeded_order(), so that
// the order depends on neither their lengths nor the order of the windows.
std::vector<int64_t> seeded_documents(const std::vector<int64_t>& documents, uint64_t seed);

// The windows document by document, documents in seeded order, a document's windows from its beginning.
std::vector<Window> by_document(const std::vector<Window>& windows, uint64_t seed);

// How many different ones.
int64_t count_documents(const std::vector<int64_t>& documents);

}  // namespace minipuzzle::importance
