// Searches for people, as text of at most 100 columns.
#pragma once

#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::cli {

// The search for people: what was asked and proved, the best student, the rounds of measuring, the finalists
// or first candidates, the frontier with its knee.
std::string search_summary(const nas::SearchResult& result);
// The frontier's knee: the point farthest below the line through its ends, both axes scaled to 0..1. -1 where
// there are fewer than three points.
int64_t knee_of(const std::vector<nas::FrontierPoint>& frontier);

// Layer types kept: "45 M, 48 F, 5 A" of a pattern without the layers in `drop`.
std::string kept_text(const std::string& teacher_pattern, const std::vector<int64_t>& drop);
// "79 M, 85 F, 95 A": layers of a pattern with their types; "none" without any.
std::string layers_text(const std::string& teacher_pattern, const std::vector<int64_t>& layers);
// Whether both drop the same layers and give FFNs the same widths; a plan without a width agrees with any.
bool same_student(const StudentPlan& plan, const nas::Candidate& candidate);

// Where a plan stands in a search: its rank by prediction beside the best, and what tells the two apart.
std::string standing_text(const nas::SearchResult& result, const StudentPlan& plan);
// {"rank": N or null, "of": N, "candidate": id or null, "best": id, "kept_by_best": [...],
// "dropped_by_best": [...]}
Json standing_json(const nas::SearchResult& result, const StudentPlan& plan);

// Two searches of one teacher: what was asked, what each chose, how far their orders agree over the students
// that both list, and where each one's first stand in the other.
std::string search_difference_text(const nas::SearchResult& a, const nas::SearchResult& b);
// {"best": {...}, "shared": N, "rank_correlation": r or null, "students": [...]}
Json search_difference_json(const nas::SearchResult& a, const nas::SearchResult& b);

}  // namespace minipuzzle::cli
