#include "importance/precision_check.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/rank_correlation.h"

namespace minipuzzle::importance {

namespace {

constexpr const char* kStage = "precision";

// Mean of `off` - `base` over the first `count` windows.
double loss_delta(const std::vector<double>& off, const std::vector<double>& base,
                  const std::vector<int64_t>& tokens, std::size_t count) {
    std::vector<double> differences(count);
    for (std::size_t i = 0; i < count; ++i) differences[i] = off.at(i) - base.at(i);
    return mean(differences, {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count)});
}

}  // namespace

int64_t checked_windows(const ScoreRun& run) {
    constexpr int64_t kMost = 16, kMostTokens = 16384;
    int64_t count = 0, tokens = 0;
    for (const Window& window : run.windows()) {
        tokens += window.length;
        if (count == kMost || (count > 0 && tokens > kMostTokens)) break;
        ++count;
    }
    return count;
}

PrecisionCheck check_precision(ScoreRun& run, const NarrowSweep& narrow, const ScoreTable& table) {
    std::vector<int64_t> windows(static_cast<std::size_t>(checked_windows(run)));
    std::iota(windows.begin(), windows.end(), 0);
    if (!run.finished(kStage, windows)) run.set_weights(narrow.unquantized());
    const SweepResult exact = run.sweep(kStage, leave_one_out(run.architecture()), nullptr, windows);

    PrecisionCheck check{.sweep = std::string(name(narrow.precision)),
                         .head = "bf16",
                         .sequences = static_cast<int64_t>(windows.size())};
    std::vector<double> narrow_deltas, exact_deltas;
    double squares = 0;
    for (std::size_t l = 0; l < exact.variants.size(); ++l) {
        const std::vector<double>& losses = table.per_sequence.at(std::to_string(l));
        const std::size_t count = std::min(losses.size(), windows.size());
        narrow_deltas.push_back(loss_delta(losses, table.per_sequence.at("base"), exact.tokens, count));
        exact_deltas.push_back(loss_delta(exact.variants[l].loss, exact.base.loss, exact.tokens, count));
        const double error = narrow_deltas.back() - exact_deltas.back();
        squares += error * error;
        check.largest_error = std::max(check.largest_error, std::abs(error));
    }
    check.rms_error = std::sqrt(squares / static_cast<double>(exact.variants.size()));
    check.rank_correlation = spearman(narrow_deltas, exact_deltas).value_or(0);
    return check;
}

}  // namespace minipuzzle::importance
