#include "nas/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

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
    const SearchOptions& options;
    const Surrogate& surrogate;
    const Space& space;
    const Solution& solution;
};

// A student that may be listed.
struct Listing {
    StudentPlan plan;
    Student student;                      // its point counts only where it is one of the space
    std::optional<std::size_t> measured;  // index into the funnel's students
};

Candidate candidate_of(const Context& context, const Listing& listing) {
    Candidate candidate;
    candidate.plan = listing.plan;
    if (candidate.plan.ffn_width || !candidate.plan.ffn_widths.empty())
        candidate.plan.width_scores = context.scores.width_scores_file;
    const Architecture architecture = student_architecture(context.teacher, candidate.plan);
    candidate.pattern = architecture.pattern();
    candidate.mamba = architecture.count(LayerType::mamba);
    candidate.ffn = architecture.count(LayerType::ffn);
    candidate.attention = architecture.count(LayerType::attention);
    candidate.ffn_width = printed_width(context.teacher, architecture, candidate.plan);
    candidate.params = listing.student.params;
    candidate.memory = memory_of(context.teacher, listing.plan, context.options.workload);
    for (const Fit& fit : context.options.fits)
        candidate.fit_totals.push_back(
            memory_of(context.teacher, listing.plan, workload_at(context.options.workload, fit)).total());
    candidate.predicted = predict_additive(context.surrogate, context.teacher, listing.plan);
    candidate.pareto_predicted = on_frontier(context.solution, listing.student);
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

Listing listing_of(const Context& context, const StudentPlan& plan) {
    return {.plan = plan,
            .student = {.point = {},
                        .total = memory_of(context.teacher, plan, context.options.workload).total(),
                        .params = parameters(student_architecture(context.teacher, plan)),
                        .value = predict_additive(context.surrogate, context.teacher, plan).value},
            .measured = std::nullopt};
}

// The students of the space and the measured ones, best predicted first: the best `limit`, but none of the
// measured ones is left out.
std::vector<Listing> listed(const Context& context, const std::vector<Student>& students,
                            const FunnelResult& funnel, std::size_t limit) {
    std::vector<Listing> all;
    std::map<std::vector<int64_t>, std::vector<std::size_t>> measured;  // by what they drop
    for (std::size_t i = 0; i < funnel.students.size(); ++i)
        measured[funnel.students[i].plan.drop].push_back(i);
    std::vector<bool> is_listed(funnel.students.size(), false);
    for (const Student& student : students) {
        Listing listing{context.space.plan(student.point), student, std::nullopt};
        for (const std::size_t i : measured[listing.plan.drop])
            if (funnel.students[i].plan == listing.plan) {
                listing.measured = i;
                is_listed[i] = true;
            }
        all.push_back(std::move(listing));
    }
    for (std::size_t i = 0; i < funnel.students.size(); ++i) {
        if (is_listed[i]) continue;
        all.push_back(listing_of(context, funnel.students[i].plan));
        all.back().measured = i;
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Listing& a, const Listing& b) { return a.student.value < b.student.value; });
    std::size_t room = limit - std::min(limit, funnel.students.size());
    std::vector<Listing> best;
    for (Listing& listing : all) {
        if (!listing.measured && room == 0) continue;
        if (!listing.measured) --room;
        best.push_back(std::move(listing));
    }
    return best;
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
    const SelectBy select_by = parse_select_by(options.select_by);
    const Surrogate surrogate =
        make_surrogate(scores, options.objective ? *options.objective : default_objective(scores));
    const Space space(teacher, surrogate, options);
    const Solution solution = solve(space, limits_of(options));
    if (solution.students == 0) fail_usage("the layer counts given keep no layer at all; keep at least one");
    if (!solution.optimum) fail_infeasible({teacher, surrogate, options}, solution);

    SearchResult result = describe(teacher, options, surrogate);
    const bool measures = measurer && options.measure > 0;
    result.status = measures ? "measured" : "predicted_only";
    if (measures) result.select_by = options.select_by;
    const std::vector<Student> students = students_to_list(solution);
    FunnelResult funnel;
    if (measures) {
        const FreeSpace free(teacher, surrogate, options);
        std::vector<StudentPlan> starts;
        for (const Student& student : students) starts.push_back(space.plan(student.point));
        funnel = run_funnel({teacher, surrogate, free, starts}, {options.measure, options.rounds, select_by},
                            measurer);
    }

    const Context context{teacher, scores, options, surrogate, space, solution};
    std::vector<std::string> ids(funnel.students.size());
    for (const Listing& listing : listed(context, students, funnel,
                                         options.all ? students.size() + funnel.students.size() : kListed)) {
        Candidate candidate = candidate_of(context, listing);
        candidate.id = fmt::format("c{:03}", result.candidates.size() + 1);
        if (listing.measured) {
            const FunnelStudent& student = funnel.students[*listing.measured];
            candidate.measured = student.measured;
            candidate.round = student.round;
            candidate.predicted.fitted = student.fitted;
            ids[*listing.measured] = candidate.id;
        }
        result.candidates.push_back(std::move(candidate));
    }
    result.best = result.candidates.front().id;
    mark_measured(result, select_by);
    add_funnel(result, funnel, ids);
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
