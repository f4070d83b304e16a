#include "cli/search_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "cli/model_loading.h"
#include "cli/table.h"
#include "cli/units.h"

namespace minipuzzle::cli {
namespace {

constexpr std::size_t kShownCandidates = 10, kShownFrontier = 20, kColumns = 100;

std::string width_cell(int64_t width) { return width > 0 ? std::to_string(width) : "-"; }

std::string share_cell(int64_t total, int64_t teacher) {
    return teacher > 0
               ? fmt::format("{:.1f}", 100.0 * static_cast<double>(total) / static_cast<double>(teacher))
               : "-";
}

std::string frontier_table(const nas::SearchResult& result) {
    const auto& frontier = result.frontier;
    const int64_t knee = knee_of(frontier), teacher = result.teacher_memory.total();
    const std::vector<std::size_t> shown = spread_indexes(frontier.size(), kShownFrontier, knee);
    Table table({"bytes", "", "% of teacher", "value", "dropped", "kept", "ffn_width", ""});
    for (const std::size_t i : shown) {
        const nas::FrontierPoint& point = frontier[i];
        table.add({std::to_string(point.total), format_bytes(point.total), share_cell(point.total, teacher),
                   cell(point.value, 6), std::to_string(point.drop.size()),
                   kept_text(result.teacher_pattern, point.drop), width_cell(point.ffn_width),
                   static_cast<int64_t>(i) == knee ? "<- knee" : ""});
    }
    std::string text = fmt::format("frontier, {} points over all budgets", frontier.size());
    if (frontier.size() > shown.size()) text += fmt::format(", {} of them shown", shown.size());
    return text + "\n" + table.text();
}

// "45/48/5": as kept_text, where there is little room.
std::string counts_cell(const nas::Candidate& candidate) {
    return fmt::format("{}/{}/{}", candidate.mamba, candidate.ffn, candidate.attention);
}

std::string tasks_cell(const nas::TaskMeasurement& tasks) {
    return tasks.standard_error ? fmt::format("{:.4f} +- {:.4f}", tasks.accuracy, *tasks.standard_error)
                                : cell(tasks.accuracy);
}

// The students that were distilled for a while; nothing where none was.
std::string tournament_text(const nas::SearchResult& result) {
    if (result.tournament.empty()) return "";
    Table table({"id", "loss before", "loss", "kl", "accuracy", "agreement", "tasks", ""});
    for (const nas::TournamentEntry& entry : result.tournament)
        table.add({entry.id, cell(entry.loss_before), cell(entry.after.loss), cell(entry.after.kl),
                   cell(entry.after.next_token_accuracy), cell(entry.after.top1_agreement),
                   entry.after.tasks ? tasks_cell(*entry.after.tasks) : "-",
                   entry.id == result.best ? "<- best" : ""});
    return fmt::format("tournament, each distilled on {} tokens\n{}\n", result.tournament.front().tokens,
                       table.text());
}

// A table of students. Figures that none of them has are left out; where a latency or tasks take their room
// the parameters, where both do KL.
std::string students_table(const nas::SearchResult& result, const std::vector<const nas::Candidate*>& shown) {
    const auto any = [&](auto has) { return std::any_of(shown.begin(), shown.end(), has); };
    const bool measured = any([](const nas::Candidate* each) { return each->measured.has_value(); });
    const bool tasks = any([](const auto* each) { return each->measured && each->measured->tasks; });
    const bool timed = any([](const nas::Candidate* each) { return each->latency.has_value(); });
    const bool params = !tasks && !timed, kl = measured && !(tasks && timed);
    std::vector<std::string> header = {"id", "M/F/A", "width"};
    const auto head = [&](bool there, const char* heading) {
        if (there) header.push_back(heading);
    };
    head(params, "params");
    head(true, "memory");
    head(timed, "ms");
    head(true, "predicted");
    head(measured, "loss");
    head(kl, "kl");
    head(measured, "accuracy");
    head(measured, "agree");
    head(tasks, "tasks");
    head(true, "");
    Table table(header);
    for (const nas::Candidate* each : shown) {
        const auto& figures = each->measured;
        std::vector<std::string> row = {each->id, counts_cell(*each), width_cell(each->ffn_width)};
        const auto add = [&](bool there, const std::optional<double>& value, int decimals = 4) {
            if (there) row.push_back(cell(value, decimals));
        };
        const auto figure = [&](double nas::Measured::*of) {
            return figures ? std::optional((*figures).*of) : std::nullopt;
        };
        if (params) row.push_back(format_count(each->params));
        row.push_back(format_bytes(each->memory.total()));
        add(timed, each->latency ? std::optional(1e3 * *each->latency) : std::nullopt, 3);
        add(true, each->predicted.value);
        add(measured, figure(&nas::Measured::loss));
        add(kl, figure(&nas::Measured::kl));
        add(measured, figure(&nas::Measured::next_token_accuracy));
        add(measured, figure(&nas::Measured::top1_agreement));
        add(tasks, figures && figures->tasks ? std::optional(figures->tasks->accuracy) : std::nullopt);
        row.push_back(each->id == result.best ? "<- best" : "");
        table.add(std::move(row));
    }
    return table.text();
}

std::string candidate_table(const nas::SearchResult& result) {
    std::vector<const nas::Candidate*> shown, finalists;
    for (const nas::Candidate& candidate : result.candidates)
        if (shown.size() < kShownCandidates || candidate.id == result.best) shown.push_back(&candidate);
    for (const std::string& id : result.finalists) finalists.push_back(&nas::find_candidate(result, id));
    std::string text;
    if (!finalists.empty())
        text = fmt::format("finalists, {}\n{}\n", finalists.size(), students_table(result, finalists));
    return text + fmt::format("candidates, {} of {} in order of prediction\n{}", shown.size(),
                              result.candidates.size(), students_table(result, shown));
}

// Costs are the measurement, or its negation where more is better.
std::string rounds_table(const nas::SearchResult& result) {
    if (result.rounds.empty()) return "";
    Table table({"round", "measured", "new", "best", "its " + result.select_by, "Spearman"});
    for (std::size_t i = 0; i < result.rounds.size(); ++i) {
        const nas::SearchRound& round = result.rounds[i];
        table.add({std::to_string(i + 1), std::to_string(round.measured), std::to_string(round.fresh),
                   round.best, cell(std::fabs(round.best_cost)), cell(round.rank_correlation)});
    }
    return "rounds of measuring; Spearman: a round's students as foretold against measured\n" + table.text() +
           "\n";
}

std::string corrections_text(const nas::TypeCorrections& corrections) {
    std::string text;
    for (const LayerType type : kLayerTypes) {
        const auto& of = corrections.types[static_cast<std::size_t>(type)];
        text += fmt::format("{} {} weight {:.2f} growth {:.2f}", text.empty() ? "" : ",", name(type),
                            of.weight, of.growth);
    }
    return wrapped(fmt::format("sums corrected per type, from {} sets of {}:{}", corrections.sets,
                               corrections.origin, text),
                   kColumns);
}

// What is proven of the best predicted student.
std::string proof_text(const nas::SearchResult& result) {
    const std::string by =
        result.seconds ? fmt::format("{}, {:.1f} s", result.solver, *result.seconds) : result.solver;
    return wrapped(
        fmt::format(
            "proof ({} predictor, {}): no student within the limits is predicted below {:.6f}; gap {}",
            name(result.predictor), by, result.bound,
            result.gap == 0 ? "0" : fmt::format("{:.6f}", result.gap)),
        kColumns);
}

std::string asked_text(const nas::SearchResult& result) {
    std::string text = fmt::format(
        "{}; objective {}; {} compositions considered\n",
        !result.tournament.empty()
            ? "chosen by a tournament, by " + result.select_by
            : (result.status == "measured" ? "chosen by measured " + result.select_by : "predicted only"),
        name(result.objective), result.compositions);
    text += wrapped("workload: " + describe(result.workload), kColumns);
    if (result.budget_bytes >= 0)
        text += fmt::format("budget {} bytes ({})\n", result.budget_bytes, format_bytes(result.budget_bytes));
    if (result.max_params) text += fmt::format("budget {} parameters\n", *result.max_params);
    text += fmt::format("teacher {} parameters, {} bytes ({})\n", result.teacher_params,
                        result.teacher_memory.total(), format_bytes(result.teacher_memory.total()));
    return result.type_corrections ? text + corrections_text(*result.type_corrections) : text;
}

// A pattern has no blanks to break at.
std::string pattern_text(const std::string& pattern) {
    std::string text;
    for (std::size_t at = 0; at < pattern.size(); at += kColumns - 2)
        text += "  " + pattern.substr(at, kColumns - 2) + "\n";
    return text;
}

std::string best_text(const nas::SearchResult& result) {
    const nas::Candidate& best = nas::find_candidate(result, "");
    std::string text =
        fmt::format("best {}: {} parameters, {} bytes ({}), {}\n", best.id, best.params, best.memory.total(),
                    format_bytes(best.memory.total()), kept_text(result.teacher_pattern, best.plan.drop));
    text += pattern_text(best.pattern);
    text += wrapped(fmt::format("drops {}", fmt::join(best.plan.drop, ", ")), kColumns);
    for (std::size_t i = 0; i < result.constraints.size(); ++i) {
        const nas::Constraint& at = result.constraints[i];
        text +=
            wrapped(fmt::format("context {}, batch {}: {} bytes ({}) of at most {}; the teacher takes {}",
                                at.context, at.batch, best.fit_totals[i], format_bytes(best.fit_totals[i]),
                                format_bytes(at.bytes), format_bytes(at.total)),
                    kColumns);
    }
    if (best.latency) text += fmt::format("predicted latency {:.4f} ms\n", 1e3 * *best.latency);
    if (result.rank_correlation)
        text += fmt::format("Spearman, predicted against measured: {:.4f}\n", *result.rank_correlation);
    return text;
}

// a without b; both ascending.
std::vector<int64_t> without(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
    std::vector<int64_t> left;
    std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(left));
    return left;
}

std::vector<const nas::Candidate*> found(const nas::SearchResult& result, const StudentPlan& plan) {
    std::vector<const nas::Candidate*> found;
    for (const nas::Candidate& candidate : result.candidates)
        if (same_student(plan, candidate)) found.push_back(&candidate);
    return found;
}

// 1 for the best predicted; the file's order is the prediction's, but for what was proposed later.
int64_t rank_of(const nas::SearchResult& result, const nas::Candidate& candidate) {
    return 1 + std::count_if(result.candidates.begin(), result.candidates.end(), [&](const auto& other) {
               return other.predicted.value < candidate.predicted.value;
           });
}

}  // namespace

int64_t knee_of(const std::vector<nas::FrontierPoint>& frontier) {
    if (frontier.size() < 3) return -1;
    const nas::FrontierPoint &first = frontier.front(), &last = frontier.back();
    const double width = static_cast<double>(last.total - first.total), height = first.value - last.value;
    int64_t knee = -1;
    double farthest = 0;
    for (std::size_t i = 1; i + 1 < frontier.size(); ++i) {
        const double x = static_cast<double>(frontier[i].total - first.total) / width;
        const double y = (frontier[i].value - last.value) / height;
        const double below = 1 - x - y;  // distance to x + y = 1, up to a constant factor
        if (below > farthest) {
            farthest = below;
            knee = static_cast<int64_t>(i);
        }
    }
    return knee;
}

std::string search_summary(const nas::SearchResult& result) {
    return asked_text(result) + proof_text(result) + best_text(result) + "\n" + rounds_table(result) +
           tournament_text(result) + candidate_table(result) + "\n" + frontier_table(result);
}

std::string kept_text(const std::string& teacher_pattern, const std::vector<int64_t>& drop) {
    int64_t mamba = 0, ffn = 0, attention = 0;
    for (std::size_t i = 0; i < teacher_pattern.size(); ++i) {
        if (std::binary_search(drop.begin(), drop.end(), static_cast<int64_t>(i))) continue;
        ++(teacher_pattern[i] == 'M' ? mamba : teacher_pattern[i] == '*' ? attention : ffn);
    }
    return fmt::format("{} M, {} F, {} A", mamba, ffn, attention);
}

std::string layers_text(const std::string& teacher_pattern, const std::vector<int64_t>& layers) {
    std::string text;
    for (const int64_t layer : layers) {
        const char letter = teacher_pattern[static_cast<std::size_t>(layer)];
        text += fmt::format("{}{} {}", text.empty() ? "" : ", ", layer,
                            letter == 'M'   ? 'M'
                            : letter == '*' ? 'A'
                                            : 'F');
    }
    return text.empty() ? "none" : text;
}

bool same_student(const StudentPlan& plan, const nas::Candidate& candidate) {
    return plan.drop == candidate.plan.drop && plan.ffn_widths == candidate.plan.ffn_widths &&
           plan.mamba_heads_per_group == candidate.plan.mamba_heads_per_group &&
           (!plan.ffn_width || *plan.ffn_width == candidate.ffn_width);
}

Json standing_json(const nas::SearchResult& result, const StudentPlan& plan) {
    const nas::Candidate& best = nas::find_candidate(result, "");
    const auto matches = found(result, plan);
    Json json = {{"rank", nullptr}, {"of", result.candidates.size()}, {"candidate", nullptr}};
    if (!matches.empty()) {
        json["rank"] = rank_of(result, *matches.front());
        json["candidate"] = matches.front()->id;
    }
    json["best"] = best.id;
    json["kept_by_best"] = without(plan.drop, best.plan.drop);
    json["dropped_by_best"] = without(best.plan.drop, plan.drop);
    return json;
}

std::string standing_text(const nas::SearchResult& result, const StudentPlan& plan) {
    for (const int64_t layer : plan.drop)
        if (layer >= static_cast<int64_t>(result.teacher_pattern.size()))
            fail_input(fmt::format("the plan drops layer {}, the search's teacher has {} layers", layer,
                                   result.teacher_pattern.size()));
    const nas::Candidate& best = nas::find_candidate(result, "");
    const auto matches = found(result, plan);
    std::string text = fmt::format("objective {}; {}\n", name(result.objective),
                                   result.type_corrections ? "sums corrected per type" : "sums as they are");
    if (matches.empty()) {
        text += wrapped(fmt::format("the plan is none of the {} candidates listed (search --all lists every "
                                    "maximal one)",
                                    result.candidates.size()),
                        kColumns);
    } else {
        Table table({"", "id", "rank", "kept", "ffn_width", "params", "bytes", "predicted", "loss"});
        const auto add = [&](const char* who, const nas::Candidate& each) {
            table.add({who, each.id, fmt::format("{} of {}", rank_of(result, each), result.candidates.size()),
                       kept_text(result.teacher_pattern, each.plan.drop), width_cell(each.ffn_width),
                       std::to_string(each.params), format_bytes(each.memory.total()),
                       cell(each.predicted.value, 6),
                       cell(each.measured ? std::optional(each.measured->loss) : std::nullopt)});
        };
        add("plan", *matches.front());
        add("best", best);
        text += table.text();
    }
    text +=
        wrapped("the best keeps " + layers_text(result.teacher_pattern, without(plan.drop, best.plan.drop)),
                kColumns);
    return text +
           wrapped("and drops " + layers_text(result.teacher_pattern, without(best.plan.drop, plan.drop)),
                   kColumns);
}

}  // namespace minipuzzle::cli
