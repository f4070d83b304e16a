// The space of students: "keep k of each type by score, one FFN width". Every student is three counts and a
// width; what it weighs and what it is predicted to lose are sums of table entries.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "nas/search.h"
#include "nas/surrogate.h"

namespace minipuzzle::nas {

// Indexes into the arrays below are LayerType's values.
inline constexpr std::size_t kTypes = 3;

// A student of the space: layers dropped of each type, an index into Space::widths().
struct Point {
    std::array<int64_t, kTypes> dropped{};
    std::size_t width = 0;
    bool operator==(const Point&) const = default;
    auto operator<=>(const Point&) const = default;
};

// One FFN width of the grid, widest first.
struct WidthChoice {
    std::optional<int64_t> narrowed;  // null: every FFN as the teacher has it
    std::optional<double> term;       // of the predictor; null where it is not known
};

// Whether a list of layers names this one.
inline bool has_layer(const std::vector<int64_t>& layers, int64_t layer) {
    return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

// The common FFN widths that are considered, widest first. Error usage where the options contradict the
// teacher or the scores.
std::vector<WidthChoice> width_grid(const Surrogate& surrogate, const Architecture& teacher,
                                    const SearchOptions& options);
// The widths that single FFNs may take beside their own, widest first; empty without --ffn-widths. Errors
// alike.
std::vector<int64_t> own_widths(const Surrogate& surrogate, const Architecture& teacher,
                                const SearchOptions& options);
// The numbers of layers of a type that may be kept, ascending, at least one. Errors alike.
std::vector<int64_t> kept_choices(const Surrogate& surrogate, const Architecture& teacher,
                                  const SearchOptions& options, LayerType type);

// What a student may take at most.
struct Limits {
    std::optional<int64_t> bytes, params;
    std::vector<int64_t> fits = {};      // bytes at each of SearchOptions::fits
    std::optional<double> seconds = {};  // by the latency table
};
// Error usage where a fit has no budget.
Limits limits_of(const SearchOptions& options);

class Space {
  public:
    // Error usage where the bounds of `options` contradict the teacher or the scores.
    Space(const Architecture& teacher, const Surrogate& surrogate, const SearchOptions& options);

    const std::vector<WidthChoice>& widths() const { return widths_; }
    // The numbers of dropped layers that are considered, ascending.
    const std::vector<int64_t>& dropped_choices(LayerType type) const {
        return axes_[static_cast<std::size_t>(type)].choices;
    }

    // False: no layer left, or a narrower width without an FFN that has it (the same student again).
    bool contains(const Point& point) const;
    // At SearchOptions::workload.
    Memory memory(const Point& point) const { return memory_at(0, point); }
    // Bytes at SearchOptions::fits[fit].
    int64_t fit_total(std::size_t fit, const Point& point) const { return memory_at(fit + 1, point).total(); }
    std::size_t fits() const { return outer_units_.size() - 1; }
    bool within(const Limits& limits, const Point& point) const;
    int64_t params(const Point& point) const;
    // By the options' latency table; 0 without one.
    double seconds(const Point& point) const;
    Predicted predicted(const Point& point) const;
    // Of predicted(), to the last bit but one: with pairs from tables.
    double value(const Point& point) const;
    // The student that keeps more: the next larger count of a type, or the next wider width; null where the
    // space ends.
    std::optional<Point> with_more(const Point& point, LayerType type) const;
    std::optional<Point> wider(const Point& point) const;

    std::vector<int64_t> drop(const Point& point) const;
    StudentPlan plan(const Point& point) const;

    // Calls visit(point) for every student, in a fixed order.
    template <class Visit>
    void for_each(Visit visit) const {
        Point point;
        for (point.width = 0; point.width < widths_.size(); ++point.width)
            for (const int64_t m : axes_[0].choices)
                for (const int64_t a : axes_[1].choices)
                    for (const int64_t f : axes_[2].choices) {
                        point.dropped = {m, a, f};
                        if (contains(point)) visit(point);
                    }
    }

  private:
    // The layers of one type; entry d of a sum speaks of the first d layers of the order.
    struct Axis {
        int64_t layers = 0;
        std::vector<int64_t> order, choices;
        std::vector<double> cost, correction;  // correction: what corrections add to it
        // [workload][width][d], of the layers kept; workload 0 is the search's, k + 1 the k-th fit's.
        std::vector<std::vector<std::vector<MemoryUnits>>> kept_units;
        std::vector<std::vector<int64_t>> kept_params;  // [width][d]
        std::vector<std::vector<double>> kept_seconds;  // [width][d]
    };
    void tabulate(const Architecture& sized, const std::vector<Workload>& workloads,
                  const LatencyTable* latency);
    // Calls keep(d, layer) for the layers of a type from the ones always kept to the first of the order: the
    // layer is kept by every student that drops at most d of the type.
    template <class Keep>
    void for_each_kept(const Architecture& sized, LayerType type, Keep keep) const;
    Memory memory_at(std::size_t workload, const Point& point) const;

    void tabulate_pairs();
    double pair_sum(const Point& point) const;
    Predicted additive(const Point& point) const;

    const Surrogate& surrogate_;
    std::array<Axis, kTypes> axes_;
    std::vector<WidthChoice> widths_;
    std::vector<MemoryUnits> outer_units_;  // [workload]
    int64_t outer_params_ = 0, buffers_ = 0;
    std::optional<int64_t> mamba_heads_;
    double outer_seconds_ = 0;
    // [s][t], s <= t: sums of the pairs between the first d dropped of type s and the first e of type t, at
    // d * (layers of t + 1) + e; within a type each pair once.
    std::array<std::array<std::vector<double>, kTypes>, kTypes> pair_sums_;
    bool pairs_ = false;
};

}  // namespace minipuzzle::nas
