#include "nas/candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace minipuzzle::nas {

namespace {

// The width as people read it: the teacher's own where nothing is narrowed, 0 where there is no single one.
int64_t printed_width(const Architecture& teacher, const Architecture& student, const StudentPlan& plan) {
    if (student.count(LayerType::ffn) == 0) return 0;
    if (!plan.ffn_widths.empty()) return student.ffn_width();
    return plan.ffn_width.value_or(teacher.ffn_width());
}

// A student that may be listed.
struct Listing {
    StudentPlan plan;
    Student student;                      // its point counts only where it is one of the space
    std::optional<std::size_t> measured;  // index into the funnel's students
};

Candidate candidate_of(const SearchContext& context, const Listing& listing) {
    Candidate candidate;
    candidate.plan = listing.plan;
    if (candidate.plan.ffn_width || !candidate.plan.ffn_widths.empty() ||
        candidate.plan.mamba_heads_per_group)
        candidate.plan.width_scores = context.scores.width_scores_file;
    const Architecture architecture = student_architecture(context.teacher, candidate.plan);
    candidate.pattern = architecture.pattern();
    candidate.mamba = architecture.count(LayerType::mamba);
    candidate.ffn = architecture.count(LayerType::ffn);
    candidate.attention = architecture.count(LayerType::attention);
    candidate.ffn_width = printed_width(context.teacher, architecture, candidate.plan);
    candidate.params = listing.student.params;
    const auto memory_at = [&](const Workload& workload) {
        return memory_of(context.teacher, listing.plan, workload);
    };
    candidate.memory = memory_at(context.options.workload);
    for (const Fit& fit : context.options.fits)
        candidate.fit_totals.push_back(memory_at(workload_at(context.options.workload, fit)).total());
    if (context.options.latency) candidate.latency = context.options.latency->seconds(architecture);
    candidate.predicted =
        predict_with(context.options.predictor, context.surrogate, context.teacher, listing.plan);
    candidate.pareto_predicted = on_frontier(context.solution, listing.student);
    return candidate;
}

Listing listing_of(const SearchContext& context, const StudentPlan& plan) {
    return {
        .plan = plan,
        .student = {.point = {},
                    .total = memory_of(context.teacher, plan, context.options.workload).total(),
                    .params = parameters(student_architecture(context.teacher, plan)),
                    .value = predict_with(context.options.predictor, context.surrogate, context.teacher, plan)
                                 .value},
        .measured = std::nullopt};
}

// The students of the space and the measured ones, best predicted first: the best `limit`, but none of the
// measured ones is left out.
std::vector<Listing> listed(const SearchContext& context, const std::vector<Student>& students,
                            const FunnelResult& funnel, std::size_t limit) {
    std::vector<Listing> all;
    std::map<std::vector<int64_t>, std::vector<std::size_t>> measured;  // by what they drop
    for (std::size_t i = 0; i < funnel.students.size(); ++i)
        measured[funnel.students[i].plan.drop].push_back(i);
    std::vector<bool> is_listed(funnel.students.size(), false);
    for (const Student& student : students) {
        Listing listing{plan_of(context.space, student), student, std::nullopt};
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

}  // namespace

ListedCandidates list_candidates(const SearchContext& context, const std::vector<Student>& students,
                                 const FunnelResult& funnel, std::size_t limit) {
    ListedCandidates result;
    result.funnel_ids.resize(funnel.students.size());
    for (const Listing& listing : listed(context, students, funnel, limit)) {
        Candidate candidate = candidate_of(context, listing);
        candidate.id = fmt::format("c{:03}", result.candidates.size() + 1);
        if (listing.measured) {
            const FunnelStudent& student = funnel.students[*listing.measured];
            candidate.measured = student.measured;
            candidate.round = student.round;
            candidate.predicted.fitted = student.fitted;
            result.funnel_ids[*listing.measured] = candidate.id;
        }
        result.candidates.push_back(std::move(candidate));
    }
    return result;
}

std::vector<FrontierPoint> frontier_of(const SearchContext& context) {
    std::vector<FrontierPoint> frontier;
    for (const Student& student : context.solution.frontier) {
        const StudentPlan plan = plan_of(context.space, student);
        frontier.push_back(
            {.total = student.total,
             .value = student.value,
             .drop = plan.drop,
             .ffn_width = printed_width(context.teacher, student_architecture(context.teacher, plan), plan)});
    }
    return frontier;
}

}  // namespace minipuzzle::nas
