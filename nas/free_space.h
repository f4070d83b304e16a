// The space of all students: every layer kept, narrowed or dropped on its own. As a multiple-choice problem
// it goes to a solver; a single plan is held against its limits in a walk over the layers.
#pragma once

#include <optional>
#include <vector>

#include "nas/choice_problem.h"
#include "nas/search.h"
#include "nas/space.h"
#include "nas/surrogate.h"

namespace minipuzzle::nas {

// A workload and the bytes that a student may take at it.
struct MemoryLimit {
    Workload workload;
    int64_t bytes = 0;
};
// Every memory limit that the options name.
std::vector<MemoryLimit> memory_limits(const SearchOptions& options);

// One problem for each common FFN width of the grid (widest first): one item per layer of the teacher, then
// one for each type whose allowed counts have gaps. Costs are those of predict() without the correction.
class FreeSpace {
  public:
    // Error usage where the options contradict the teacher, the scores or each other.
    FreeSpace(const Architecture& teacher, const Surrogate& surrogate, const SearchOptions& options);

    const std::vector<WidthChoice>& widths() const { return widths_; }
    const ChoiceProblem& problem(std::size_t width) const { return problems_[width]; }
    StudentPlan plan(std::size_t width, const Assignment& assignment) const;
    // The student's place in the space; null where it is not in it (a pinned layer dropped, a width that is
    // not allowed), whether it fits or not.
    struct Place {
        std::size_t width = 0;
        Assignment assignment;
    };
    std::optional<Place> place(const StudentPlan& plan) const;
    // Whether layers of one type weigh alike, wherever there is a choice: then only their numbers matter to
    // the limits.
    bool alike() const;
    // Whether the student is in the space and within every limit: bytes, parameters, latency, counts.
    bool fits(const StudentPlan& plan) const;

  private:
    // What a choice of a layer's item does to the layer.
    struct Meaning {
        bool dropped = false;
        std::optional<int64_t> width;  // of its own, not the common one
        bool operator==(const Meaning&) const = default;
    };
    struct CountItem {
        LayerType type;
        std::vector<int64_t> kept;  // by choice
    };
    template <class Visit>
    void for_each_kept(Visit visit) const;
    std::optional<Assignment> assignment_at(std::size_t width, const StudentPlan& plan) const;
    void add_layers(const std::vector<int64_t>& own_widths);
    ChoiceProblem make_problem(std::size_t width) const;
    void add_memory(ChoiceProblem& problem, const MemoryLimit& limit, std::size_t width) const;
    void add_params(ChoiceProblem& problem, std::size_t width) const;
    void add_latency(ChoiceProblem& problem, std::size_t width) const;
    void add_counts(ChoiceProblem& problem, std::size_t width) const;
    void add_pairs(ChoiceProblem& problem) const;
    StudentPlan sizes(std::size_t width, std::optional<int64_t> own) const;

    const Architecture& teacher_;
    const Surrogate& surrogate_;
    const SearchOptions options_;
    std::vector<WidthChoice> widths_;
    std::vector<std::vector<Meaning>> meanings_;  // by layer
    std::vector<CountItem> count_items_;          // after the layers
    std::vector<ChoiceProblem> problems_;
};

}  // namespace minipuzzle::nas
