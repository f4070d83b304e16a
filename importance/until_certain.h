// --until-certain: sequences for those layers alone on which the choice of layers still hangs.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "importance/score_run.h"
#include "runtime/score_table.h"

namespace minipuzzle::importance {

struct UntilCertain {
    // The cut: which layers the student drops that these scores lead to.
    std::function<std::vector<int64_t>(const ScoreTable&)> drop;
    std::string cut;             // all that the cut depends on beside the scores, to tell runs apart
    double tie = kDefaultTie;    // nats
    double confidence = 0.95;    // that every pair that counts as certain is right, all of them together
    int64_t round_windows = 16;  // at least so many more windows before each look

    static constexpr double kDefaultTie = 0.002;
};

// How a dropped and a kept layer of one type stand to each other.
enum class PairState { certain, tie, open };
// `dropped`, `kept`: their losses per window, the first so many of the run's; compared on the windows that
// both have, by the confidence sequence of the difference kept - dropped at error probability `alpha`.
// Certain where it lies above zero, a tie where it lies within -tie..tie, open otherwise.
PairState compare(const std::vector<double>& dropped, const std::vector<double>& kept,
                  const std::vector<int64_t>& tokens, const std::vector<int64_t>& documents, double alpha,
                  int64_t tuned_for, double tie);

struct CertainSweep {
    // Leave-one-out over all layers, in the order of the run's windows: the base on all that were fed, each
    // layer on the first so many of them.
    SweepResult layers;
    Certainty certainty;
};

// Error bad_input where the windows come from fewer than kFewestDocuments.
void check_documents(const std::vector<Window>& windows);

// Feeds windows in rounds of whole documents, to all layers at first. After each round: the scores so far
// give the cut; a pair of one type across the cut is decided by compare(), the error probability split evenly
// over all pairs of layers of one type (Bonferroni), whichever of them the cut makes matter, so that the cut
// may move. Layers of open pairs are the open ones; only they are fed in the next round, from where each
// stopped, so that every two of them are compared on all windows fed so far. Ends when no layer is open, or
// all windows are used. Intervals hold at all numbers of documents at once, so looking after every round
// costs no confidence.
//
// The run's windows must stand document by document (by_document()). A layer that stopped early keeps the
// mean over its windows; differences to the base are paired, so what other windows the base saw does not
// enter. `table` makes a ScoreTable of what was measured so far.
CertainSweep sweep_until_certain(ScoreRun& run, const UntilCertain& options,
                                 const std::function<ScoreTable(const SweepResult&)>& table);

}  // namespace minipuzzle::importance
