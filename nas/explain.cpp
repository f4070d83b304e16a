#include "nas/explain.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"
#include "nas/surrogate.h"

namespace minipuzzle::nas {

namespace {

constexpr double kMiB = 1 << 20;

bool has(const std::vector<int64_t>& layers, int64_t layer) {
    return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

class Explainer {
  public:
    Explainer(const Architecture& teacher, const ScoreTable& scores, Objective objective,
              const SearchOptions& options, const StudentPlan& plan)
        : teacher_(teacher), options_(options), plan_(plan) {
        surrogate_.objective = objective;
        for (const LayerScore& score : scores.layers) surrogate_.cost.push_back(value(score, objective));
        MP_ASSERT(surrogate_.cost.size() == teacher.layers.size());
        StudentPlan sizes = plan;
        sizes.drop.clear();
        Workload held = options.workload;
        held.prefill_chunk = 0;  // the workspace is no single layer's
        memory_ = layer_memory(student_architecture(teacher, sizes), held);
    }

    Explanation run() {
        Explanation explanation{.objective = surrogate_.objective, .layers = {}, .cuts = {}};
        explanation.layers.resize(teacher_.layers.size());
        for (const LayerType type : kLayerTypes) {
            if (teacher_.count(type) == 0) continue;
            order_ = drop_order(surrogate_, teacher_, type);
            const Cut cut = cut_of(type);
            for (int64_t layer = 0; layer < std::ssize(teacher_.layers); ++layer)
                if (type_of(teacher_.layers[index(layer)]) == type)
                    explanation.layers[index(layer)] = verdict(layer, cut);
            explanation.cuts.push_back(cut);
        }
        return explanation;
    }

  private:
    static std::size_t index(int64_t layer) { return static_cast<std::size_t>(layer); }
    bool pinned(int64_t layer) const { return has(options_.keep, layer) || has(options_.drop, layer); }
    double cost(int64_t layer) const { return *surrogate_.cost[index(layer)]; }

    Cut cut_of(LayerType type) const {
        Cut cut{.type = type};
        for (int64_t layer = 0; layer < std::ssize(teacher_.layers); ++layer)
            if (type_of(teacher_.layers[index(layer)]) == type)
                ++(plan_.drops(layer) ? cut.dropped : cut.kept);
        for (const int64_t layer : order_) {  // the cheapest first
            if (pinned(layer)) continue;
            if (plan_.drops(layer))
                cut.last_dropped = layer;
            else if (!cut.first_kept)
                cut.first_kept = layer;
        }
        return cut;
    }

    LayerVerdict verdict(int64_t layer, const Cut& cut) const {
        LayerVerdict verdict;
        verdict.layer = layer;
        verdict.type = cut.type;
        verdict.dropped = plan_.drops(layer);
        verdict.loss = surrogate_.cost[index(layer)];
        verdict.bytes = memory_.layers[index(layer)].memory(0).total();
        if (verdict.loss) {
            if (verdict.bytes > 0)
                verdict.loss_per_mib = *verdict.loss / (static_cast<double>(verdict.bytes) / kMiB);
            verdict.rank = std::find(order_.begin(), order_.end(), layer) - order_.begin();
            if (const std::optional<int64_t> other = verdict.dropped ? cut.first_kept : cut.last_dropped)
                verdict.against_cut = *verdict.loss - cost(*other);
        }
        verdict.why = why(verdict, cut);
        return verdict;
    }

    // Whether `a` goes before `b` by the objective.
    bool goes_before(int64_t a, int64_t b) const {
        return std::find(order_.begin(), order_.end(), a) < std::find(order_.begin(), order_.end(), b);
    }

    std::string why(const LayerVerdict& verdict, const Cut& cut) const {
        const int64_t layer = verdict.layer;
        if (has(options_.keep, layer)) return "pinned by --keep";
        if (has(options_.drop, layer)) return "named by --drop";
        if (!verdict.loss) return "no score: never dropped";
        if (verdict.dropped && !cut.first_kept) return "all of its type that may go are gone";
        if (!verdict.dropped && !cut.last_dropped) return "none of its type had to go";
        if (verdict.dropped)
            return goes_before(layer, *cut.first_kept)
                       ? "costs less than every kept one of its type"
                       : fmt::format("goes though layer {} costs less alone", *cut.first_kept);
        return goes_before(*cut.last_dropped, layer)
                   ? "costs more than every dropped one of its type"
                   : fmt::format("stays though layer {} costs more alone", *cut.last_dropped);
    }

    const Architecture& teacher_;
    const SearchOptions& options_;
    const StudentPlan& plan_;
    Surrogate surrogate_;
    LayerMemory memory_;
    std::vector<int64_t> order_;  // of the type at hand
};

}  // namespace

Explanation explain(const Architecture& teacher, const ScoreTable& scores, Objective objective,
                    const SearchOptions& options, const StudentPlan& plan) {
    return Explainer(teacher, scores, objective, options, plan).run();
}

}  // namespace minipuzzle::nas
