#include "nas/choice_problem.h"

#include "kernels/check.h"

namespace minipuzzle::nas {

double cost_of(const ChoiceProblem& problem, const Assignment& assignment) {
    MP_ASSERT(assignment.size() == problem.items.size());
    double cost = problem.constant;
    for (std::size_t item = 0; item < assignment.size(); ++item)
        cost += problem.items[item][assignment[item]].cost;
    for (const PairCost& pair : problem.pairs)
        if (assignment[pair.first] == pair.first_choice && assignment[pair.second] == pair.second_choice)
            cost += pair.cost;
    return cost;
}

int64_t amount_of(const ChoiceProblem& problem, const ChoiceConstraint& constraint,
                  const Assignment& assignment) {
    MP_ASSERT(assignment.size() == problem.items.size());
    int64_t amount = 0;
    for (const std::size_t row : constraint.rows) {
        int64_t sum = problem.fixed[row];
        for (std::size_t item = 0; item < assignment.size(); ++item)
            sum += problem.items[item][assignment[item]].weights[row];
        amount += quotient(sum, constraint.divisor);
    }
    return amount;
}

bool satisfies(const ChoiceProblem& problem, const Assignment& assignment) {
    for (const ChoiceConstraint& constraint : problem.constraints) {
        const int64_t amount = amount_of(problem, constraint, assignment);
        if (constraint.lower && amount < *constraint.lower) return false;
        if (constraint.upper && amount > *constraint.upper) return false;
    }
    return true;
}

void check_problem(const ChoiceProblem& problem) {
    for (const std::vector<Choice>& item : problem.items) {
        MP_ASSERT(!item.empty());
        for (const Choice& choice : item) MP_ASSERT(choice.weights.size() == problem.fixed.size());
    }
    for (const PairCost& pair : problem.pairs) {
        MP_ASSERT(pair.first < pair.second && pair.second < problem.items.size());
        MP_ASSERT(pair.first_choice < problem.items[pair.first].size());
        MP_ASSERT(pair.second_choice < problem.items[pair.second].size());
    }
    for (const ChoiceConstraint& constraint : problem.constraints) {
        MP_ASSERT(constraint.divisor > 0);
        for (const std::size_t row : constraint.rows) MP_ASSERT(row < problem.fixed.size());
    }
}

}  // namespace minipuzzle::nas
