#include "nas/space.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace minipuzzle::nas {

namespace {

// Error usage where --keep and --drop name what cannot be.
void check_pinned(const Surrogate& surrogate, const Architecture& teacher, const SearchOptions& options) {
    const int64_t layers = static_cast<int64_t>(teacher.layers.size());
    const auto check_range = [&](const char* option, const std::vector<int64_t>& named) {
        for (const int64_t layer : named)
            if (layer < 0 || layer >= layers)
                fail_usage(fmt::format("--{}: found layer {}, expected 0..{}, the teacher's layers", option,
                                       layer, layers - 1));
    };
    check_range("keep", options.keep);
    check_range("drop", options.drop);
    for (const int64_t layer : options.drop) {
        if (has_layer(options.keep, layer))
            fail_usage(fmt::format("--drop and --keep both name layer {}; name it in one of them", layer));
        if (!surrogate.cost[static_cast<std::size_t>(layer)])
            fail_usage(
                fmt::format("--drop: layer {} has no {} in the scores, so that nothing can be predicted "
                            "without it; score it",
                            layer, name(surrogate.objective)));
    }
}

// The order in which layers of a type go: those named by --drop first, then the cheapest; those named by
// --keep never.
std::vector<int64_t> order_of(const Surrogate& surrogate, const Architecture& teacher,
                              const SearchOptions& options, LayerType type) {
    std::vector<int64_t> order = drop_order(surrogate, teacher, type);
    std::erase_if(order, [&](int64_t layer) { return has_layer(options.keep, layer); });
    std::stable_partition(order.begin(), order.end(),
                          [&](int64_t layer) { return has_layer(options.drop, layer); });
    return order;
}

void check_heads(const Architecture& teacher, const SearchOptions& options) {
    if (!options.mamba_heads) return;
    if (teacher.count(LayerType::mamba) == 0)
        fail_usage(fmt::format("--mamba-heads {}: the teacher has no Mamba layer", *options.mamba_heads));
    for (const Layer& layer : teacher.layers) {
        const auto* mamba = std::get_if<Mamba>(&layer);
        if (mamba == nullptr) continue;
        const int64_t own = div_exact(mamba->heads, mamba->groups);
        if (*options.mamba_heads < 1 || *options.mamba_heads > own)
            fail_usage(fmt::format("--mamba-heads {}: expected 1..{}, the heads of a group of the teacher",
                                   *options.mamba_heads, own));
    }
}

}  // namespace

Workload workload_at(const Workload& workload, const Fit& fit) {
    Workload at = workload;
    at.context = fit.context;
    at.batch = fit.batch;
    return at;
}

int64_t budget_of(const SearchOptions& options, const Fit& fit) {
    if (fit.bytes < 0 && options.mem_budget < 0)
        fail_usage(
            fmt::format("--fits {0}x{1} names no size and there is no --mem-budget to take; give "
                        "--fits {0}x{1}:SIZE",
                        fit.context, fit.batch));
    return fit.bytes < 0 ? options.mem_budget : fit.bytes;
}

Limits limits_of(const SearchOptions& options) {
    Limits limits;
    if (options.mem_budget >= 0) limits.bytes = options.mem_budget;
    limits.seconds = options.max_latency;
    limits.params = options.max_params;
    for (const Fit& fit : options.fits) limits.fits.push_back(budget_of(options, fit));
    return limits;
}

Space::Space(const Architecture& teacher, const Surrogate& surrogate, const SearchOptions& options)
    : surrogate_(surrogate), buffers_(options.workload.buffers), mamba_heads_(options.mamba_heads) {
    MP_ASSERT(surrogate.cost.size() == teacher.layers.size());
    check_pinned(surrogate, teacher, options);
    check_heads(teacher, options);
    std::vector<Workload> workloads = {options.workload};
    for (const Fit& fit : options.fits) workloads.push_back(workload_at(options.workload, fit));
    outer_units_.resize(workloads.size());
    for (const LayerType type : kLayerTypes) {
        Axis& axis = axes_[static_cast<std::size_t>(type)];
        axis.kept_units.resize(workloads.size());
        axis.layers = teacher.count(type);
        axis.order = order_of(surrogate, teacher, options, type);
        const std::vector<int64_t> kept = kept_choices(surrogate, teacher, options, type);
        for (auto count = kept.rbegin(); count != kept.rend(); ++count)
            axis.choices.push_back(axis.layers - *count);
        // Added in drop order whatever --drop puts first: the additions of predict_additive, in the same
        // bits.
        const std::vector<int64_t> by_cost = drop_order(surrogate, teacher, type);
        for (std::size_t d = 0; d <= axis.order.size(); ++d) {
            const std::vector<int64_t> dropped(axis.order.begin(), axis.order.begin() + static_cast<long>(d));
            double cost = 0;
            for (const int64_t layer : by_cost)
                if (has_layer(dropped, layer)) cost += *surrogate.cost[static_cast<std::size_t>(layer)];
            axis.cost.push_back(cost);
        }
        for (std::size_t d = 0; surrogate.type_corrections && d < axis.cost.size(); ++d)
            axis.correction.push_back(
                surrogate.type_corrections->cost(type, axis.cost[d], static_cast<int64_t>(d), axis.layers) -
                axis.cost[d]);
    }
    pairs_ = uses_pairs(surrogate, options.predictor);
    if (pairs_) tabulate_pairs();
    widths_ = width_grid(surrogate, teacher, options);
    for (const WidthChoice& width : widths_) {
        StudentPlan sizes;
        sizes.ffn_width = width.narrowed;
        sizes.mamba_heads_per_group = mamba_heads_;
        tabulate(student_architecture(teacher, sizes), workloads,
                 options.latency ? &*options.latency : nullptr);
    }
}

template <class Keep>
void Space::for_each_kept(const Architecture& sized, LayerType type, Keep keep) const {
    const Axis& axis = axes_[static_cast<std::size_t>(type)];
    for (int64_t layer = 0; layer < static_cast<int64_t>(sized.layers.size()); ++layer)
        if (type_of(sized.layers[static_cast<std::size_t>(layer)]) == type && !has_layer(axis.order, layer))
            keep(axis.order.size(), layer);
    for (std::size_t d = axis.order.size(); d-- > 0;) keep(d, axis.order[d]);
}

void Space::tabulate(const Architecture& sized, const std::vector<Workload>& workloads,
                     const LatencyTable* latency) {
    outer_params_ = outer_parameters(sized);
    outer_seconds_ = latency ? latency->outer : 0;
    for (std::size_t w = 0; w < workloads.size(); ++w) {
        const LayerMemory memory = layer_memory(sized, workloads[w]);
        outer_units_[w] = memory.outer;
        for (const LayerType type : kLayerTypes) {
            Axis& axis = axes_[static_cast<std::size_t>(type)];
            std::vector<MemoryUnits> units(axis.order.size() + 1);
            MemoryUnits kept;
            for_each_kept(sized, type, [&](std::size_t d, int64_t layer) {
                units[d] = kept += memory.layers[static_cast<std::size_t>(layer)];
            });
            axis.kept_units[w].push_back(std::move(units));
        }
    }
    for (const LayerType type : kLayerTypes) {
        Axis& axis = axes_[static_cast<std::size_t>(type)];
        std::vector<int64_t> params(axis.order.size() + 1, 0);
        std::vector<double> seconds(axis.order.size() + 1, 0);
        int64_t kept = 0;
        double kept_seconds = 0;
        for_each_kept(sized, type, [&](std::size_t d, int64_t layer) {
            const Layer& sizes = sized.layers[static_cast<std::size_t>(layer)];
            params[d] = kept += parameters(sized, sizes);
            seconds[d] = kept_seconds += latency ? latency->seconds(sizes) : 0;
        });
        axis.kept_params.push_back(std::move(params));
        axis.kept_seconds.push_back(std::move(seconds));
    }
}

bool Space::contains(const Point& point) const {
    int64_t kept = 0;
    for (std::size_t t = 0; t < kTypes; ++t) kept += axes_[t].layers - point.dropped[t];
    const std::size_t ffn = static_cast<std::size_t>(LayerType::ffn);
    const bool has_ffn = axes_[ffn].layers > point.dropped[ffn];
    return kept > 0 && (has_ffn || point.width == 0);
}

Memory Space::memory_at(std::size_t workload, const Point& point) const {
    MemoryUnits sum = outer_units_[workload];
    for (std::size_t t = 0; t < kTypes; ++t)
        sum += axes_[t].kept_units[workload][point.width][static_cast<std::size_t>(point.dropped[t])];
    return sum.memory(buffers_);
}

bool Space::within(const Limits& limits, const Point& point) const {
    if (limits.params && params(point) > *limits.params) return false;
    if (limits.bytes && memory(point).total() > *limits.bytes) return false;
    for (std::size_t fit = 0; fit < limits.fits.size(); ++fit)
        if (fit_total(fit, point) > limits.fits[fit]) return false;
    return !limits.seconds || seconds(point) <= *limits.seconds;
}

int64_t Space::params(const Point& point) const {
    int64_t sum = outer_params_;
    for (std::size_t t = 0; t < kTypes; ++t)
        sum += axes_[t].kept_params[point.width][static_cast<std::size_t>(point.dropped[t])];
    return sum;
}

double Space::seconds(const Point& point) const {
    double sum = outer_seconds_;
    for (std::size_t t = 0; t < kTypes; ++t)
        sum += axes_[t].kept_seconds[point.width][static_cast<std::size_t>(point.dropped[t])];
    return sum;
}

void Space::tabulate_pairs() {
    const Interactions& interactions = *surrogate_.interactions;
    const auto pair = [&](int64_t a, int64_t b) { return interactions.pair(std::min(a, b), std::max(a, b)); };
    for (std::size_t s = 0; s < kTypes; ++s)
        for (std::size_t t = s; t < kTypes; ++t) {
            const std::vector<int64_t>&rows = axes_[s].order, &columns = axes_[t].order;
            const std::size_t stride = columns.size() + 1;
            std::vector<double>& sums = pair_sums_[s][t];
            sums.assign((rows.size() + 1) * stride, 0);
            for (std::size_t d = 1; d <= rows.size(); ++d)
                for (std::size_t e = 1; e <= columns.size(); ++e) {
                    const bool counts = s != t || e < d;
                    sums[d * stride + e] = sums[(d - 1) * stride + e] + sums[d * stride + e - 1] -
                                           sums[(d - 1) * stride + e - 1] +
                                           (counts ? pair(rows[d - 1], columns[e - 1]) : 0);
                }
        }
}

double Space::pair_sum(const Point& point) const {
    double sum = 0;
    for (std::size_t s = 0; s < kTypes; ++s)
        for (std::size_t t = s; t < kTypes; ++t)
            sum += pair_sums_[s][t][static_cast<std::size_t>(point.dropped[s]) * (axes_[t].order.size() + 1) +
                                    static_cast<std::size_t>(point.dropped[t])];
    return sum;
}

Predicted Space::predicted(const Point& point) const {
    Predicted sum = additive(point);
    if (!pairs_) return sum;
    sum.pairs = surrogate_.interactions->pairs(drop(point));
    sum.value += *sum.pairs;
    if (sum.loss) sum.loss = sum.value;
    return sum;
}

Predicted Space::additive(const Point& point) const {
    double layers = 0;
    for (std::size_t t = 0; t < kTypes; ++t)
        layers += axes_[t].cost[static_cast<std::size_t>(point.dropped[t])];
    const std::size_t ffn = static_cast<std::size_t>(LayerType::ffn);
    const bool has_ffn = axes_[ffn].layers > point.dropped[ffn];
    Predicted predicted =
        combine(surrogate_, layers, has_ffn ? widths_[point.width].term : std::optional(0.0));
    if (!surrogate_.type_corrections) return predicted;
    double correction = 0;
    for (std::size_t t = 0; t < kTypes; ++t)
        correction += axes_[t].correction[static_cast<std::size_t>(point.dropped[t])];
    return corrected(std::move(predicted), correction);
}

double Space::value(const Point& point) const {
    return additive(point).value + (pairs_ ? pair_sum(point) : 0.0);
}

std::optional<Point> Space::with_more(const Point& point, LayerType type) const {
    const std::size_t t = static_cast<std::size_t>(type);
    const std::vector<int64_t>& choices = axes_[t].choices;
    const auto here = std::lower_bound(choices.begin(), choices.end(), point.dropped[t]);
    if (here == choices.begin()) return std::nullopt;
    Point more = point;
    more.dropped[t] = *std::prev(here);
    // Without an FFN there is no width to leave unchanged: the narrowest is the first that fits.
    if (type == LayerType::ffn && point.dropped[t] == axes_[t].layers) more.width = widths_.size() - 1;
    return more;
}

std::optional<Point> Space::wider(const Point& point) const {
    if (point.width == 0) return std::nullopt;
    Point more = point;
    --more.width;
    return more;
}

std::vector<int64_t> Space::drop(const Point& point) const {
    std::vector<int64_t> dropped;
    for (std::size_t t = 0; t < kTypes; ++t)
        dropped.insert(dropped.end(), axes_[t].order.begin(), axes_[t].order.begin() + point.dropped[t]);
    std::sort(dropped.begin(), dropped.end());
    return dropped;
}

StudentPlan Space::plan(const Point& point) const {
    StudentPlan plan;
    plan.drop = drop(point);
    const std::size_t ffn = static_cast<std::size_t>(LayerType::ffn);
    if (axes_[ffn].layers > point.dropped[ffn]) plan.ffn_width = widths_[point.width].narrowed;
    const std::size_t mamba = static_cast<std::size_t>(LayerType::mamba);
    if (axes_[mamba].layers > point.dropped[mamba]) plan.mamba_heads_per_group = mamba_heads_;
    return plan;
}

}  // namespace minipuzzle::nas
