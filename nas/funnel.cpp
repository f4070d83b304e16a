#include "nas/funnel.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "nas/spread.h"

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

// What the student gives up, as shares of the bytes of the space's largest student. The narrowing is what
// the kept FFNs would take more at the widest width.
Composition composition_of(const Space& space, const Point& point) {
    const auto total = [&](const Point& at) { return static_cast<double>(space.memory(at).total()); };
    Point kept = point;
    Composition given_up{};
    for (std::size_t t = 0; t < kTypes; ++t) {
        Point full = kept;
        full.dropped[t] = space.dropped_choices(static_cast<LayerType>(t)).front();
        given_up[t] = total(full) - total(kept);
        kept = full;
    }
    Point wide = kept;
    wide.width = 0;
    given_up[3] = total(wide) - total(kept);
    for (double& share : given_up) share /= std::max(1.0, total(wide));
    return given_up;
}

// Favours good predictions without a unit: 1 for the best, falling with the rank's square. Without it the
// sampling would spend itself on corners (no FFN at all) that nobody would deploy.
std::vector<double> rank_weights(std::size_t count) {
    std::vector<double> weights(count);
    for (std::size_t i = 0; i < count; ++i) {
        const double better_than = 1.0 - static_cast<double>(i) / static_cast<double>(count);
        weights[i] = better_than * better_than;
    }
    return weights;
}

class Funnel {
  public:
    Funnel(const Space& space, const std::vector<Student>& students, const FunnelOptions& options,
           const Measurer& measurer)
        : space_(space),
          students_(students),
          options_(options),
          measurer_(measurer),
          results_(students.size()) {
        for (const Student& student : students) compositions_.push_back(composition_of(space, student.point));
    }

    std::vector<std::optional<Measured>> run() {
        const std::size_t count = std::min(static_cast<std::size_t>(options_.measure), students_.size());
        const bool takes_all = count == students_.size();
        const std::size_t first = takes_all ? count : (count + 1) / 2;
        measure(farthest_points(compositions_, rank_weights(students_.size()), first));
        if (first < count) measure(most_promising(count - first));
        return results_;
    }

  private:
    void measure(const std::vector<std::size_t>& indexes) {
        std::vector<StudentPlan> plans;
        for (const std::size_t i : indexes) plans.push_back(plan_of(space_, students_[i]));
        const std::vector<Measured> measured = measurer_(plans);
        MP_ASSERT(measured.size() == plans.size());
        for (std::size_t k = 0; k < indexes.size(); ++k) results_[indexes[k]] = measured[k];
    }

    // The students not measured yet that look best once the predictor's error, as a smooth function of the
    // composition, is taken off. Measurement and prediction have different units when they are different
    // metrics: a line through the measured ones brings them together first.
    std::vector<std::size_t> most_promising(std::size_t count) const {
        std::vector<Composition> points;
        std::vector<double> predictions, costs, errors;
        for (std::size_t i = 0; i < students_.size(); ++i) {
            if (!results_[i]) continue;
            points.push_back(compositions_[i]);
            predictions.push_back(students_[i].value);
            costs.push_back(cost(*results_[i], options_.select_by));
        }
        const double slope = slope_of(predictions, costs);
        for (std::size_t k = 0; k < points.size(); ++k) errors.push_back(costs[k] - slope * predictions[k]);
        const QuadraticFit error(points, errors);
        std::vector<std::pair<double, std::size_t>> estimates;
        for (std::size_t i = 0; i < students_.size(); ++i)
            if (!results_[i])
                estimates.emplace_back(slope * students_[i].value + error.at(compositions_[i]), i);
        std::sort(estimates.begin(), estimates.end());
        std::vector<std::size_t> chosen;
        for (std::size_t k = 0; k < std::min(count, estimates.size()); ++k)
            chosen.push_back(estimates[k].second);
        std::sort(chosen.begin(), chosen.end());
        return chosen;
    }

    // Least squares of costs over predictions; 0 where the predictions do not differ or point the wrong way.
    static double slope_of(const std::vector<double>& predictions, const std::vector<double>& costs) {
        const double n = static_cast<double>(predictions.size());
        const double mean_x = std::accumulate(predictions.begin(), predictions.end(), 0.0) / n;
        const double mean_y = std::accumulate(costs.begin(), costs.end(), 0.0) / n;
        double xx = 0, xy = 0;
        for (std::size_t k = 0; k < predictions.size(); ++k) {
            xx += (predictions[k] - mean_x) * (predictions[k] - mean_x);
            xy += (predictions[k] - mean_x) * (costs[k] - mean_y);
        }
        return xx > 0 ? std::max(0.0, xy / xx) : 0.0;
    }

    const Space& space_;
    const std::vector<Student>& students_;
    const FunnelOptions& options_;
    const Measurer& measurer_;
    std::vector<Composition> compositions_;
    std::vector<std::optional<Measured>> results_;
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

std::vector<std::optional<Measured>> measure_spread(const Space& space, const std::vector<Student>& students,
                                                    const FunnelOptions& options, const Measurer& measurer) {
    MP_ASSERT(options.measure > 0 && !students.empty());
    return Funnel(space, students, options, measurer).run();
}

}  // namespace minipuzzle::nas
