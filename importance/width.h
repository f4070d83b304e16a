// Which FFN neurons, Mamba heads and KV heads matter, by what they do in the full model; and the model with
// narrower FFNs.
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "importance/score_run.h"
#include "runtime/arena.h"
#include "runtime/layer_activations.h"

namespace minipuzzle::importance {

// How a unit's activations become one number: over the tokens of a sequence, then over sequences. mean: of
// absolute values. l2: the root of the sum of squares. Minitron's table (arXiv 2407.14679): mean over the
// sequence and L2 over the batch lose least, mean and mean nearly as little, L2 and L2 more; its variance is
// far behind and not offered.
enum class Aggregation { mean, l2 };
struct WidthAggregation {
    Aggregation sequence = Aggregation::mean, batch = Aggregation::l2;
};
// "mean,l2": sequence, batch. Error usage.
WidthAggregation parse_width_aggregation(const std::string& text);
std::string name(WidthAggregation aggregation);

// Sums what the full model's layers do while a sweep passes them; they stay on the device.
//   FFN neuron    relu(x W_up)^2 (Minitron, arXiv 2407.14679)
//   Mamba head    the L2 norm over its channels of the channels' scores, each of |x|, the x part of in_proj's
//                 output before the conv (Minitron-SSM, arXiv 2504.11409: group-aware, ranked in each B/C
//                 group)
//   KV head       the L2 norm of the outputs, before o_proj, of the query heads that share it, per token
//                 (Minitron, heads by their output's norm)
// Sums run in double in the order that windows are visited in, so their bits depend neither on batches nor on
// interruptions.
class WidthStatistics final : public LayerObserver {
  public:
    // Goes on from the file `saved` where it exists ("" for nowhere) and keeps it as batches are finished:
    // Error bad_input where it is damaged. The references must outlive the object.
    WidthStatistics(Backend& backend, const Architecture& architecture, WidthAggregation aggregation,
                    std::filesystem::path saved);

    void observe(const LayerContext& context, int64_t layer, const LayerActivations& activations) override;
    // The windows of the batch that was observed; the file is replaced at once.
    void finish(const std::vector<int64_t>& windows);
    bool holds(int64_t window) const { return held_.count(window) > 0; }

    // Orders by falling score, ties keep the lower index.
    WidthScores scores() const;

  private:
    // What is summed of one layer: `total.elements()` units of `channels` channels from channel `first` on.
    struct Units {
        Tensor total;  // [units] f64
        int64_t first = 0, channels = 1;
    };
    void load();
    void save() const;
    std::vector<double> unit_scores(int64_t layer) const;

    Backend& backend_;
    const Architecture& architecture_;
    WidthAggregation aggregation_;
    std::filesystem::path saved_;
    std::optional<DeviceArena> memory_;  // holds the totals
    std::vector<Units> layers_;
    std::vector<int64_t> windows_;  // in the order of their sums
    std::set<int64_t> held_;
};

// The curve's widths where the user names none: nine of them, from the whole width to three quarters in steps
// of a thirty-second, as MiniPuzzle's grid (arXiv 2504.03624, section 3). Widest first.
std::vector<int64_t> default_width_grid(int64_t ffn_width);
// The widths to measure, widest first: `asked`, or the default grid, without the model's own (it is the base
// itself). Error usage where FFNs have no common width or a width is none of theirs.
std::vector<int64_t> narrower_widths(const Architecture& architecture, std::vector<int64_t> asked);
// One plan a width, every FFN cut to it.
std::vector<StudentPlan> width_plans(const std::vector<int64_t>& widths);
// Measures them, as a stage of its own; the first point is the model itself. Empty without widths.
std::vector<WidthPoint> width_curve(ScoreRun& run, const WidthScores& scores,
                                    const std::vector<int64_t>& widths);

}  // namespace minipuzzle::importance
