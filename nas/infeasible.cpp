#include "nas/infeasible.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <limits>

namespace minipuzzle::nas {

namespace {

std::string readable(int64_t bytes) {
    constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
    if (bytes < 1024) return fmt::format("{} bytes", bytes);
    double size = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    for (; size >= 1024 && unit + 1 < std::size(kUnits); ++unit) size /= 1024;
    return fmt::format("{:.2f} {} ({} bytes)", size, kUnits[unit], bytes);
}

// Scores by which the largest layers at a workload go first; those without a score stay so.
Surrogate by_size(const SearchProblem& problem, const Workload& workload) {
    Surrogate sizes{.objective = problem.surrogate.objective, .cost = problem.surrogate.cost};
    sizes.width_terms = problem.surrogate.width_terms;
    const LayerMemory memory = layer_memory(problem.teacher, workload);
    for (std::size_t layer = 0; layer < sizes.cost.size(); ++layer)
        if (sizes.cost[layer])
            sizes.cost[layer] = -static_cast<double>(memory.layers[layer].memory(0).total());
    return sizes;
}

// Calls visit(point) for students among which the least of everything is: what a student takes never grows
// when a layer goes or FFNs get narrower, so only the two largest numbers of dropped layers of each type
// matter (the second where nothing would be left), and the narrowest width (the first where no FFN is left).
template <class Visit>
void for_each_small(const Space& space, Visit visit) {
    const auto last_two = [&](LayerType type) {
        const std::vector<int64_t>& all = space.dropped_choices(type);
        return std::vector<int64_t>(all.end() - std::min<std::ptrdiff_t>(2, std::ssize(all)), all.end());
    };
    for (const std::size_t width : {std::size_t{0}, space.widths().size() - 1})
        for (const int64_t mamba : last_two(LayerType::mamba))
            for (const int64_t attention : last_two(LayerType::attention))
                for (const int64_t ffn : last_two(LayerType::ffn)) {
                    const Point point{.dropped = {mamba, attention, ffn}, .width = width};
                    if (space.contains(point)) visit(point);
                }
}

// Only what bounds the space: how students are predicted does not matter here.
SearchOptions bounds_of(const SearchOptions& options) {
    SearchOptions bounds = options;
    bounds.predictor = Predictor::additive;
    bounds.type_corrections.reset();
    if (!options.ffn_widths.values.empty()) {
        bounds.ffn_width.values = {
            *std::min_element(options.ffn_widths.values.begin(), options.ffn_widths.values.end())};
        bounds.ffn_widths = {};
    }
    return bounds;
}

// The least of something that has a limit, and the clause about it.
struct Amount {
    double least = 0, limit = 0;
    std::string text, least_text;
    bool exceeded() const { return least > limit; }
};

Amount bytes_amount(const std::string& where, int64_t total, int64_t budget) {
    return {.least = static_cast<double>(total),
            .limit = static_cast<double>(budget),
            .text = fmt::format("the smallest takes {}{}, the budget is {}", readable(total), where,
                                readable(budget)),
            .least_text = readable(total) + where};
}

// In the order of the limits, as many whatever their values.
std::vector<Amount> amounts(const SearchOptions& options, const Reach& reach) {
    std::vector<Amount> all;
    if (options.mem_budget >= 0) all.push_back(bytes_amount("", reach.total, options.mem_budget));
    for (std::size_t i = 0; i < options.fits.size(); ++i) {
        const Fit& fit = options.fits[i];
        all.push_back(bytes_amount(fmt::format(" at context {}, batch {}", fit.context, fit.batch),
                                   reach.fit_totals[i], budget_of(options, fit)));
    }
    if (options.max_params)
        all.push_back({.least = static_cast<double>(reach.params),
                       .limit = static_cast<double>(*options.max_params),
                       .text = fmt::format("the smallest has {} parameters, at most {} were asked for",
                                           reach.params, *options.max_params),
                       .least_text = fmt::format("{} parameters", reach.params)});
    if (options.max_latency)
        all.push_back(
            {.least = reach.seconds,
             .limit = *options.max_latency,
             .text = fmt::format(
                 "the fastest takes {:.6g} ms by the latency table, at most {:.6g} ms were asked for",
                 1e3 * reach.seconds, 1e3 * *options.max_latency),
             .least_text = fmt::format("{:.6g} ms", 1e3 * reach.seconds)});
    return all;
}

// Options that a user can change, one at a time.
class Knobs {
  public:
    explicit Knobs(const SearchProblem& problem) : problem_(problem), before_(reach_of(problem)) {}

    std::vector<Hint> turn() {
        const Workload& workload = problem_.options.workload;
        retype("--kv", {ElementType::fp8, ElementType::fp4}, workload.kv,
               [](Workload& at, ElementType type) { at.kv = type; });
        retype("--ssm", {ElementType::bf16, ElementType::fp8}, workload.ssm,
               [](Workload& at, ElementType type) { at.ssm = type; });
        retype("--weights",
               {ElementType::bf16, ElementType::fp8, ElementType::nvfp4, ElementType::int4, ElementType::fp4},
               workload.weights_as_in_file ? ElementType::fp32 : workload.weights,
               [](Workload& at, ElementType type) {
                   at.weights = type;
                   at.weights_as_in_file = false;
               });
        shrink("--context {}", workload.context,
               [](SearchOptions& options, int64_t value) { options.workload.context = value; });
        shrink("--batch {}", workload.batch,
               [](SearchOptions& options, int64_t value) { options.workload.batch = value; });
        shrink("--prefill-chunk {}", workload.prefill_chunk,
               [](SearchOptions& options, int64_t value) { options.workload.prefill_chunk = value; });
        for (std::size_t i = 0; i < problem_.options.fits.size(); ++i) shrink_fit(i);
        narrow_ffn();
        lift_bounds();
        return std::move(hints_);
    }

  private:
    Hint hint(std::string text, const SearchOptions& options) const {
        return {std::move(text), options, reach_of({problem_.teacher, problem_.surrogate, options})};
    }
    // Keeps a hint that is enough, or brings something down that is above its limit.
    void add(Hint hint) {
        bool helps = hint.reach.fits;
        const std::vector<Amount> before = amounts(problem_.options, before_);
        const std::vector<Amount> after = amounts(hint.options, hint.reach);
        for (std::size_t i = 0; i < before.size(); ++i)
            helps = helps || (before[i].exceeded() && after[i].least < before[i].least);
        if (helps) hints_.push_back(std::move(hint));
    }

    // The first type below `now` that is enough, else the last.
    void retype(const char* option, const std::vector<ElementType>& types, ElementType now,
                const std::function<void(Workload&, ElementType)>& set) {
        std::optional<Hint> last;
        for (const ElementType type : types) {
            if (units_of(type) >= units_of(now)) continue;
            SearchOptions options = problem_.options;
            set(options.workload, type);
            last = hint(fmt::format("{} {}", option, name(type)), options);
            if (last->reach.fits) break;
        }
        if (last) add(std::move(*last));
    }

    // The largest multiple of `step` below `now` that is enough, else the step. What a student takes grows
    // with the value.
    void shrink(const std::string& text, int64_t now, const std::function<void(SearchOptions&, int64_t)>& set,
                int64_t step = 1) {
        if (now <= step) return;
        const auto with = [&](int64_t steps) {
            SearchOptions options = problem_.options;
            set(options, steps * step);
            return hint(fmt::format(fmt::runtime(text), steps * step), options);
        };
        int64_t low = 1, high = (now - 1) / step;
        while (low < high) {
            const int64_t middle = low + (high - low + 1) / 2;
            if (with(middle).reach.fits)
                low = middle;
            else
                high = middle - 1;
        }
        add(with(low));
    }

    void shrink_fit(std::size_t i) {
        const Fit& fit = problem_.options.fits[i];
        const std::string size = fit.bytes < 0 ? "" : fmt::format(":{}", fit.bytes);
        shrink(fmt::format("--fits {{}}x{}{}", fit.batch, size), fit.context,
               [i](SearchOptions& options, int64_t value) { options.fits[i].context = value; });
        shrink(fmt::format("--fits {}x{{}}{}", fit.context, size), fit.batch,
               [i](SearchOptions& options, int64_t value) { options.fits[i].batch = value; });
    }

    // One width below those that were considered; fixed, it needs no measured term. A latency table knows no
    // other widths than it timed.
    void narrow_ffn() {
        if (problem_.options.latency) return;
        int64_t narrowest = std::numeric_limits<int64_t>::max();
        for (const Layer& layer : problem_.teacher.layers)
            if (const auto* ffn = std::get_if<Ffn>(&layer)) narrowest = std::min(narrowest, ffn->width);
        if (narrowest == std::numeric_limits<int64_t>::max()) return;
        const SearchOptions bounds = bounds_of(problem_.options);
        const Space space(problem_.teacher, problem_.surrogate, bounds);
        narrowest = std::min(narrowest, space.widths().back().narrowed.value_or(narrowest));
        constexpr int64_t kTile = 64;  // widths that products like
        shrink(
            problem_.options.ffn_widths.values.empty() ? "--ffn-width {}"
                                                       : "--ffn-width {} in place of --ffn-widths",
            narrowest,
            [](SearchOptions& options, int64_t value) {
                options.ffn_widths = {};
                options.ffn_width.values = {value};
            },
            narrowest > kTile ? kTile : 1);
    }

    void lift_bounds() {
        SearchOptions options = problem_.options;
        options.mamba_layers = options.ffn_layers = options.attention_layers = {};
        if (!options.latency) options.ffn_width = {};
        options.keep.clear();
        add(hint("free layer counts and width", options));
    }

    const SearchProblem& problem_;
    const Reach before_;
    std::vector<Hint> hints_;
};

std::string advice(const SearchProblem& problem, const std::vector<Amount>& before) {
    std::vector<std::string> enough, reached;
    for (const Hint& hint : hints(problem)) {
        if (hint.reach.fits) enough.push_back(hint.text);
        const std::vector<Amount> after = amounts(hint.options, hint.reach);
        for (std::size_t i = 0; i < after.size(); ++i)
            if (before[i].exceeded() && after[i].least < before[i].least)
                reached.push_back(fmt::format("{} reaches {}", hint.text, after[i].least_text));
    }
    if (!enough.empty()) return fmt::format("a student fits with {}", fmt::join(enough, " or "));
    if (!reached.empty()) return fmt::format("no single change is enough: {}", fmt::join(reached, ", "));
    return "raise the budget";
}

}  // namespace

Reach reach_of(const SearchProblem& problem) {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    Reach reach{.total = kNone,
                .fit_totals = std::vector<int64_t>(problem.options.fits.size(), kNone),
                .params = kNone,
                .seconds = std::numeric_limits<double>::infinity()};
    const SearchOptions bounds = bounds_of(problem.options);
    const Limits limits = limits_of(bounds);
    std::vector<Workload> workloads = {bounds.workload};
    for (const Fit& fit : bounds.fits) workloads.push_back(workload_at(bounds.workload, fit));
    for (const Workload& workload : workloads) {
        const Surrogate sizes = by_size(problem, workload);
        const Space space(problem.teacher, sizes, bounds);
        for_each_small(space, [&](const Point& point) {
            reach.total = std::min(reach.total, space.memory(point).total());
            for (std::size_t i = 0; i < reach.fit_totals.size(); ++i)
                reach.fit_totals[i] = std::min(reach.fit_totals[i], space.fit_total(i, point));
            reach.params = std::min(reach.params, space.params(point));
            reach.seconds = std::min(reach.seconds, space.seconds(point));
            reach.fits = reach.fits || space.within(limits, point);
        });
    }
    return reach;
}

std::vector<Hint> hints(const SearchProblem& problem) { return Knobs(problem).turn(); }

void fail_infeasible(const SearchProblem& problem) {
    const std::vector<Amount> all = amounts(problem.options, reach_of(problem));
    std::vector<std::string> limits;
    for (const Amount& amount : all)
        if (amount.exceeded()) limits.push_back(amount.text);
    if (limits.empty()) limits.push_back("each limit can be met alone, but not all at once; loosen one");
    throw Error(ErrorKind::infeasible,
                fmt::format("no student fits: {}; {}", fmt::join(limits, "; "), advice(problem, all)));
}

}  // namespace minipuzzle::nas
