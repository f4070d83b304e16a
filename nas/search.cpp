#include "nas/search.h"

#include <fmt/format.h>

#include <algorithm>

#include "nas/candidates.h"
#include "nas/free_search.h"
#include "nas/infeasible.h"
#include "nas/pareto.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::nas {

namespace {

constexpr std::size_t kListed = 100;  // candidates listed without `all`

// What is worth listing: the maximal students, and the predictor's optimum where it is none of them.
std::vector<Student> students_to_list(const Solution& solution) {
    std::vector<Student> students = solution.maximal;
    if (solution.optimum->value < students.front().value)
        students.insert(students.begin(), *solution.optimum);
    return students;
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

std::vector<StudentPlan> plans_of(const Space& space, const std::vector<Student>& students) {
    std::vector<StudentPlan> plans;
    for (const Student& student : students) plans.push_back(space.plan(student.point));
    return plans;
}

// The point of the space that drops as many of each type and has the same common width stands for it.
Student free_student(const StudentPlan& plan, const Space& space, const SearchProblem& problem) {
    Point point;
    for (const int64_t layer : plan.drop)
        ++point.dropped[static_cast<std::size_t>(
            type_of(problem.teacher.layers[static_cast<std::size_t>(layer)]))];
    for (std::size_t width = 0; width < space.widths().size(); ++width)
        if (plan.ffn_width && space.widths()[width].narrowed == plan.ffn_width) point.width = width;
    const Predicted predicted =
        predict_with(problem.options.predictor, problem.surrogate, problem.teacher, plan);
    return {.point = point,
            .free = plan,
            .total = memory_of(problem.teacher, plan, problem.options.workload).total(),
            .params = parameters(student_architecture(problem.teacher, plan)),
            .value = predicted.value};
}

bool is_listed(const StudentPlan& plan, const Space& space, const Solution& solution) {
    const std::vector<StudentPlan> plans = plans_of(space, solution.maximal);
    return std::find(plans.begin(), plans.end(), plan) != plans.end();
}

[[noreturn]] void fail_nothing_fits(const SearchProblem& problem, const std::optional<FreeStudent>& free) {
    if (free && !free->proven)
        throw Error(
            ErrorKind::infeasible,
            fmt::format("no student was found that fits, in the {} s of --solve-seconds; give it more",
                        problem.options.solve_seconds));
    fail_infeasible(problem);
}

// What is proven of the best predicted candidate. Rounding apart, the bound of a complete proof is the best
// value.
void add_proof(SearchResult& result, const Student& optimum, const std::optional<FreeStudent>& free) {
    result.bound = optimum.value;
    if (free) {
        result.proven = free->proven;
        result.solver = free->solver;
        result.seconds = free->seconds;
        if (!free->proven) result.bound = std::min(free->bound, optimum.value);
    }
    result.gap = std::max(0.0, result.candidates.front().predicted.value - result.bound);
}

// Rounds and finalists in the names of candidates; `ids` by the funnel's students.
void add_funnel(SearchResult& result, const FunnelResult& funnel, const std::vector<std::string>& ids) {
    for (const FunnelRound& round : funnel.rounds)
        result.rounds.push_back({.measured = round.measured,
                                 .fresh = round.fresh,
                                 .best = ids[round.best],
                                 .best_cost = round.best_cost,
                                 .rank_correlation = round.rank_correlation});
    for (const std::size_t i : funnel.finalists) result.finalists.push_back(ids[i]);
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
    if (surrogate.type_corrections && !options.ffn_widths.values.empty())
        fail_usage("--type-corrections go with one width for all FFNs, found --ffn-widths; use --ffn-width");
    const Space space(teacher, surrogate, options);
    Solution solution = solve(space, limits_of(options));
    if (solution.students == 0) fail_usage("the layer counts given keep no layer at all; keep at least one");
    const FreeSpace every(teacher, surrogate, options);
    std::optional<FreeStudent> free;
    // Corrections by type belong to counts: enumeration reaches every student that they tell apart.
    if (!surrogate.type_corrections && reaches_further(every, surrogate, options)) {
        free = search_free(every, plans_of(space, solution.maximal), options.solve_seconds);
        if (free->plan && !is_listed(*free->plan, space, solution))
            add_free(solution, free_student(*free->plan, space, {teacher, surrogate, options}));
    }
    if (!solution.optimum) fail_nothing_fits({teacher, surrogate, options}, free);

    SearchResult result = describe(teacher, options, surrogate);
    const bool measures = measurer && options.measure > 0;
    result.status = measures ? "measured" : "predicted_only";
    if (measures) result.select_by = options.select_by;
    const std::vector<Student> students = students_to_list(solution);
    FunnelResult funnel;
    if (measures) {
        std::vector<StudentPlan> starts;
        for (const Student& student : students) starts.push_back(plan_of(space, student));
        funnel = run_funnel({teacher, surrogate, every, starts}, {options.measure, options.rounds, select_by},
                            measurer);
    }

    const SearchContext context{teacher, scores, options, surrogate, space, solution};
    ListedCandidates listed = list_candidates(
        context, students, funnel, options.all ? students.size() + funnel.students.size() : kListed);
    result.candidates = std::move(listed.candidates);
    result.best = result.candidates.front().id;
    mark_measured(result, select_by);
    add_funnel(result, funnel, listed.funnel_ids);
    result.frontier = frontier_of(context);
    result.compositions = solution.students;
    result.predictor = uses_pairs(surrogate, options.predictor) ? Predictor::pairs : Predictor::additive;
    add_proof(result, *solution.optimum, free);
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
