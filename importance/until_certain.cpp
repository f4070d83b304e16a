#include "importance/until_certain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "importance/confidence.h"
#include "importance/feed_order.h"
#include "kernels/check.h"
#include "runtime/hybrid_model.h"

namespace minipuzzle::importance {

namespace {

// Of the layers alone: what the sweep does beside the LM head of every state.
double layer_multiply_adds(const Architecture& architecture, const std::vector<StudentPlan>& plans,
                           const std::vector<Window>& windows) {
    const SweepSchedule schedule = make_schedule(architecture, plans);
    double work = 0;
    for (const Window& window : windows)
        work += shared_multiply_adds(architecture, schedule, window.length, window.length) -
                static_cast<double>(schedule.slots) * head_multiply_adds(architecture, window.length);
    return work;
}

// Where rounds end: after whole documents, at least `step` windows and, the first, kFewestDocuments.
std::vector<int64_t> round_ends(const std::vector<int64_t>& documents, int64_t step) {
    const int64_t total = static_cast<int64_t>(documents.size());
    std::vector<int64_t> ends;
    int64_t begin = 0, seen = 0;
    for (int64_t end = 1; end <= total; ++end) {
        const bool whole = end == total || documents[end] != documents[end - 1];
        seen += whole;
        if (end == total || (whole && end - begin >= step && seen >= kFewestDocuments)) {
            ends.push_back(end);
            begin = end;
        }
    }
    return ends;
}

void append(const SequenceMetrics& from, SequenceMetrics& into) {
    for (const auto member : {&SequenceMetrics::loss, &SequenceMetrics::accuracy, &SequenceMetrics::kl,
                              &SequenceMetrics::top1_agreement, &SequenceMetrics::hidden_mse,
                              &SequenceMetrics::logit_nmse, &SequenceMetrics::cosine})
        (into.*member).insert((into.*member).end(), (from.*member).begin(), (from.*member).end());
}

class Rounds {
  public:
    Rounds(ScoreRun& run, const UntilCertain& options,
           const std::function<ScoreTable(const SweepResult&)>& table)
        : run_(run),
          options_(options),
          table_(table),
          documents_(run.documents()),
          plans_(leave_one_out(run.architecture())),
          ends_(round_ends(documents_, options.round_windows)) {
        const int64_t distinct = count_documents(documents_);
        MP_ASSERT(distinct >= kFewestDocuments);
        tuned_for_ = std::max(kFewestDocuments, distinct / kTunedShare);
        double pairs = 0;
        for (const LayerType type : {LayerType::mamba, LayerType::attention, LayerType::ffn}) {
            const double layers = static_cast<double>(run.architecture().count(type));
            pairs += layers * (layers - 1) / 2;
        }
        alpha_ = (1 - options.confidence) / std::max(1.0, pairs);
        swept_.variants.resize(plans_.size());
    }

    CertainSweep finish() {
        std::vector<int64_t> open(plans_.size());
        std::iota(open.begin(), open.end(), 0);
        for (std::size_t round = 0; !open.empty(); ++round) {
            feed(fmt::format("layers/{}", round), open, ends_[std::min(round, ends_.size() - 1)]);
            open = look();
        }
        const double whole = layer_multiply_adds(run_.architecture(), plans_, run_.windows());
        certainty_.confidence = options_.confidence;
        certainty_.tie = options_.tie;
        certainty_.layer_work = layer_work_ / whole;
        return {std::move(swept_), std::move(certainty_)};
    }

  private:
    // The interval is narrowest where a quarter of the documents is used.
    static constexpr int64_t kTunedShare = 4;

    int64_t fed(int64_t layer) const { return static_cast<int64_t>(swept_.variants[layer].loss.size()); }
    int64_t total() const { return static_cast<int64_t>(documents_.size()); }

    // Brings the open layers to `end` windows, each from where it stopped: one sweep for those that stopped
    // at the same place.
    void feed(const std::string& stage, const std::vector<int64_t>& open, int64_t end) {
        std::map<int64_t, std::vector<int64_t>> stopped_at;
        for (const int64_t layer : open)
            if (fed(layer) < end) stopped_at[fed(layer)].push_back(layer);
        for (const auto& [begin, layers] : stopped_at) {
            std::vector<StudentPlan> plans;
            for (const int64_t layer : layers) plans.push_back(plans_[layer]);
            std::vector<int64_t> windows(static_cast<std::size_t>(end - begin));
            std::iota(windows.begin(), windows.end(), begin);
            run_.announce(plans, end - begin);
            const SweepResult result =
                run_.sweep(fmt::format("{}/from {}", stage, begin), plans, nullptr, windows);
            for (std::size_t i = 0; i < layers.size(); ++i)
                append(result.variants[i], swept_.variants[layers[i]]);
            add_base(result, begin);
            const std::vector<Window> used(run_.windows().begin() + begin, run_.windows().begin() + end);
            layer_work_ += layer_multiply_adds(run_.architecture(), plans, used);
            for (const Window& window : used) {
                swept_.multiply_adds +=
                    shared_multiply_adds(run_.architecture(), make_schedule(run_.architecture(), plans),
                                         window.length, window.length);
                swept_.separate_multiply_adds +=
                    separate_multiply_adds(run_.architecture(), plans, window.length, window.length);
            }
        }
    }

    // The base's figures of windows that it has not seen yet.
    void add_base(const SweepResult& result, int64_t begin) {
        for (std::size_t i = swept_.tokens.size() - static_cast<std::size_t>(begin); i < result.tokens.size();
             ++i) {
            swept_.tokens.push_back(result.tokens[i]);
            swept_.base.loss.push_back(result.base.loss[i]);
            swept_.base.accuracy.push_back(result.base.accuracy[i]);
        }
    }

    // Decides the pairs across the cut; returns the layers that more windows should go to.
    std::vector<int64_t> look() {
        certainty_.drop = options_.drop(table_(swept_));
        certainty_.ties.clear();
        certainty_.open.clear();
        const Architecture& architecture = run_.architecture();
        const std::set<int64_t> dropped(certainty_.drop.begin(), certainty_.drop.end());
        std::set<int64_t> open;
        for (const int64_t lost : dropped)
            for (int64_t kept = 0; kept < static_cast<int64_t>(plans_.size()); ++kept) {
                if (dropped.count(kept) ||
                    type_of(architecture.layers[kept]) != type_of(architecture.layers[lost]))
                    continue;
                const PairState state = compare(swept_.variants[lost].loss, swept_.variants[kept].loss,
                                                swept_.tokens, documents_, alpha_, tuned_for_, options_.tie);
                if (state == PairState::tie) certainty_.ties.push_back({lost, kept});
                if (state != PairState::open) continue;
                certainty_.open.push_back({lost, kept});
                open.insert({lost, kept});
            }
        const bool all_used =
            std::all_of(open.begin(), open.end(), [&](int64_t layer) { return fed(layer) == total(); });
        if (all_used) open.clear();
        return {open.begin(), open.end()};
    }

    ScoreRun& run_;
    const UntilCertain& options_;
    const std::function<ScoreTable(const SweepResult&)>& table_;
    const std::vector<int64_t> documents_;  // of each window
    const std::vector<StudentPlan> plans_;  // one per layer
    const std::vector<int64_t> ends_;
    int64_t tuned_for_ = 0;
    double alpha_ = 0;  // of one pair
    SweepResult swept_;
    Certainty certainty_;
    double layer_work_ = 0;
};

}  // namespace

PairState compare(const std::vector<double>& dropped, const std::vector<double>& kept,
                  const std::vector<int64_t>& tokens, const std::vector<int64_t>& documents, double alpha,
                  int64_t tuned_for, double tie) {
    std::vector<double> differences(std::min(dropped.size(), kept.size()));
    for (std::size_t i = 0; i < differences.size(); ++i) differences[i] = kept[i] - dropped[i];
    const std::optional<Interval> interval =
        confidence_sequence(document_sums(differences, tokens, documents), alpha, tuned_for);
    if (!interval) return PairState::open;
    if ((*interval)[0] > 0) return PairState::certain;
    return (*interval)[0] > -tie && (*interval)[1] < tie ? PairState::tie : PairState::open;
}

void check_documents(const std::vector<Window>& windows) {
    std::vector<int64_t> documents;
    for (const Window& window : windows) documents.push_back(window.document);
    const int64_t distinct = count_documents(documents);
    if (distinct < kFewestDocuments)
        fail_input(
            fmt::format("--until-certain: found {} windows of {} documents, expected at least {} "
                        "documents, the fewest that give an interval: give more rows or raise --samples",
                        windows.size(), distinct, kFewestDocuments));
}

CertainSweep sweep_until_certain(ScoreRun& run, const UntilCertain& options,
                                 const std::function<ScoreTable(const SweepResult&)>& table) {
    return Rounds(run, options, table).finish();
}

}  // namespace minipuzzle::importance
