// The funnel: which students are measured. A budget of evaluations is spent in rounds. Before each,
// everything measured so far is fitted (nas/rise_process.h) and the fit proposes new students, layer by
// layer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nas/free_space.h"
#include "nas/surrogate.h"

namespace minipuzzle::nas {

enum class SelectBy { loss, kl, accuracy, agreement, tasks };
// Error usage lists the known ones.
SelectBy parse_select_by(const std::string& text);
// The measurement as a cost: less is better.
double cost(const Measured& measured, SelectBy select_by);

struct FunnelOptions {
    int64_t measure = 32, rounds = 6;
    SelectBy select_by = SelectBy::loss;
};

// All that proposing takes; everything outlives the funnel.
struct FunnelProblem {
    const Architecture& teacher;
    const Surrogate& surrogate;
    const FreeSpace& space;
    // Students to start from, within the limits, best predicted first: the maximal ones of every composition.
    const std::vector<StudentPlan>& starts;
};

struct FunnelStudent {
    StudentPlan plan;
    Measured measured;
    int64_t round = 0;  // from 1
    double fitted = 0;  // the cost as the fit predicted it before it was measured
};

struct FunnelRound {
    int64_t measured = 0, fresh = 0;  // students so far, of this round
    std::size_t best = 0;             // index of the student that costs least so far
    double best_cost = 0;
    std::optional<double> rank_correlation;  // Spearman: `fitted` against measured, of this round's students
};

struct FunnelResult {
    std::vector<FunnelStudent> students;  // in the order measured
    std::vector<FunnelRound> rounds;
    std::vector<std::size_t> finalists;  // best first, at most five; one of them is different (below)
};

// Measures up to `measure` students in at most `rounds` calls of the measurer; the first call also holds the
// teacher itself, whose state a sweep has anyway, so that rises can be told from losses. Ends early where the
// fit sees nothing better. Depends on nothing random. Of the finalists one drops at least a fifth of other
// layers than the best does, if any student measured does.
FunnelResult run_funnel(const FunnelProblem& problem, const FunnelOptions& options, const Measurer& measurer);

// Of the layers that `best` drops, the share that `other` keeps.
double difference(const StudentPlan& best, const StudentPlan& other);

}  // namespace minipuzzle::nas
