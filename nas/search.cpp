#include "nas/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "nas/funnel.h"
#include "nas/infeasible.h"
#include "nas/pareto.h"
#include "nas/solver.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::nas {

namespace {

constexpr std::size_t kListed = 100;  // candidates listed without `all`

// The width as people read it: the teacher's own where nothing is narrowed, 0 where there is no single one.
int64_t printed_width(const Architecture& teacher, const Architecture& student, const StudentPlan& plan) {
    if (student.count(LayerType::ffn) == 0) return 0;
    return plan.ffn_width.value_or(teacher.ffn_width());
}

struct Context {
    const Architecture& teacher;
    const ScoreTable& scores;
    const Space& space;
    const Solution& solution;
    const LatencyTable* latency;  // may be null
};

Candidate candidate_of(const Context& context, const Student& student) {
    Candidate candidate;
    candidate.plan = context.space.plan(student.point);
    if (candidate.plan.ffn_width) candidate.plan.width_scores = context.scores.width_scores_file;
    const Architecture architecture = student_architecture(context.teacher, candidate.plan);
    candidate.pattern = architecture.pattern();
    candidate.mamba = architecture.count(LayerType::mamba);
    candidate.ffn = architecture.count(LayerType::ffn);
    candidate.attention = architecture.count(LayerType::attention);
    candidate.ffn_width = printed_width(context.teacher, architecture, candidate.plan);
    candidate.params = student.params;
    candidate.memory = context.space.memory(student.point);
    for (std::size_t fit = 0; fit < context.space.fits(); ++fit)
        candidate.fit_totals.push_back(context.space.fit_total(fit, student.point));
    if (context.latency) candidate.latency = context.latency->seconds(architecture);
    candidate.predicted = context.space.predicted(student.point);
    candidate.pareto_predicted = on_frontier(context.solution, student);
    return candidate;
}

std::vector<FrontierPoint> frontier_of(const Context& context) {
    std::vector<FrontierPoint> frontier;
    for (const Student& student : context.solution.frontier) {
        const StudentPlan plan = context.space.plan(student.point);
        frontier.push_back(
            {.total = student.total,
             .value = student.value,
             .drop = plan.drop,
             .ffn_width = printed_width(context.teacher, student_architecture(context.teacher, plan), plan)});
    }
    return frontier;
}

// What is worth listing: the maximal students, and the predictor's optimum where it is none of them.
std::vector<Student> students_to_list(const Solution& solution) {
    std::vector<Student> students = solution.maximal;
    if (solution.optimum->value < students.front().value)
        students.insert(students.begin(), *solution.optimum);
    return students;
}

// The best `limit` by prediction, but none of the measured ones is left out.
std::vector<std::size_t> listed(const std::vector<std::optional<Measured>>& measured, std::size_t limit) {
    std::size_t room = limit;
    for (const auto& measurement : measured)
        if (measurement && room > 0) --room;
    std::vector<std::size_t> indexes;
    for (std::size_t i = 0; i < measured.size(); ++i) {
        if (!measured[i] && room == 0) continue;
        if (!measured[i]) --room;
        indexes.push_back(i);
    }
    return indexes;
}

void mark_measured(SearchResult& result, SelectBy select_by) {
    std::vector<TradeOff> trade_offs;
    std::vector<Candidate*> measured;
    for (Candidate& candidate : result.candidates) {
        if (!candidate.measured) continue;
        measured.push_back(&candidate);
        trade_offs.push_back({candidate.memory.total(), cost(*candidate.measured, select_by)});
    }
    if (measured.empty()) return;
    for (const std::size_t i : pareto_set(trade_offs)) measured[i]->pareto_measured = true;
    // Equal measurements: the better predicted one, which stands first.
    const auto best = std::min_element(measured.begin(), measured.end(), [&](Candidate* a, Candidate* b) {
        return cost(*a->measured, select_by) < cost(*b->measured, select_by);
    });
    result.best = (*best)->id;
    std::vector<double> predictions, costs;
    for (std::size_t i = 0; i < measured.size(); ++i) {
        predictions.push_back(measured[i]->predicted.value);
        costs.push_back(trade_offs[i].value);
    }
    result.rank_correlation = spearman(predictions, costs);
}

SearchResult describe(const Architecture& teacher, const SearchOptions& options, const Surrogate& surrogate) {
    SearchResult result;
    result.objective = surrogate.objective;
    result.type_corrections = surrogate.type_corrections;
    result.budget_bytes = options.mem_budget;
    result.max_params = options.max_params;
    result.workload = options.workload;
    for (const Fit& fit : options.fits)
        result.constraints.push_back(
            {.context = fit.context,
             .batch = fit.batch,
             .bytes = budget_of(options, fit),
             .total = memory_of(teacher, workload_at(options.workload, fit)).total()});
    result.teacher_pattern = teacher.pattern();
    result.teacher_params = parameters(teacher);
    result.teacher_memory = memory_of(teacher, options.workload);
    return result;
}

}  // namespace

SearchResult search(const Architecture& teacher, const ScoreTable& scores, const SearchOptions& options,
                    const Measurer& measurer) {
    check_scores(scores, teacher, "scores");
    if (options.latency) check_latency(*options.latency, teacher);
    const SelectBy select_by = parse_select_by(options.select_by);
    Surrogate surrogate =
        make_surrogate(scores, options.objective ? *options.objective : default_objective(scores));
    surrogate.type_corrections = options.type_corrections;
    const Space space(teacher, surrogate, options);
    const Solution solution = solve(space, limits_of(options));
    if (solution.students == 0) fail_usage("the layer counts given keep no layer at all; keep at least one");
    if (!solution.optimum) fail_infeasible({teacher, surrogate, options}, solution);

    SearchResult result = describe(teacher, options, surrogate);
    const bool measures = measurer && options.measure > 0;
    result.status = measures ? "measured" : "predicted_only";
    if (measures) result.select_by = options.select_by;
    const std::vector<Student> students = students_to_list(solution);
    std::vector<std::optional<Measured>> measured(students.size());
    if (measures) measured = measure_spread(space, students, {options.measure, select_by}, measurer);

    const Context context{teacher, scores, space, solution, options.latency ? &*options.latency : nullptr};
    for (const std::size_t i : listed(measured, options.all ? students.size() : kListed)) {
        Candidate candidate = candidate_of(context, students[i]);
        candidate.id = fmt::format("c{:03}", result.candidates.size() + 1);
        candidate.measured = measured[i];
        result.candidates.push_back(std::move(candidate));
    }
    result.best = result.candidates.front().id;
    mark_measured(result, select_by);
    result.frontier = frontier_of(context);
    result.bound = solution.optimum->value;
    result.gap = students.front().value - result.bound;
    result.compositions = solution.students;
    return result;
}

const Candidate& find_candidate(const SearchResult& result, const std::string& id) {
    const std::string& wanted = id.empty() ? result.best : id;
    for (const Candidate& candidate : result.candidates)
        if (candidate.id == wanted) return candidate;
    fail_usage(fmt::format("candidate {}: expected one of {}..{}", wanted,
                           result.candidates.empty() ? "none" : result.candidates.front().id,
                           result.candidates.empty() ? "none" : result.candidates.back().id));
}

}  // namespace minipuzzle::nas
