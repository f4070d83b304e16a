#include "nas/selection_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

constexpr int64_t kRootSteps = 300, kNodeSteps = 2;
// Costs that differ by less are equal: bounds are sums of some thousand terms.
double tolerance(double cost) { return 1e-10 * (1 + std::abs(cost)); }

struct Share {
    double cost;
    uint32_t item;
    bool operator<(const Share& other) const {
        return cost != other.cost ? cost < other.cost : item < other.item;
    }
};

}  // namespace

double QuadraticSelection::cost_of(const std::vector<bool>& selected) const {
    double sum = 0;
    for (std::size_t i = 0; i < items; ++i) {
        if (!selected[i]) continue;
        sum += cost[i];
        for (std::size_t j = 0; j < i; ++j)
            if (selected[j]) sum += pair[i * items + j];
    }
    return sum;
}

// Part of the selections: some items are decided.
struct SelectionSolver::Node {
    std::vector<std::vector<uint32_t>> open;  // items not decided, by kind, ascending
    std::vector<int64_t> counts;              // still to be selected, by kind
    std::vector<bool> selected;
    double base = 0;           // cost of the selected ones
    std::vector<double> cost;  // of an open item: its own and its pairs with the selected ones
    std::vector<double> split;
    // Of the steps so far: how often each item was in the relaxation's selection.
    std::vector<double> share;

    bool possible() const {
        for (std::size_t t = 0; t < open.size(); ++t)
            if (counts[t] < 0 || counts[t] > static_cast<int64_t>(open[t].size())) return false;
        return true;
    }
    bool decided() const {
        for (std::size_t t = 0; t < open.size(); ++t)
            if (counts[t] != 0 && counts[t] != static_cast<int64_t>(open[t].size())) return false;
        return true;
    }
};

// The relaxed problem's solution at a split.
struct SelectionSolver::Relaxation {
    double bound = -std::numeric_limits<double>::infinity();
    std::vector<std::vector<Share>> paid;       // by kind: what each open item pays, cheapest `count` first
    std::vector<std::vector<uint32_t>> others;  // by item: the others it pays for
    std::vector<bool> selected;                 // by item, of the open ones
};

SelectionSolver::SelectionSolver(const QuadraticSelection& problem, std::function<bool()> out_of_time)
    : problem_(problem), out_of_time_(std::move(out_of_time)), split_(problem.pair) {
    for (double& share : split_) share /= 2;
}

SelectionSolver::Node SelectionSolver::root(const std::vector<int64_t>& counts) const {
    Node node;
    node.open.resize(problem_.kinds);
    for (std::size_t i = 0; i < problem_.items; ++i)
        node.open[problem_.kind[i]].push_back(static_cast<uint32_t>(i));
    node.counts = counts;
    node.selected.assign(problem_.items, false);
    node.cost = problem_.cost;
    node.split = split_;
    node.share.assign(problem_.items, 0);
    return node;
}

void SelectionSolver::relax(const Node& node, Relaxation& relaxation) {
    const std::size_t n = problem_.items;
    relaxation.bound = node.base;
    relaxation.paid.resize(problem_.kinds);
    relaxation.others.resize(n);
    relaxation.selected.assign(n, false);
    std::vector<Share> shares;
    for (std::size_t t = 0; t < problem_.kinds; ++t) {
        relaxation.paid[t].clear();
        if (node.counts[t] == 0) continue;
        for (const uint32_t i : node.open[t]) {
            double pays = node.cost[i];
            relaxation.others[i].clear();
            for (std::size_t u = 0; u < problem_.kinds; ++u) {
                const int64_t wanted = node.counts[u] - (u == t ? 1 : 0);
                if (wanted <= 0) continue;
                shares.clear();
                for (const uint32_t j : node.open[u])
                    if (j != i) shares.push_back({node.split[i * n + j], j});
                const auto end = shares.begin() + wanted;
                if (end != shares.end()) std::nth_element(shares.begin(), end, shares.end());
                for (auto share = shares.begin(); share != end; ++share) {
                    pays += share->cost;
                    relaxation.others[i].push_back(share->item);
                }
            }
            relaxation.paid[t].push_back({pays, i});
        }
        std::sort(relaxation.paid[t].begin(), relaxation.paid[t].end());
        for (int64_t k = 0; k < node.counts[t]; ++k) {
            const Share& share = relaxation.paid[t][static_cast<std::size_t>(k)];
            relaxation.bound += share.cost;
            relaxation.selected[share.item] = true;
        }
    }
}

// Moves the split along the subgradient: who pays for a pair the other leaves out pays more of it. False
// where the relaxation's solution pays both ways everywhere: it is a selection, and the bound its cost.
bool SelectionSolver::step(Node& node, const Relaxation& relaxation, double distance) {
    const std::size_t n = problem_.items;
    std::vector<std::pair<uint32_t, uint32_t>> one_way;
    std::vector<uint8_t> paid(n * n, 0);
    for (std::size_t i = 0; i < n; ++i)
        if (relaxation.selected[i])
            for (const uint32_t j : relaxation.others[i]) paid[i * n + j] = 1;
    for (uint32_t i = 0; i < n; ++i)
        if (relaxation.selected[i])
            for (const uint32_t j : relaxation.others[i])
                if (!paid[j * n + i]) one_way.emplace_back(i, j);
    if (one_way.empty()) return false;
    const double length = distance / static_cast<double>(one_way.size());
    for (const auto& [i, j] : one_way) {
        node.split[i * n + j] += length;
        node.split[j * n + i] -= length;
    }
    return true;
}

// Subgradient steps with Polyak's length towards the cutoff, halved where they stop helping. Leaves the best
// split in the node and its relaxation in `best`.
void SelectionSolver::improve(Node& node, Relaxation& best, int64_t steps) {
    relax(node, best);
    take(node, best);
    std::fill(node.share.begin(), node.share.end(), 0.0);
    std::vector<double> best_split = node.split;
    Relaxation current = best;
    double factor = 1;
    int64_t since = 0;
    for (int64_t k = 0; k < steps && best.bound < cutoff_ - tolerance(cutoff_); ++k) {
        for (std::size_t i = 0; i < problem_.items; ++i)
            node.share[i] = 0.8 * node.share[i] + (current.selected[i] ? 0.2 : 0);
        if (!step(node, current, factor * (cutoff_ - current.bound))) break;
        relax(node, current);
        if (current.bound > best.bound) {
            std::swap(best, current);
            best_split = node.split;
            take(node, best);
            current = best;
            since = 0;
        } else if (++since == 4) {
            factor /= 2;
            since = 0;
        }
    }
    node.split = std::move(best_split);
}

// The relaxation's selection, as a selection.
void SelectionSolver::take(const Node& node, const Relaxation& relaxation) {
    std::vector<bool> selected = node.selected;
    for (std::size_t i = 0; i < problem_.items; ++i)
        if (relaxation.selected[i]) selected[i] = true;
    const double cost = problem_.cost_of(selected);
    if (cost >= cutoff_ - tolerance(cutoff_)) return;
    cutoff_ = cost;
    result_.found = true;
    result_.selected = std::move(selected);
    result_.cost = cost;
}

void SelectionSolver::select(Node& node, std::size_t item) const {
    std::erase(node.open[problem_.kind[item]], static_cast<uint32_t>(item));
    --node.counts[problem_.kind[item]];
    node.selected[item] = true;
    node.base += node.cost[item];
    for (const std::vector<uint32_t>& open : node.open)
        for (const uint32_t j : open) node.cost[j] += problem_.pair[item * problem_.items + j];
}

void SelectionSolver::leave_out(Node& node, std::size_t item) const {
    std::erase(node.open[problem_.kind[item]], static_cast<uint32_t>(item));
}

// Decides the items whose other decision would lift the bound to the cutoff.
void SelectionSolver::fix_by_bound(Node& node, const Relaxation& relaxation) {
    const double room = cutoff_ - tolerance(cutoff_) - relaxation.bound;
    std::vector<std::size_t> in, out;
    for (std::size_t t = 0; t < problem_.kinds; ++t) {
        const std::vector<Share>& paid = relaxation.paid[t];
        const std::size_t count = static_cast<std::size_t>(node.counts[t]);
        if (count == 0 || count == node.open[t].size()) continue;
        for (std::size_t k = 0; k < paid.size(); ++k) {
            if (k < count && paid[count].cost - paid[k].cost >= room) in.push_back(paid[k].item);
            if (k >= count && paid[k].cost - paid[count - 1].cost >= room) out.push_back(paid[k].item);
        }
    }
    for (const std::size_t item : out) leave_out(node, item);
    for (const std::size_t item : in) select(node, item);
}

// The item whose pairs weigh most, of those on which the steps disagree; the lower index among equals.
// Deciding it moves the costs of the others, and with them the bound, most.
std::size_t SelectionSolver::item_to_decide(const Node& node) const {
    std::size_t chosen = problem_.items;
    double most = -1;
    for (std::size_t t = 0; t < problem_.kinds; ++t) {
        if (node.counts[t] == 0 || node.counts[t] == static_cast<int64_t>(node.open[t].size())) continue;
        for (const uint32_t i : node.open[t]) {
            double weight = 0;
            for (const std::vector<uint32_t>& open : node.open)
                for (const uint32_t j : open) weight += std::abs(problem_.pair[i * problem_.items + j]);
            weight *= 0.6 - std::abs(node.share[i] - 0.5);
            if (weight <= most) continue;
            most = weight;
            chosen = i;
        }
    }
    return chosen;
}

void SelectionSolver::branch(Node node, int64_t steps) {
    if (!node.possible()) return;
    Relaxation relaxation;
    for (;;) {
        if (out_of_time_()) {
            relax(node, relaxation);
            result_.complete = false;
            open_bound_ = std::min(open_bound_, relaxation.bound);
            return;
        }
        improve(node, relaxation, steps);
        if (relaxation.bound >= cutoff_ - tolerance(cutoff_) || node.decided()) return;
        const std::vector<std::vector<uint32_t>> before = node.open;
        fix_by_bound(node, relaxation);
        if (!node.possible()) return;
        if (node.open == before) break;
        steps = kNodeSteps;
    }
    const std::size_t item = item_to_decide(node);
    MP_ASSERT(item < problem_.items);
    const bool first_in = node.share[item] >= 0.5;
    for (const bool in : {first_in, !first_in}) {
        Node child = node;
        if (in)
            select(child, item);
        else
            leave_out(child, item);
        branch(std::move(child), kNodeSteps);
    }
}

double SelectionSolver::bound(const std::vector<int64_t>& counts, double cutoff, int64_t steps) {
    cutoff_ = cutoff;
    result_ = {};
    Node node = root(counts);
    if (!node.possible()) return std::numeric_limits<double>::infinity();
    Relaxation relaxation;
    improve(node, relaxation, steps);
    split_ = std::move(node.split);
    return relaxation.bound;
}

SelectionSolver::Result SelectionSolver::solve(const std::vector<int64_t>& counts, double cutoff) {
    cutoff_ = cutoff;
    open_bound_ = std::numeric_limits<double>::infinity();
    result_ = {};
    branch(root(counts), kRootSteps);
    result_.bound = std::min(cutoff_, open_bound_);
    return result_;
}

}  // namespace minipuzzle::nas
