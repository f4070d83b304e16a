// ScoreTable: what `score` measured. scores.json: minipuzzle.scores/1.
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/token_source.h"

namespace minipuzzle {

struct LayerScore {
    int64_t layer = 0;
    LayerType type = LayerType::mamba;
    std::optional<double> loss_delta, kl, hidden_mse, logit_nmse, cosine, top1_agreement, hidden_mse_pre_norm;
    std::optional<std::array<double, 2>> loss_delta_ci;
    int64_t samples = 0;  // sequences that this layer was measured on: the first so many of the run's
};

// The model measured with every FFN cut to `ffn_width`.
struct WidthPoint {
    int64_t ffn_width = 0;
    double loss_delta = 0;
    std::optional<double> kl;
};

struct CalibrationInfo {
    std::vector<DataFile> sources;
    int64_t sequences = 0, seq_len = 0, tokens = 0;
};

using Interval = std::array<double, 2>;  // [low, high]

// Two layers off at once: interaction = loss_delta(i, j) - loss_delta(i) - loss_delta(j), in nats; positive
// where the two stand in for each other, so that losing both costs more than their sum.
struct PairScore {
    int64_t first = 0, second = 0;  // first < second
    double loss_delta = 0, interaction = 0;
    std::optional<Interval> interaction_ci;
};
struct PairScores {
    int64_t window = 0;            // every pair at most this many layers apart is here
    int64_t sequences = 0;         // that the pairs were measured on
    std::vector<PairScore> pairs;  // ascending (first, second)
};

// One step of iterative removal: the layer that costs least in the model that the steps before left over.
struct RemovalStep {
    int64_t removed = 0;
    double loss_delta = 0;  // of the model without it and all that went before, against the full model
    std::optional<Interval> loss_delta_ci;
    std::optional<int64_t> bytes;  // that the layer weighs at the budget's workload; null without a budget
    // Per teacher layer: the loss without it, too, less that of the model the step started from; null for
    // layers gone before. The removed layer has the least value (per byte where there is a budget).
    std::vector<std::optional<double>> layers;
};
struct IterativeScores {
    int64_t sequences = 0;
    std::vector<RemovalStep> steps;
};

// A layer whose loss_delta is above so many nats carries the model (the first one, often): what is left
// without it says nothing of how other layers go together.
inline constexpr double kCarriesModel = 1.0;

// Random sets of layers off at once: what larger removals cost, beside those that iterative removal passes.
struct RandomSet {
    std::vector<int64_t> drop;  // ascending, each once
    double loss_delta = 0;      // against the full model
};
struct RandomSets {
    int64_t sequences = 0;  // that they were measured on
    std::vector<RandomSet> sets;
};

// How far the ranking by loss_delta would move with other text of the same kind.
struct RankStability {
    int64_t resamples = 0, documents = 0;       // of a bootstrap over documents
    double rank_correlation = 0;                // mean Spearman of a resample's ranking with the whole's
    std::vector<std::array<int64_t, 2>> ranks;  // per layer, 95 % of its ranks among all layers, 0: least
    std::optional<double> split_half;           // Spearman between two halves of the documents
};

// What --until-certain decided, and what it left.
struct Certainty {
    double confidence = 0.95, tie = 0.002;     // nats
    std::vector<int64_t> drop;                 // the cut: the layers of search's student
    std::vector<std::array<int64_t, 2>> ties;  // (dropped, kept) pairs of a type, closer than `tie`
    std::vector<std::array<int64_t, 2>> open;  // pairs that --samples left undecided
    double layer_work = 1;                     // done, as a share of the run with all sequences
};

// What a narrower number format of the sweep did to the scores, measured on a subset in bf16 too.
struct PrecisionCheck {
    std::string sweep;                        // "fp8"
    std::string head;                         // of the LM head: "bf16" or "fp8"
    int64_t sequences = 0;                    // of the subset
    double rank_correlation = 0;              // Spearman of loss_delta between both
    double rms_error = 0, largest_error = 0;  // of loss_delta, in nats
};

struct ScoreTable {
    Provenance provenance;
    ModelIdentity model;
    std::optional<CalibrationInfo> calibration;  // absent in published scores
    std::optional<double> base_loss, base_accuracy;
    std::vector<LayerScore> layers;
    std::vector<WidthPoint> ffn_width_curve;  // widest first; empty where not measured
    std::string width_scores_file, width_scores_hash;
    // per_sequence["base"] and per_sequence["3"]: mean loss of each sequence, base and layer 3 off; may be
    // empty. A layer with fewer samples than the base has the first so many.
    std::map<std::string, std::vector<double>> per_sequence;
    std::optional<PairScores> pairs;
    std::optional<IterativeScores> iterative;
    std::optional<RandomSets> random_sets;
    std::optional<RankStability> stability;
    std::optional<Certainty> certainty;  // in the file: stability.until_certain
    std::optional<PrecisionCheck> precision;
    std::string notes;
};

// The objectives of DESIGN section 3; each is a cost, larger is worse.
enum class Objective { loss_delta, kl, hidden_mse, logit_nmse, one_minus_cosine };
std::string_view name(Objective objective);
Objective parse_objective(const std::string& text);
// The value of a layer under an objective; nullopt where the table has null.
std::optional<double> value(const LayerScore& score, Objective objective);
// loss_delta where any layer has it, else the only metric present; Error bad_input where that is ambiguous.
Objective default_objective(const ScoreTable& table);

ScoreTable read_scores(const std::filesystem::path& path);
std::string scores_json(const ScoreTable& table);
std::string scores_csv(const ScoreTable& table);
// Error bad_input unless the table speaks of this architecture (pattern and arch_hash; a hash of null is not
// checked).
void check_scores(const ScoreTable& table, const Architecture& architecture, const std::string& where);

// Neuron and head orders, best first, per teacher layer: scores.width.safetensors. Scores are in the model's
// own order of units.
struct WidthScores {
    std::map<int64_t, std::vector<int32_t>> ffn_order;  // layers.N.ffn_neuron_order I32 [F]
    std::map<int64_t, std::vector<float>> ffn_score;    // layers.N.ffn_neuron_score F32 [F]
    // Heads read their B and C group's state, so heads go within groups only and an equal count from each:
    // row g names the heads of group g (h / (H/G) == g); a mixer with k heads a group keeps each row's first
    // k.
    std::map<int64_t, std::vector<std::vector<int32_t>>>
        mamba_head_order;                                    // layers.N.mamba_head_order I32 [G, H/G]
    std::map<int64_t, std::vector<float>> mamba_head_score;  // layers.N.mamba_head_score F32 [H]
    // A KV head stands for the query heads that share it.
    std::map<int64_t, std::vector<int32_t>> kv_head_order;  // layers.N.kv_head_order I32 [K]
    std::map<int64_t, std::vector<float>> kv_head_score;    // layers.N.kv_head_score F32 [K]
};
WidthScores read_width_scores(const std::filesystem::path& path);
void write_width_scores(const std::filesystem::path& path, const WidthScores& scores);
// The first `width` neurons of a layer's order, ascending: what a narrower FFN keeps.
std::vector<int32_t> kept_neurons(const WidthScores& scores, int64_t layer, int64_t width);

}  // namespace minipuzzle
