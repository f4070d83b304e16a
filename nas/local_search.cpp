// Local search: a start for the exact solvers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "kernels/random.h"
#include "nas/choice_solver.h"

namespace minipuzzle::nas {

namespace {

// By how much the constraints are broken: each in units of the largest change that one item can make to it.
class Violation {
  public:
    explicit Violation(const ChoiceProblem& problem) : problem_(problem) {
        for (const ChoiceConstraint& constraint : problem.constraints) {
            int64_t largest = 1;
            for (const std::vector<Choice>& item : problem.items) {
                int64_t least = std::numeric_limits<int64_t>::max(),
                        most = std::numeric_limits<int64_t>::min();
                for (const Choice& choice : item) {
                    int64_t sum = 0;
                    for (const std::size_t row : constraint.rows) sum += choice.weights[row];
                    least = std::min(least, sum);
                    most = std::max(most, sum);
                }
                largest = std::max(largest, most - least);
            }
            unit_.push_back(static_cast<double>(largest) / static_cast<double>(constraint.divisor));
        }
    }
    double of(const std::vector<int64_t>& rows) const {
        double violation = 0;
        for (std::size_t k = 0; k < unit_.size(); ++k) {
            const ChoiceConstraint& constraint = problem_.constraints[k];
            int64_t amount = 0;
            for (const std::size_t row : constraint.rows) amount += quotient(rows[row], constraint.divisor);
            int64_t excess = 0;
            if (constraint.upper) excess = std::max(excess, amount - *constraint.upper);
            if (constraint.lower) excess = std::max(excess, *constraint.lower - amount);
            violation += static_cast<double>(excess) / unit_[k];
        }
        return violation;
    }

  private:
    const ChoiceProblem& problem_;
    std::vector<double> unit_;
};

// Violation first, then cost. Costs that differ by rounding alone are equal, so that no move is made twice.
struct Rank {
    double violation = 0, cost = 0;
    bool better_than(const Rank& other) const {
        if (violation != other.violation) return violation < other.violation;
        return cost < other.cost - 1e-12 * (1 + std::abs(other.cost));
    }
};

class LocalSearch {
  public:
    explicit LocalSearch(const ChoiceProblem& problem) : problem_(problem), violation_(problem) {
        for (const std::vector<Choice>& item : problem.items) {
            first_.push_back(total_);
            total_ += item.size();
        }
        pair_.resize(total_ * total_);
        for (const PairCost& pair : problem.pairs) {
            const std::size_t a = first_[pair.first] + pair.first_choice;
            const std::size_t b = first_[pair.second] + pair.second_choice;
            pair_[a * total_ + b] += pair.cost;
            pair_[b * total_ + a] += pair.cost;
        }
    }

    void start_at(const Assignment& assignment) {
        assignment_ = assignment;
        rows_ = problem_.fixed;
        for (std::size_t i = 0; i < assignment.size(); ++i) add_weights(i, assignment[i], 1);
        margin_.assign(total_, 0);
        for (std::size_t i = 0; i < assignment.size(); ++i)
            for (std::size_t c = 0; c < problem_.items[i].size(); ++c) {
                double& margin = margin_[first_[i] + c];
                margin = problem_.items[i][c].cost;
                for (std::size_t j = 0; j < assignment.size(); ++j)
                    margin += pair_[(first_[i] + c) * total_ + first_[j] + assignment[j]];
            }
        rank_ = {violation_.of(rows_), cost_of(problem_, assignment)};
    }

    void descend() {
        while (best_single() || best_double()) {
        }
        rank_.cost = cost_of(problem_, assignment_);
    }

    // Changes a few items at random.
    void disturb(const CounterRandom& random, int64_t round) {
        const std::size_t items = problem_.items.size();
        const std::size_t changes = 2 + static_cast<std::size_t>(round) % 5;
        for (std::size_t k = 0; k < changes; ++k) {
            const int64_t draw = round * 16 + static_cast<int64_t>(k) * 2;
            const std::size_t i = random.bits(draw) % items;
            move(i, random.bits(draw + 1) % problem_.items[i].size());
        }
        rank_ = {violation_.of(rows_), cost_of(problem_, assignment_)};
    }

    const Assignment& assignment() const { return assignment_; }
    const Rank& rank() const { return rank_; }

  private:
    double pair(std::size_t i, std::size_t c, std::size_t j, std::size_t d) const {
        return pair_[(first_[i] + c) * total_ + first_[j] + d];
    }
    void add_weights(std::size_t i, std::size_t c, int64_t sign) {
        const std::vector<int64_t>& weights = problem_.items[i][c].weights;
        for (std::size_t r = 0; r < rows_.size(); ++r) rows_[r] += sign * weights[r];
    }
    double gain(std::size_t i, std::size_t c) const {
        return margin_[first_[i] + c] - margin_[first_[i] + assignment_[i]];
    }

    void move(std::size_t i, std::size_t c) {
        const std::size_t was = assignment_[i];
        add_weights(i, was, -1);
        add_weights(i, c, 1);
        assignment_[i] = c;
        const double* more = &pair_[(first_[i] + c) * total_];
        const double* less = &pair_[(first_[i] + was) * total_];
        for (std::size_t k = 0; k < total_; ++k) margin_[k] += more[k] - less[k];
    }

    struct Move {
        std::size_t i, c;
    };
    // What the state would be worth after a move that changes the cost by `change`.
    Rank rank_after(const Move& move, double change) {
        add_weights(move.i, assignment_[move.i], -1);
        add_weights(move.i, move.c, 1);
        const Rank rank{violation_.of(rows_), rank_.cost + change};
        add_weights(move.i, move.c, -1);
        add_weights(move.i, assignment_[move.i], 1);
        return rank;
    }

    bool best_single() {
        Rank best = rank_;
        std::optional<Move> chosen;
        for (std::size_t i = 0; i < assignment_.size(); ++i)
            for (std::size_t c = 0; c < problem_.items[i].size(); ++c) {
                if (c == assignment_[i]) continue;
                const Rank rank = rank_after({i, c}, gain(i, c));
                if (!rank.better_than(best)) continue;
                best = rank;
                chosen = Move{i, c};
            }
        if (!chosen) return false;
        move(chosen->i, chosen->c);
        rank_ = best;
        return true;
    }

    bool best_double() {
        Rank best = rank_;
        std::optional<std::pair<Move, Move>> chosen;
        for (std::size_t i = 0; i < assignment_.size(); ++i)
            for (std::size_t c = 0; c < problem_.items[i].size(); ++c) {
                if (c == assignment_[i]) continue;
                const std::size_t was = assignment_[i];
                const double first = gain(i, c);
                add_weights(i, was, -1);
                add_weights(i, c, 1);
                for (std::size_t j = i + 1; j < assignment_.size(); ++j)
                    for (std::size_t d = 0; d < problem_.items[j].size(); ++d) {
                        if (d == assignment_[j]) continue;
                        const double change = first + gain(j, d) + pair(i, c, j, d) - pair(i, was, j, d) -
                                              pair(i, c, j, assignment_[j]) + pair(i, was, j, assignment_[j]);
                        // Within the limits the cost alone decides first: it is much cheaper to know.
                        if (best.violation == 0 && !Rank{0, rank_.cost + change}.better_than(best)) continue;
                        const Rank rank = rank_after({j, d}, change);
                        if (!rank.better_than(best)) continue;
                        best = rank;
                        chosen = {{i, c}, {j, d}};
                    }
                add_weights(i, c, -1);
                add_weights(i, was, 1);
            }
        if (!chosen) return false;
        move(chosen->first.i, chosen->first.c);
        move(chosen->second.i, chosen->second.c);
        rank_ = best;
        return true;
    }

    const ChoiceProblem& problem_;
    const Violation violation_;
    std::vector<std::size_t> first_;  // index of an item's first choice among all choices
    std::size_t total_ = 0;
    std::vector<double> pair_;  // [choice][choice], both ways
    Assignment assignment_;
    std::vector<int64_t> rows_;
    std::vector<double> margin_;  // by choice: its cost and its pairs with what the other items take
    Rank rank_;
};

}  // namespace

Assignment local_search(const ChoiceProblem& problem, const Assignment& start, int64_t rounds) {
    Assignment first = start;
    if (first.empty())
        for (const std::vector<Choice>& item : problem.items) {
            const auto cheapest = std::min_element(
                item.begin(), item.end(), [](const Choice& a, const Choice& b) { return a.cost < b.cost; });
            first.push_back(static_cast<std::size_t>(cheapest - item.begin()));
        }
    MP_ASSERT(first.size() == problem.items.size());
    if (first.empty()) return first;
    LocalSearch search(problem);
    search.start_at(first);
    search.descend();
    Assignment best = search.assignment();
    Rank best_rank = search.rank();
    const CounterRandom random(0, "local search");
    for (int64_t round = 0; round < rounds; ++round) {
        search.start_at(best);
        search.disturb(random, round);
        search.descend();
        if (!search.rank().better_than(best_rank)) continue;
        best = search.assignment();
        best_rank = search.rank();
    }
    return satisfies(problem, best) ? best : Assignment{};
}

}  // namespace minipuzzle::nas
