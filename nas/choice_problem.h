// A multiple-choice problem: one choice of every item, at the least sum of the choices' costs and of the
// costs of pairs of them, within linear limits. Pure data: it knows nothing of models.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace minipuzzle::nas {

struct Choice {
    double cost = 0;
    std::vector<int64_t> weights;  // what it adds to each row of the problem
};

// Counts where item `first` takes `first_choice` and item `second` takes `second_choice`; first < second.
struct PairCost {
    std::size_t first = 0, first_choice = 0, second = 0, second_choice = 0;
    double cost = 0;  // of any sign
};

// lower <= sum over `rows` of ceil(row / divisor) <= upper. A row is its fixed amount and the weights of the
// choices taken; a part of a memory is rounded up to bytes on its own, hence the sum of quotients.
struct ChoiceConstraint {
    std::string name;  // for people
    std::vector<std::size_t> rows;
    int64_t divisor = 1;
    std::optional<int64_t> lower, upper;
};

struct ChoiceProblem {
    double constant = 0;
    std::vector<int64_t> fixed;              // by row
    std::vector<std::vector<Choice>> items;  // at least one choice each
    std::vector<PairCost> pairs;
    std::vector<ChoiceConstraint> constraints;
};

// The index of the choice that each item takes.
using Assignment = std::vector<std::size_t>;

// The sum of costs, added in the order constant, items, pairs.
double cost_of(const ChoiceProblem& problem, const Assignment& assignment);
// Rounded up; below zero too.
inline int64_t quotient(int64_t row, int64_t divisor) { return row / divisor + (row % divisor > 0 ? 1 : 0); }
// The sum of the quotients that a constraint bounds.
int64_t amount_of(const ChoiceProblem& problem, const ChoiceConstraint& constraint,
                  const Assignment& assignment);
bool satisfies(const ChoiceProblem& problem, const Assignment& assignment);

// Our own bug (MP_ASSERT) where indexes or sizes contradict one another.
void check_problem(const ChoiceProblem& problem);

enum class ChoiceStatus {
    optimal,     // proven: no assignment costs less
    bounded,     // time ran out: none costs less than `bound`
    infeasible,  // proven: no assignment satisfies the constraints
    unknown,     // time ran out before any was found
};

struct ChoiceSolution {
    ChoiceStatus status = ChoiceStatus::unknown;
    Assignment assignment;       // empty where infeasible or unknown
    double cost = 0, bound = 0;  // of cost_of; the bound equals the cost where optimal
    double seconds = 0;          // spent
    std::string solver;          // "enumeration", "cbc", ...
    double gap() const { return cost - bound; }
};

}  // namespace minipuzzle::nas
