#include "importance/feed_order.h"

#include <algorithm>
#include <map>
#include <set>

namespace minipuzzle::importance {

std::vector<int64_t> seeded_documents(const std::vector<int64_t>& documents, uint64_t seed) {
    const std::set<int64_t> set(documents.begin(), documents.end());
    const std::vector<int64_t> distinct(set.begin(), set.end());
    std::vector<int64_t> ordered;
    for (const int64_t i : seeded_order(static_cast<int64_t>(distinct.size()), seed))
        ordered.push_back(distinct[static_cast<std::size_t>(i)]);
    return ordered;
}

std::vector<Window> by_document(const std::vector<Window>& windows, uint64_t seed) {
    std::vector<int64_t> documents;
    for (const Window& window : windows) documents.push_back(window.document);
    std::map<int64_t, int64_t> place;
    for (const int64_t document : seeded_documents(documents, seed))
        place.emplace(document, static_cast<int64_t>(place.size()));
    std::vector<Window> ordered = windows;
    std::sort(ordered.begin(), ordered.end(), [&](const Window& a, const Window& b) {
        return std::pair(place.at(a.document), a.begin) < std::pair(place.at(b.document), b.begin);
    });
    return ordered;
}

int64_t count_documents(const std::vector<int64_t>& documents) {
    return static_cast<int64_t>(std::set<int64_t>(documents.begin(), documents.end()).size());
}

}  // namespace minipuzzle::importance
