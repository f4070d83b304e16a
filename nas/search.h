// `search`: the student that fits the budget and loses least, by prediction and then by measurement.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "nas/latency.h"
#include "nas/memory_model.h"
#include "nas/type_corrections.h"
#include "runtime/score_table.h"
#include "runtime/student_plan.h"

namespace minipuzzle::nas {

// An inclusive range of counts or widths: "45", "40..48", "24576..32768:1024", "44,45,46".
struct Choices {
    std::vector<int64_t> values;  // empty: free
};

// Which prediction is minimised: the additive one, or with the terms of pairs of layers.
enum class Predictor { automatic, additive, pairs };  // automatic: pairs where the scores have them
std::string_view name(Predictor predictor);

// One more workload that a student must fit. All but context and batch is as in SearchOptions::workload.
struct Fit {
    int64_t context = 8192, batch = 1;
    int64_t bytes = -1;  // at most; -1: the mem_budget
};

struct SearchOptions {
    int64_t mem_budget = -1;  // bytes; -1: none
    std::optional<int64_t> max_params;
    Workload workload;
    std::vector<Fit> fits;               // besides `workload`
    std::optional<Objective> objective;  // default_objective(scores)
    Choices mamba_layers, ffn_layers, attention_layers, ffn_width;
    std::vector<int64_t> keep, drop;  // layers of the teacher that every student keeps, or drops
    Choices ffn_widths;  // each FFN keeps its own width or takes one of these; not with ffn_width
    std::optional<int64_t>
        mamba_heads;  // per group, of every Mamba layer; enters the prediction with nothing
    Predictor predictor = Predictor::automatic;
    double solve_seconds = 60;  // at most, for students that enumeration does not reach
    // Fitted for the objective; its sums are then corrected, whatever their order inside a type.
    std::optional<TypeCorrections> type_corrections;
    bool all = false;                // keep every maximal candidate, not the 100 best
    int64_t measure = 32;            // students measured when a Measurer is given, at most
    int64_t rounds = 6;              // in which they are measured, at most
    std::string select_by = "loss";  // loss|kl|accuracy|agreement|tasks
    // With a table: candidates say what they take, and take at most `max_latency` seconds where it is given.
    std::optional<LatencyTable> latency;
    std::optional<double> max_latency;
};

// A fit's workload, and its bytes at most. Error usage where neither it nor the search names a budget.
Workload workload_at(const Workload& workload, const Fit& fit);
int64_t budget_of(const SearchOptions& options, const Fit& fit);

struct Predicted {
    double value = 0;
    std::optional<double> loss;  // with objective loss_delta and a base
    std::optional<double> base, layers, width_term;
    // Of the prediction with interactions (nas/interactions.h): sums over pairs, and what larger removals
    // add; without pairs what corrections per type add (nas/type_corrections.h).
    std::optional<double> pairs, correction;
    // The measured cost (select_by; less is better) as what was measured in earlier rounds foretold it.
    std::optional<double> fitted;
};
// Share of multiple-choice rows answered rightly.
struct TaskMeasurement {
    double accuracy = 0;
    std::optional<double> standard_error;  // null for one row
};
struct Measured {
    double loss = 0, kl = 0, next_token_accuracy = 0, top1_agreement = 0;
    int64_t tokens = 0;
    std::optional<TaskMeasurement> tasks;
};
struct Candidate {
    std::string id;  // "c001", in order of prediction
    StudentPlan plan;
    std::string pattern;
    int64_t mamba = 0, ffn = 0, attention = 0, ffn_width = 0, params = 0;
    Memory memory;
    std::vector<int64_t> fit_totals;  // bytes at each of SearchResult::constraints
    std::optional<double> latency;    // seconds, by the options' table
    Predicted predicted;
    std::optional<Measured> measured;
    std::optional<int64_t> round;  // that measured it, from 1
    bool pareto_predicted = false, pareto_measured = false;
};
// A workload of SearchOptions::fits as it was searched for.
struct Constraint {
    int64_t context = 0, batch = 0;
    int64_t bytes = 0;  // at most
    int64_t total = 0;  // that the teacher takes
};
struct FrontierPoint {
    int64_t total = 0;  // bytes
    double value = 0;
    std::vector<int64_t> drop;
    int64_t ffn_width = 0;
};

// One round of measuring (nas/funnel.h).
struct SearchRound {
    int64_t measured = 0, fresh = 0;  // students so far; of this round
    std::string best;                 // candidate that costs least so far
    double best_cost = 0;             // by select_by; less is better
    // Spearman of this round's students: foretold before they were measured, against measured.
    std::optional<double> rank_correlation;
};

// A measured student distilled for a while and measured again, on the same rows.
struct TournamentEntry {
    std::string id;          // the candidate's
    int64_t tokens = 0;      // it was distilled on
    double loss_before = 0;  // the candidate's measured loss
    Measured after;          // its `tokens` are not in the file: they are the candidate's
};

struct SearchResult {
    Provenance provenance;
    std::string status;  // "predicted_only" | "measured"
    Objective objective = Objective::loss_delta;
    std::string select_by;
    int64_t budget_bytes = -1;
    std::optional<int64_t> max_params;
    Workload workload;
    std::vector<Constraint> constraints;  // one a fit
    std::string teacher_pattern;
    int64_t teacher_params = 0;
    Memory teacher_memory;
    std::optional<Measured> teacher_measured;  // on the candidates' data
    std::vector<Candidate> candidates;         // by predicted value
    std::string best;
    std::vector<std::string> finalists;  // measured: the best first, one of them a different student
    std::vector<SearchRound> rounds;
    std::vector<FrontierPoint> frontier;  // exact Pareto set (total, value) over all budgets, ascending total
    double bound = 0, gap = 0;
    // Of the proof: whether no student of the space is predicted better; else time ran out, at `gap`.
    bool proven = true;
    Predictor predictor = Predictor::additive;
    std::string solver = "enumeration";
    std::optional<double> seconds;           // of a solver that is not enumeration
    int64_t compositions = 0;                // considered
    std::optional<double> rank_correlation;  // Spearman, predicted against measured
    std::optional<TypeCorrections> type_corrections;
    std::vector<TournamentEntry> tournament;  // in the order of the measurement; its winner is `best`
};

// Measures plans on data, an empty one being the teacher; the caller binds model and corpus
// (runtime/variant_sweep.h).
using Measurer = std::function<std::vector<Measured>(const std::vector<StudentPlan>&)>;

// Error infeasible names the smallest reachable total and what would shrink it; usage where options
// contradict.
SearchResult search(const Architecture& teacher, const ScoreTable& scores, const SearchOptions& options,
                    const Measurer& measurer);

std::string search_json(const SearchResult& result);
SearchResult read_search(const std::filesystem::path& path);
const Candidate& find_candidate(const SearchResult& result, const std::string& id);  // "" for the best

}  // namespace minipuzzle::nas
