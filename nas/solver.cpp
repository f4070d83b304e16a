#include "nas/solver.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "nas/pareto.h"

namespace minipuzzle::nas {

namespace {

Student student_at(const Space& space, const Point& point) {
    return {.point = point,
            .total = space.memory(point).total(),
            .params = space.params(point),
            .value = space.value(point)};
}

bool fits(const Space& space, const Limits& limits, const std::optional<Point>& point) {
    return point && space.within(limits, *point);
}

bool is_maximal(const Space& space, const Limits& limits, const Point& point) {
    for (const LayerType type : kLayerTypes)
        if (fits(space, limits, space.with_more(point, type))) return false;
    return !fits(space, limits, space.wider(point));
}

}  // namespace

StudentPlan plan_of(const Space& space, const Student& student) {
    return student.free ? *student.free : space.plan(student.point);
}

bool better(const Student& a, const Student& b) {
    return std::tie(a.value, a.total, a.point) < std::tie(b.value, b.total, b.point);
}

bool on_frontier(const Solution& solution, const Student& student) {
    const auto at = std::lower_bound(solution.frontier.begin(), solution.frontier.end(), student.total,
                                     [](const Student& point, int64_t total) { return point.total < total; });
    return at != solution.frontier.end() && at->total == student.total && at->value == student.value;
}

void add_free(Solution& solution, Student student) {
    if (!solution.optimum || student.value < solution.optimum->value) solution.optimum = student;
    solution.maximal.insert(
        std::lower_bound(solution.maximal.begin(), solution.maximal.end(), student, better), student);
    std::vector<Student> all = solution.frontier;
    all.push_back(std::move(student));
    std::vector<TradeOff> trade_offs;
    for (const Student& each : all) trade_offs.push_back({.total = each.total, .value = each.value});
    solution.frontier.clear();
    for (const std::size_t i : pareto_set(trade_offs)) solution.frontier.push_back(all[i]);
}

Solution solve(const Space& space, const Limits& limits) {
    Solution solution;
    solution.smallest_total = solution.smallest_params = std::numeric_limits<int64_t>::max();
    solution.smallest_seconds = std::numeric_limits<double>::infinity();
    std::vector<Student> all;
    std::vector<TradeOff> trade_offs;
    space.for_each([&](const Point& point) {
        all.push_back(student_at(space, point));
        const Student& student = all.back();
        trade_offs.push_back({.total = student.total, .value = student.value});
        solution.smallest_total = std::min(solution.smallest_total, student.total);
        solution.smallest_params = std::min(solution.smallest_params, student.params);
        if (limits.seconds)
            solution.smallest_seconds = std::min(solution.smallest_seconds, space.seconds(point));
        if (!space.within(limits, point)) return;
        if (!solution.optimum || better(student, *solution.optimum)) solution.optimum = student;
        if (is_maximal(space, limits, point)) solution.maximal.push_back(student);
    });
    solution.students = static_cast<int64_t>(all.size());
    std::sort(solution.maximal.begin(), solution.maximal.end(), better);
    for (const std::size_t i : pareto_set(trade_offs)) solution.frontier.push_back(all[i]);
    return solution;
}

}  // namespace minipuzzle::nas
