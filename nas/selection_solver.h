// The quadratic selection problem: so many items of each kind, at the least sum of their costs and of the
// costs of their pairs. Exact, by branch and bound.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace minipuzzle::nas {

struct QuadraticSelection {
    std::size_t items = 0, kinds = 0;
    std::vector<std::size_t> kind;  // by item
    std::vector<double> cost;       // by item
    std::vector<double> pair;       // [i * items + j], symmetric, 0 on the diagonal
    double cost_of(const std::vector<bool>& selected) const;
};

// Bounds are Lagrangian (Caprara, Pisinger & Toth 1999, "Exact solution of the quadratic knapsack problem",
// here for counts): the cost p_ij of a pair is split into q_ij + q_ji, the share each of the two would pay.
// An item i that is selected pays its own cost and at least the cheapest q_ij of as many others as the counts
// ask for; the bound is the cheapest selection by what items pay. The split is improved by subgradient steps;
// at its best the bound equals that of the first-level reformulation-linearisation (Adams & Sherali 1986) of
// the counts.
class SelectionSolver {
  public:
    // `out_of_time` is polled between nodes.
    SelectionSolver(const QuadraticSelection& problem, std::function<bool()> out_of_time);

    // The bound over all selections with these counts at the split found so far, after `steps` steps that
    // improve it. Steps aim at `cutoff`, the cost of a known selection.
    double bound(const std::vector<int64_t>& counts, double cutoff, int64_t steps);

    struct Result {
        bool complete = true;  // else time ran out
        double bound = 0;      // no selection costs less; at least the cutoff where none below it exists
        bool found = false;    // a selection that costs less than the cutoff:
        std::vector<bool> selected;  // the best of these
        double cost = 0;
    };
    Result solve(const std::vector<int64_t>& counts, double cutoff);

  private:
    struct Node;
    struct Relaxation;
    void relax(const Node& node, Relaxation& relaxation);
    bool step(Node& node, const Relaxation& relaxation, double distance);
    void improve(Node& node, Relaxation& best, int64_t steps);
    void fix_by_bound(Node& node, const Relaxation& relaxation);
    void select(Node& node, std::size_t item) const;
    void leave_out(Node& node, std::size_t item) const;
    void take(const Node& node, const Relaxation& relaxation);
    std::size_t item_to_decide(const Node& node) const;
    void branch(Node node, int64_t steps);
    Node root(const std::vector<int64_t>& counts) const;

    const QuadraticSelection& problem_;
    std::function<bool()> out_of_time_;
    std::vector<double> split_;  // q by [i * items + j]
    double cutoff_ = 0, open_bound_ = 0;
    Result result_;
};

}  // namespace minipuzzle::nas
