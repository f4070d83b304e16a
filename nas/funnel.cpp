#include "nas/funnel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "nas/proposals.h"
#include "nas/rise_process.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::nas {

namespace {

struct SelectByName {
    SelectBy select_by;
    std::string_view name;
};
constexpr SelectByName kSelectBy[] = {{SelectBy::loss, "loss"},
                                      {SelectBy::kl, "kl"},
                                      {SelectBy::accuracy, "accuracy"},
                                      {SelectBy::agreement, "agreement"},
                                      {SelectBy::tasks, "tasks"}};

constexpr std::size_t kStarts = 200;   // of which a round descends, best by the fit
constexpr std::size_t kFromBest = 10;  // measured students that it descends from, too
constexpr std::size_t kCentres = 16;   // students whose surroundings join the pool
constexpr std::size_t kAround = 40;    // of each
constexpr std::size_t kPool = 400;     // the best of all of them, from which a round takes
constexpr double kCurious = 1;         // standard deviations that an unsure student is given in advance
constexpr double kHopeful = 3;         // beyond which nothing better is expected
constexpr std::size_t kFinalists = 5;
constexpr double kDifferent = 0.2;

bool same_units(Objective objective, SelectBy select_by) {
    return (objective == Objective::loss_delta && select_by == SelectBy::loss) ||
           (objective == Objective::kl && select_by == SelectBy::kl);
}

// A student that may be measured.
struct Proposal {
    FreeSpace::Place place;
    double rise = 0;  // as the fit predicts it
};

class Funnel {
  public:
    Funnel(const FunnelProblem& problem, const FunnelOptions& options, const Measurer& measurer)
        : problem_(problem),
          options_(options),
          measurer_(measurer),
          proposals_(problem.space, problem.surrogate, problem.teacher),
          process_(problem.teacher, problem.surrogate,
                   same_units(problem.surrogate.objective, options.select_by)) {
        for (const StudentPlan& start : problem.starts)
            if (std::optional<FreeSpace::Place> place = problem.space.place(start))
                if (problem.space.fits(start)) starts_.push_back(std::move(*place));
    }

    FunnelResult run() {
        for (int64_t round = 1; round <= options_.rounds; ++round) {
            const int64_t left = options_.measure - static_cast<int64_t>(result_.students.size());
            const int64_t rounds_left = options_.rounds - round + 1;
            const std::size_t count = static_cast<std::size_t>((left + rounds_left - 1) / rounds_left);
            if (count == 0) break;
            if (round > 1) process_.fit(points_, rises_);
            std::vector<Proposal> pool = propose();
            if (pool.empty()) break;
            const bool last = rounds_left == 1;
            std::vector<std::size_t> taken = take(pool, count, last ? 0 : kCurious);
            if (taken.empty()) break;
            measure(pool, taken, round);
        }
        choose_finalists();
        return std::move(result_);
    }

  private:
    using Key = std::pair<std::size_t, Assignment>;
    static Key key(const FreeSpace::Place& place) { return {place.width, place.assignment}; }

    std::optional<double> width_term(std::size_t width) const { return problem_.space.widths()[width].term; }
    ProcessPoint point(const FreeSpace::Place& place) const {
        return {proposals_.removal(place), width_term(place.width)};
    }

    // The best students by the fit that were not measured yet.
    std::vector<Proposal> propose() {
        std::map<std::size_t, LossPolynomial> polynomials;
        const auto polynomial = [&](std::size_t width) -> const LossPolynomial& {
            const auto found = polynomials.find(width);
            if (found != polynomials.end()) return found->second;
            return polynomials.emplace(width, process_.polynomial(width_term(width))).first->second;
        };
        std::vector<Proposal> pool;
        std::set<Key> seen = measured_;
        const auto add = [&](FreeSpace::Place place) {
            if (!seen.insert(key(place)).second) return;
            const double rise = polynomial(place.width).at(proposals_.removal(place));
            pool.push_back({std::move(place), rise});
        };
        const auto by_rise = [](const Proposal& a, const Proposal& b) { return a.rise < b.rise; };

        std::vector<Proposal> starts;
        for (const FreeSpace::Place& start : starts_)
            starts.push_back({start, polynomial(start.width).at(proposals_.removal(start))});
        if (!rises_.empty()) std::stable_sort(starts.begin(), starts.end(), by_rise);
        starts.resize(std::min(starts.size(), kStarts));
        if (rises_.empty()) add(starts_.front());
        std::vector<FreeSpace::Place> centres;
        for (const std::size_t k : best_measured(kFromBest)) {
            centres.push_back(places_[k]);
            add(proposals_.descend(polynomial(places_[k].width), places_[k]));
        }
        for (const Proposal& start : starts)
            add(proposals_.descend(polynomial(start.place.width), start.place));
        std::stable_sort(pool.begin() + (rises_.empty() ? 1 : 0), pool.end(), by_rise);
        for (std::size_t k = 0; k < pool.size() && centres.size() < kCentres; ++k)
            centres.push_back(pool[k].place);
        for (const FreeSpace::Place& centre : centres)
            for (FreeSpace::Place& place : proposals_.around(polynomial(centre.width), centre, kAround))
                add(std::move(place));
        std::stable_sort(pool.begin() + (rises_.empty() ? 1 : 0), pool.end(), by_rise);
        pool.resize(std::min(pool.size(), kPool));
        return pool;
    }

    // Upper confidence bounds of a batch (GP-BUCB, Desautels, Krause & Burdick 2014): one after the other the
    // student of the least mean - curious * deviation, where the deviation falls as if those taken before had
    // been measured. Nothing where even kHopeful deviations promise nothing better than what was measured.
    std::vector<std::size_t> take(const std::vector<Proposal>& pool, std::size_t count, double curious) {
        std::vector<ProcessPoint> points;
        for (const Proposal& proposal : pool) points.push_back(point(proposal.place));
        Eigen::MatrixXd covariance = process_.covariance(points);
        const auto deviation = [&](std::size_t k) {
            const Eigen::Index i = static_cast<Eigen::Index>(k);
            return std::sqrt(std::max(0.0, covariance(i, i)));
        };
        if (!rises_.empty()) {
            const double least = *std::min_element(rises_.begin(), rises_.end());
            bool hope = false;
            for (std::size_t k = 0; k < pool.size(); ++k)
                hope |= pool[k].rise - kHopeful * deviation(k) < least;
            if (!hope) return {};
        }
        std::vector<std::size_t> taken;
        std::vector<bool> is_taken(pool.size(), false);
        while (taken.size() < std::min(count, pool.size())) {
            std::size_t next = pool.size();
            double least = 0;
            for (std::size_t k = 0; k < pool.size(); ++k) {
                if (is_taken[k]) continue;
                const double bound = pool[k].rise - curious * deviation(k);
                if (next < pool.size() && bound >= least) continue;
                least = bound;
                next = k;
            }
            // The first of all is the predictor's own choice.
            if (taken.empty() && rises_.empty()) next = 0;
            taken.push_back(next);
            is_taken[next] = true;
            const Eigen::Index n = static_cast<Eigen::Index>(next);
            const Eigen::VectorXd with = covariance.col(n);
            const double total = with(n) + process_.noise(pool[next].rise);
            if (total > 0) covariance -= with * with.transpose() / total;
        }
        return taken;
    }

    void measure(const std::vector<Proposal>& pool, const std::vector<std::size_t>& taken, int64_t round) {
        std::vector<StudentPlan> plans;
        for (const std::size_t k : taken)
            plans.push_back(problem_.space.plan(pool[k].place.width, pool[k].place.assignment));
        if (round == 1) plans.emplace_back();
        const std::vector<Measured> measured = measurer_(plans);
        MP_ASSERT(measured.size() == plans.size());
        if (round == 1) teacher_cost_ = cost(measured.back(), options_.select_by);
        std::vector<double> fitted, costs;
        for (std::size_t n = 0; n < taken.size(); ++n) {
            const Proposal& proposal = pool[taken[n]];
            fitted.push_back(teacher_cost_ + proposal.rise);
            costs.push_back(cost(measured[n], options_.select_by));
            result_.students.push_back({plans[n], measured[n], round, fitted.back()});
            places_.push_back(proposal.place);
            measured_.insert(key(proposal.place));
            points_.push_back(point(proposal.place));
            rises_.push_back(costs.back() - teacher_cost_);
        }
        const std::size_t best = best_measured(1).front();
        result_.rounds.push_back({.measured = static_cast<int64_t>(result_.students.size()),
                                  .fresh = static_cast<int64_t>(taken.size()),
                                  .best = best,
                                  .best_cost = teacher_cost_ + rises_[best],
                                  .rank_correlation = spearman(fitted, costs)});
    }

    // Indexes of measured students, the least cost first.
    std::vector<std::size_t> best_measured(std::size_t count) const {
        std::vector<std::size_t> order(rises_.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return rises_[a] < rises_[b]; });
        order.resize(std::min(order.size(), count));
        return order;
    }

    void choose_finalists() {
        const std::vector<std::size_t> order = best_measured(rises_.size());
        std::vector<std::size_t>& finalists = result_.finalists;
        finalists.assign(order.begin(),
                         order.begin() + static_cast<std::ptrdiff_t>(std::min(order.size(), kFinalists)));
        if (order.empty()) return;
        const auto differs = [&](std::size_t k) {
            return difference(result_.students[order[0]].plan, result_.students[k].plan) >= kDifferent;
        };
        if (std::any_of(finalists.begin(), finalists.end(), differs)) return;
        const auto other = std::find_if(order.begin(), order.end(), differs);
        if (other != order.end()) finalists.back() = *other;
    }

    const FunnelProblem& problem_;
    const FunnelOptions& options_;
    const Measurer& measurer_;
    const Proposals proposals_;
    RiseProcess process_;
    std::vector<FreeSpace::Place> starts_;
    std::set<Key> measured_;
    // Of the measured students, in order.
    std::vector<FreeSpace::Place> places_;
    std::vector<ProcessPoint> points_;
    std::vector<double> rises_;
    double teacher_cost_ = 0;
    FunnelResult result_;
};

}  // namespace

SelectBy parse_select_by(const std::string& text) {
    std::string known;
    for (const SelectByName& entry : kSelectBy) {
        if (entry.name == text) return entry.select_by;
        known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.name);
    }
    fail_usage(fmt::format("--select-by {}: expected one of {}", text, known));
}

double cost(const Measured& measured, SelectBy select_by) {
    switch (select_by) {
        case SelectBy::loss:
            return measured.loss;
        case SelectBy::kl:
            return measured.kl;
        case SelectBy::accuracy:
            return -measured.next_token_accuracy;
        case SelectBy::agreement:
            return -measured.top1_agreement;
        case SelectBy::tasks:
            MP_ASSERT(measured.tasks.has_value());
            return -measured.tasks->accuracy;
    }
    MP_ASSERT(false);
}

double difference(const StudentPlan& best, const StudentPlan& other) {
    if (best.drop.empty()) return best.drop == other.drop ? 0 : 1;
    int64_t kept = 0;
    for (const int64_t layer : best.drop) kept += other.drops(layer) ? 0 : 1;
    return static_cast<double>(kept) / static_cast<double>(best.drop.size());
}

FunnelResult run_funnel(const FunnelProblem& problem, const FunnelOptions& options,
                        const Measurer& measurer) {
    MP_ASSERT(options.measure > 0 && options.rounds > 0 && !problem.starts.empty());
    return Funnel(problem, options, measurer).run();
}

}  // namespace minipuzzle::nas
