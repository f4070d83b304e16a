#include "nas/proposals.h"

#include <algorithm>
#include <array>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

// Of the polynomial: rounding must not walk in circles.
constexpr double kLeastGain = 1e-10;

struct Change {
    std::size_t layer = 0, choice = 0;
    double by = 0;  // of the layer's share
};

double share_of(const Surrogate& surrogate, const Architecture& teacher, const StudentPlan& plan,
                int64_t layer) {
    if (plan.drops(layer)) return 1;
    const auto own = plan.ffn_widths.find(layer);
    if (own == plan.ffn_widths.end()) return 0;
    const double cost = surrogate.cost[static_cast<std::size_t>(layer)].value_or(0.0);
    const double narrowed = layer_width_term(surrogate, teacher, layer, own->second).value_or(0.0);
    return cost > 0 ? std::clamp(narrowed / cost, 0.0, 1.0) : 0.0;
}

}  // namespace

// A student of one common width under change.
class Proposals::Walk {
  public:
    Walk(const Proposals& proposals, const LossPolynomial& polynomial, FreeSpace::Place place)
        : shares_(proposals.shares_),
          problem_(proposals.space_.problem(place.width)),
          place_(std::move(place)),
          point_(polynomial, proposals.removal(place_)),
          rows_(problem_.fixed) {
        for (std::size_t item = 0; item < problem_.items.size(); ++item)
            add(problem_.items[item][place_.assignment[item]].weights, 1);
    }

    const FreeSpace::Place& place() const { return place_; }

    // Lowers the polynomial by the best one change, of layers not in `changed`; false where there is none.
    bool improve_one(const std::vector<Change>& changed = {}) {
        const auto is_changed = [&](const Change& change) {
            return std::any_of(changed.begin(), changed.end(),
                               [&](const Change& other) { return other.layer == change.layer; });
        };
        const Change* best = nullptr;
        double least = -kLeastGain;
        const std::vector<Change> all = changes();
        for (const Change& change : all) {
            const double gain = point_.change(index(change), change.by);
            if (gain >= least || is_changed(change) || !fits(std::array<Change, 1>{change})) continue;
            least = gain;
            best = &change;
        }
        if (best != nullptr) take(*best);
        return best != nullptr;
    }
    // By the best two.
    bool improve_two() {
        const std::vector<Change> all = changes();
        std::array<Change, 2> best;
        double least = -kLeastGain;
        for_each_two(all, [&](const std::array<Change, 2>& two, double gain) {
            if (gain >= least || !fits(two)) return;
            least = gain;
            best = two;
        });
        if (least == -kLeastGain) return false;
        for (const Change& change : best) take(change);
        return true;
    }
    // The best ways to change one layer or exchange two, within the limits.
    std::vector<std::vector<Change>> best_changes(std::size_t count) const {
        const std::vector<Change> all = changes();
        std::vector<std::pair<double, std::vector<Change>>> ways;
        for (const Change& change : all)
            ways.emplace_back(point_.change(index(change), change.by), std::vector{change});
        for_each_two(all, [&](const std::array<Change, 2>& two, double gain) {
            ways.emplace_back(gain, std::vector(two.begin(), two.end()));
        });
        std::stable_sort(ways.begin(), ways.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
        std::vector<std::vector<Change>> best;
        for (auto way = ways.begin(); way != ways.end() && best.size() < count; ++way)
            if (fits(way->second)) best.push_back(std::move(way->second));
        return best;
    }
    void take(const Change& change) {
        std::size_t& choice = place_.assignment[change.layer];
        add(problem_.items[change.layer][choice].weights, -1);
        choice = change.choice;
        add(problem_.items[change.layer][choice].weights, 1);
        point_.move(index(change), change.by);
    }

  private:
    static int64_t index(const Change& change) { return static_cast<int64_t>(change.layer); }

    std::vector<Change> changes() const {
        std::vector<Change> all;
        for (std::size_t layer = 0; layer < shares_.size(); ++layer)
            for (std::size_t choice = 0; choice < shares_[layer].size(); ++choice)
                if (choice != place_.assignment[layer])
                    all.push_back({layer, choice, shares_[layer][choice] - point_.share(index({layer}))});
        return all;
    }
    // One that puts something back with one that takes something out.
    template <class Visit>
    void for_each_two(const std::vector<Change>& all, Visit visit) const {
        for (const Change& back : all) {
            if (back.by >= 0) continue;
            for (const Change& out : all)
                if (out.by > 0 && out.layer != back.layer)
                    visit(std::array<Change, 2>{back, out},
                          point_.change(index(back), back.by, index(out), out.by));
        }
    }
    template <class Changes>
    bool fits(const Changes& changes) const {
        const auto row_after = [&](std::size_t row) {
            int64_t sum = rows_[row];
            for (const Change& change : changes) {
                const std::vector<Choice>& item = problem_.items[change.layer];
                sum += item[change.choice].weights[row] - item[place_.assignment[change.layer]].weights[row];
            }
            return sum;
        };
        return std::all_of(problem_.constraints.begin(), problem_.constraints.end(),
                           [&](const ChoiceConstraint& constraint) {
                               int64_t amount = 0;
                               for (const std::size_t row : constraint.rows)
                                   amount += quotient(row_after(row), constraint.divisor);
                               return (!constraint.lower || amount >= *constraint.lower) &&
                                      (!constraint.upper || amount <= *constraint.upper);
                           });
    }
    void add(const std::vector<int64_t>& weights, int64_t sign) {
        for (std::size_t row = 0; row < rows_.size(); ++row) rows_[row] += sign * weights[row];
    }

    const std::vector<std::vector<double>>& shares_;
    const ChoiceProblem& problem_;
    FreeSpace::Place place_;
    PolynomialPoint point_;
    std::vector<int64_t> rows_;
};

Proposals::Proposals(const FreeSpace& space, const Surrogate& surrogate, const Architecture& teacher)
    : space_(space) {
    const std::vector<std::vector<Choice>>& items = space.problem(0).items;
    // Every layer's choices in the company of first choices.
    const Assignment first(items.size(), 0);
    for (std::size_t layer = 0; layer < teacher.layers.size(); ++layer) {
        std::vector<double>& shares = shares_.emplace_back();
        for (std::size_t choice = 0; choice < items[layer].size(); ++choice) {
            Assignment assignment = first;
            assignment[layer] = choice;
            shares.push_back(
                share_of(surrogate, teacher, space.plan(0, assignment), static_cast<int64_t>(layer)));
        }
    }
}

Removal Proposals::removal(const FreeSpace::Place& place) const {
    Removal removal;
    for (std::size_t layer = 0; layer < shares_.size(); ++layer) {
        const double share = shares_[layer][place.assignment[layer]];
        if (share > 0) removal.push_back({static_cast<int64_t>(layer), share});
    }
    return removal;
}

FreeSpace::Place Proposals::descend(const LossPolynomial& polynomial, FreeSpace::Place start) const {
    Walk walk(*this, polynomial, std::move(start));
    while (walk.improve_one() || walk.improve_two()) {
    }
    return walk.place();
}

std::vector<FreeSpace::Place> Proposals::around(const LossPolynomial& polynomial,
                                                const FreeSpace::Place& from, std::size_t count) const {
    const Walk here(*this, polynomial, from);
    std::vector<FreeSpace::Place> places;
    for (const std::vector<Change>& way : here.best_changes(count)) {
        Walk walk = here;
        for (const Change& change : way) walk.take(change);
        while (walk.improve_one(way)) {
        }
        places.push_back(walk.place());
    }
    return places;
}

}  // namespace minipuzzle::nas
