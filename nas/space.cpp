#include "nas/space.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace minipuzzle::nas {

namespace {

const Choices& choices_of(const SearchOptions& options, LayerType type) {
    if (type == LayerType::mamba) return options.mamba_layers;
    return type == LayerType::attention ? options.attention_layers : options.ffn_layers;
}

// Numbers of dropped layers, ascending, from the user's numbers of kept ones.
std::vector<int64_t> dropped_choices(const Choices& kept, LayerType type, int64_t layers, int64_t droppable) {
    std::vector<int64_t> dropped;
    if (kept.values.empty())
        for (int64_t d = 0; d <= droppable; ++d) dropped.push_back(d);
    for (const int64_t count : kept.values) {
        if (count < 0 || count > layers)
            fail_usage(fmt::format("--{}-layers {}: the teacher has {}, expected 0..{}", name(type), count,
                                   layers, layers));
        if (layers - count > droppable)
            fail_usage(
                fmt::format("--{}-layers {}: {} of the teacher's {} have no score and are never "
                            "dropped, expected at least {}",
                            name(type), count, layers - droppable, layers, layers - droppable));
        dropped.push_back(layers - count);
    }
    std::sort(dropped.begin(), dropped.end());
    dropped.erase(std::unique(dropped.begin(), dropped.end()), dropped.end());
    return dropped;
}

// The widest FFN width that every FFN of the teacher can be cut to.
int64_t narrowest_ffn(const Architecture& teacher) {
    int64_t narrowest = std::numeric_limits<int64_t>::max();
    for (const Layer& layer : teacher.layers)
        if (const auto* ffn = std::get_if<Ffn>(&layer)) narrowest = std::min(narrowest, ffn->width);
    return narrowest;
}

WidthChoice width_choice(const Surrogate& surrogate, const Architecture& teacher, int64_t width) {
    if (width == teacher.ffn_width()) return {.narrowed = std::nullopt, .term = 0.0};
    return {.narrowed = width, .term = width_term(surrogate, teacher, width)};
}

// The widths the user named. Several of them must all be measured: without their terms the search would
// narrow for free.
std::vector<WidthChoice> asked_widths(const Surrogate& surrogate, const Architecture& teacher,
                                      std::vector<int64_t> asked) {
    if (teacher.count(LayerType::ffn) == 0)
        fail_usage(fmt::format("--ffn-width {}: the teacher has no FFN layer", asked.front()));
    std::sort(asked.rbegin(), asked.rend());
    asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
    std::vector<WidthChoice> choices;
    for (const int64_t width : asked) {
        if (width < 1 || width > narrowest_ffn(teacher))
            fail_usage(fmt::format("--ffn-width {}: expected 1..{}, the teacher's own width", width,
                                   narrowest_ffn(teacher)));
        choices.push_back(width_choice(surrogate, teacher, width));
        if (asked.size() > 1 && !choices.back().term)
            fail_usage(
                fmt::format("--ffn-width {}: the scores have no {} for this width (ffn_width_curve), so "
                            "widths cannot be compared; fix one width, or score with --width {}",
                            width, name(surrogate.objective), width));
    }
    return choices;
}

std::vector<WidthChoice> width_grid(const Surrogate& surrogate, const Architecture& teacher,
                                    const Choices& asked) {
    if (!asked.values.empty()) return asked_widths(surrogate, teacher, asked.values);
    std::vector<WidthChoice> choices = {{.narrowed = std::nullopt, .term = 0.0}};
    if (teacher.count(LayerType::ffn) == 0) return choices;
    for (auto point = surrogate.width_terms.rbegin(); point != surrogate.width_terms.rend(); ++point) {
        const int64_t width = point->first;
        if (width > narrowest_ffn(teacher))
            fail_input(
                fmt::format("the scores' ffn_width_curve has width {}, expected at most the teacher's {}",
                            width, narrowest_ffn(teacher)));
        if (width != teacher.ffn_width()) choices.push_back(width_choice(surrogate, teacher, width));
    }
    return choices;
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
    limits.params = options.max_params;
    for (const Fit& fit : options.fits) limits.fits.push_back(budget_of(options, fit));
    return limits;
}

Space::Space(const Architecture& teacher, const Surrogate& surrogate, const SearchOptions& options)
    : surrogate_(surrogate), buffers_(options.workload.buffers) {
    MP_ASSERT(surrogate.cost.size() == teacher.layers.size());
    std::vector<Workload> workloads = {options.workload};
    for (const Fit& fit : options.fits) workloads.push_back(workload_at(options.workload, fit));
    outer_units_.resize(workloads.size());
    for (const LayerType type : kLayerTypes) {
        Axis& axis = axes_[static_cast<std::size_t>(type)];
        axis.kept_units.resize(workloads.size());
        axis.layers = teacher.count(type);
        axis.order = drop_order(surrogate, teacher, type);
        axis.choices = nas::dropped_choices(choices_of(options, type), type, axis.layers,
                                            static_cast<int64_t>(axis.order.size()));
        axis.cost = {0.0};
        for (const int64_t layer : axis.order)
            axis.cost.push_back(axis.cost.back() + *surrogate.cost[static_cast<std::size_t>(layer)]);
        for (std::size_t d = 0; surrogate.type_corrections && d < axis.cost.size(); ++d)
            axis.correction.push_back(
                surrogate.type_corrections->cost(type, axis.cost[d], static_cast<int64_t>(d), axis.layers) -
                axis.cost[d]);
    }
    widths_ = width_grid(surrogate, teacher, options.ffn_width);
    for (const WidthChoice& width : widths_) {
        StudentPlan sizes;
        sizes.ffn_width = width.narrowed;
        tabulate(student_architecture(teacher, sizes), workloads);
    }
}

template <class Keep>
void Space::for_each_kept(const Architecture& sized, LayerType type, Keep keep) const {
    const Axis& axis = axes_[static_cast<std::size_t>(type)];
    for (int64_t layer = 0; layer < static_cast<int64_t>(sized.layers.size()); ++layer)
        if (type_of(sized.layers[static_cast<std::size_t>(layer)]) == type &&
            !surrogate_.cost[static_cast<std::size_t>(layer)])
            keep(axis.order.size(), layer);
    for (std::size_t d = axis.order.size(); d-- > 0;) keep(d, axis.order[d]);
}

void Space::tabulate(const Architecture& sized, const std::vector<Workload>& workloads) {
    outer_params_ = outer_parameters(sized);
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
        int64_t kept = 0;
        for_each_kept(sized, type, [&](std::size_t d, int64_t layer) {
            params[d] = kept += parameters(sized, sized.layers[static_cast<std::size_t>(layer)]);
        });
        axis.kept_params.push_back(std::move(params));
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
    return true;
}

int64_t Space::params(const Point& point) const {
    int64_t sum = outer_params_;
    for (std::size_t t = 0; t < kTypes; ++t)
        sum += axes_[t].kept_params[point.width][static_cast<std::size_t>(point.dropped[t])];
    return sum;
}

Predicted Space::predicted(const Point& point) const {
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

double Space::value(const Point& point) const { return predicted(point).value; }

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
    return plan;
}

}  // namespace minipuzzle::nas
