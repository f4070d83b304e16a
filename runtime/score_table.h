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
    int64_t samples = 0;
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

struct ScoreTable {
    Provenance provenance;
    ModelIdentity model;
    std::optional<CalibrationInfo> calibration;  // absent in published scores
    std::optional<double> base_loss, base_accuracy;
    std::vector<LayerScore> layers;
    std::vector<WidthPoint> ffn_width_curve;  // widest first; empty where not measured
    std::string width_scores_file, width_scores_hash;
    // per_sequence["base"] and per_sequence["3"]: mean loss of each sequence, base and layer 3 off; may be
    // empty.
    std::map<std::string, std::vector<double>> per_sequence;
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

// Neuron and head orders, best first, per teacher layer: scores.width.safetensors (tensors
// "layers.N.ffn_neuron_order" I32 [F] and "layers.N.ffn_neuron_score" F32 [F]).
struct WidthScores {
    std::map<int64_t, std::vector<int32_t>> ffn_order;
    std::map<int64_t, std::vector<float>> ffn_score;
};
WidthScores read_width_scores(const std::filesystem::path& path);
void write_width_scores(const std::filesystem::path& path, const WidthScores& scores);
// The first `width` neurons of a layer's order, ascending: what a narrower FFN keeps.
std::vector<int32_t> kept_neurons(const WidthScores& scores, int64_t layer, int64_t width);

}  // namespace minipuzzle
