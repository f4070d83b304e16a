#include "nas/free_space.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace minipuzzle::nas {

namespace {

int64_t ffn_width_of(const Layer& layer) {
    const auto* ffn = std::get_if<Ffn>(&layer);
    return ffn == nullptr ? 0 : ffn->width;
}

int64_t heads_per_group(const Mamba& mamba) { return div_exact(mamba.heads, mamba.groups); }

// Adds a row of zeros; its index.
std::size_t add_row(ChoiceProblem& problem, int64_t fixed) {
    problem.fixed.push_back(fixed);
    for (std::vector<Choice>& item : problem.items)
        for (Choice& choice : item) choice.weights.push_back(0);
    return problem.fixed.size() - 1;
}

}  // namespace

std::vector<MemoryLimit> memory_limits(const SearchOptions& options) {
    std::vector<MemoryLimit> limits;
    if (options.mem_budget >= 0) limits.push_back({options.workload, options.mem_budget});
    for (const Fit& fit : options.fits)
        limits.push_back({workload_at(options.workload, fit), budget_of(options, fit)});
    return limits;
}

FreeSpace::FreeSpace(const Architecture& teacher, const Surrogate& surrogate, const SearchOptions& options)
    : teacher_(teacher),
      surrogate_(surrogate),
      options_(options),
      widths_(width_grid(surrogate, teacher, options)) {
    add_layers(own_widths(surrogate, teacher, options));
    for (const LayerType type : kLayerTypes) {
        const std::vector<int64_t> kept = kept_choices(surrogate, teacher, options, type);
        if (kept.back() - kept.front() + 1 != static_cast<int64_t>(kept.size()))
            count_items_.push_back({type, kept});
    }
    for (std::size_t width = 0; width < widths_.size(); ++width) problems_.push_back(make_problem(width));
}

void FreeSpace::add_layers(const std::vector<int64_t>& own) {
    for (int64_t layer = 0; layer < static_cast<int64_t>(teacher_.layers.size()); ++layer) {
        const std::size_t l = static_cast<std::size_t>(layer);
        std::vector<Meaning> meanings;
        if (!has_layer(options_.drop, layer)) {
            meanings.push_back({});
            for (const int64_t width : own)
                if (width < ffn_width_of(teacher_.layers[l]) && surrogate_.cost[l])
                    meanings.push_back({.dropped = false, .width = width});
        }
        if (surrogate_.cost[l] && !has_layer(options_.keep, layer)) meanings.push_back({.dropped = true});
        meanings_.push_back(std::move(meanings));
    }
}

// The teacher with all its layers and the sizes of one common width, or of FFNs at `own` where they are
// wider.
StudentPlan FreeSpace::sizes(std::size_t width, std::optional<int64_t> own) const {
    StudentPlan plan;
    plan.mamba_heads_per_group = options_.mamba_heads;
    if (!own) {
        plan.ffn_width = widths_[width].narrowed;
        return plan;
    }
    for (std::size_t l = 0; l < teacher_.layers.size(); ++l)
        if (ffn_width_of(teacher_.layers[l]) > *own) plan.ffn_widths[static_cast<int64_t>(l)] = *own;
    return plan;
}

ChoiceProblem FreeSpace::make_problem(std::size_t width) const {
    ChoiceProblem problem;
    problem.constant = surrogate_.base.value_or(0.0) + widths_[width].term.value_or(0.0);
    for (std::size_t l = 0; l < meanings_.size(); ++l) {
        std::vector<Choice>& item = problem.items.emplace_back();
        for (const Meaning& meaning : meanings_[l]) {
            const int64_t layer = static_cast<int64_t>(l);
            if (meaning.dropped)
                item.push_back({.cost = *surrogate_.cost[l], .weights = {}});
            else if (meaning.width)
                item.push_back(
                    {.cost = *layer_width_term(surrogate_, teacher_, layer, *meaning.width), .weights = {}});
            else
                item.push_back({});
        }
    }
    for (const CountItem& counts : count_items_)
        problem.items.emplace_back(std::vector<Choice>(counts.kept.size()));
    for (const MemoryLimit& limit : memory_limits(options_)) add_memory(problem, limit, width);
    add_params(problem, width);
    add_latency(problem, width);
    add_counts(problem, width);
    if (uses_pairs(surrogate_, options_.predictor)) add_pairs(problem);
    check_problem(problem);
    return problem;
}

// Calls visit(layer, choice, own width of the choice) for every choice that keeps a layer.
template <class Visit>
void FreeSpace::for_each_kept(Visit visit) const {
    for (std::size_t l = 0; l < meanings_.size(); ++l)
        for (std::size_t c = 0; c < meanings_[l].size(); ++c)
            if (!meanings_[l][c].dropped) visit(l, c, meanings_[l][c].width);
}

void FreeSpace::add_memory(ChoiceProblem& problem, const MemoryLimit& limit, std::size_t width) const {
    constexpr int64_t MemoryUnits::*kParts[] = {&MemoryUnits::weights, &MemoryUnits::kv, &MemoryUnits::ssm,
                                                &MemoryUnits::conv};
    std::map<std::optional<int64_t>, LayerMemory> memory;  // by own width
    for_each_kept([&](std::size_t, std::size_t, std::optional<int64_t> own) {
        if (!memory.contains(own))
            memory[own] = layer_memory(student_architecture(teacher_, sizes(width, own)), limit.workload);
    });
    ChoiceConstraint constraint{.name = "memory", .rows = {}, .divisor = kUnitsPerByte};
    constraint.upper = limit.bytes - limit.workload.buffers;
    const MemoryUnits outer =
        layer_memory(student_architecture(teacher_, sizes(width, std::nullopt)), limit.workload).outer;
    for (const auto part : kParts) {
        const std::size_t row = add_row(problem, outer.*part);
        constraint.rows.push_back(row);
        for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t> own) {
            problem.items[l][c].weights[row] = memory.at(own).layers[l].*part;
        });
    }
    // Of the workspace only the largest counts: what is always there is in the limit, and each choice that
    // needs more has the constraint again with what it adds.
    const auto workspace = [&](std::size_t l, std::optional<int64_t> own) {
        return memory.at(own).layers[l].workspace;
    };
    int64_t always = outer.workspace;
    for (std::size_t l = 0; l < meanings_.size(); ++l) {
        if (meanings_[l].empty() || meanings_[l].back().dropped) continue;
        int64_t least = workspace(l, meanings_[l].front().width);
        for (const Meaning& meaning : meanings_[l]) least = std::min(least, workspace(l, meaning.width));
        always = std::max(always, least);
    }
    *constraint.upper -= div_up(always, kUnitsPerByte);
    for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t> own) {
        if (workspace(l, own) <= always) return;
        const std::size_t row = add_row(problem, 0);
        // Whole bytes of both, so that the quotient is the difference of what each is rounded up to.
        problem.items[l][c].weights[row] =
            kUnitsPerByte * (div_up(workspace(l, own), kUnitsPerByte) - div_up(always, kUnitsPerByte));
        ChoiceConstraint with = constraint;
        with.rows.push_back(row);
        problem.constraints.push_back(std::move(with));
    });
    problem.constraints.push_back(std::move(constraint));
}

void FreeSpace::add_params(ChoiceProblem& problem, std::size_t width) const {
    if (!options_.max_params) return;
    const std::size_t row = add_row(problem, outer_parameters(teacher_));
    for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t> own) {
        const Architecture sized = student_architecture(teacher_, sizes(width, own));
        problem.items[l][c].weights[row] = parameters(sized, sized.layers[l]);
    });
    problem.constraints.push_back(
        {.name = "parameters", .rows = {row}, .divisor = 1, .lower = {}, .upper = *options_.max_params});
}

// In whole nanoseconds: what a timer tells.
void FreeSpace::add_latency(ChoiceProblem& problem, std::size_t width) const {
    if (!options_.latency || !options_.max_latency) return;
    const auto nanoseconds = [](double seconds) { return static_cast<int64_t>(std::llround(1e9 * seconds)); };
    const std::size_t row = add_row(problem, nanoseconds(options_.latency->outer));
    for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t> own) {
        const Architecture sized = student_architecture(teacher_, sizes(width, own));
        problem.items[l][c].weights[row] = nanoseconds(options_.latency->seconds(sized.layers[l]));
    });
    problem.constraints.push_back({.name = "latency",
                                   .rows = {row},
                                   .divisor = 1,
                                   .lower = {},
                                   .upper = nanoseconds(*options_.max_latency)});
}

void FreeSpace::add_counts(ChoiceProblem& problem, std::size_t width) const {
    std::vector<std::size_t> rows;
    for (const LayerType type : kLayerTypes) {
        const std::size_t row = add_row(problem, 0);
        rows.push_back(row);
        for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t>) {
            if (type_of(teacher_.layers[l]) == type) problem.items[l][c].weights[row] = 1;
        });
        ChoiceConstraint constraint{.name = fmt::format("{} layers", name(type)), .rows = {row}};
        const std::vector<int64_t> kept = kept_choices(surrogate_, teacher_, options_, type);
        constraint.lower = kept.front();
        constraint.upper = kept.back();
        // A narrower common width without an FFN that has it is the same student again.
        if (type == LayerType::ffn && width > 0) constraint.lower = std::max<int64_t>(1, *constraint.lower);
        for (std::size_t i = 0; i < count_items_.size(); ++i) {
            if (count_items_[i].type != type) continue;
            std::vector<Choice>& item = problem.items[meanings_.size() + i];
            const std::size_t match = add_row(problem, 0);
            for_each_kept([&](std::size_t l, std::size_t c, std::optional<int64_t>) {
                if (type_of(teacher_.layers[l]) == type) problem.items[l][c].weights[match] = 1;
            });
            for (std::size_t c = 0; c < item.size(); ++c) item[c].weights[match] = -count_items_[i].kept[c];
            problem.constraints.push_back(
                {.name = constraint.name, .rows = {match}, .divisor = 1, .lower = 0, .upper = 0});
        }
        problem.constraints.push_back(std::move(constraint));
    }
    problem.constraints.push_back(
        {.name = "layers", .rows = rows, .divisor = 1, .lower = 1, .upper = std::nullopt});
}

void FreeSpace::add_pairs(ChoiceProblem& problem) const {
    const auto dropped = [&](std::size_t l) -> std::optional<std::size_t> {
        if (meanings_[l].empty() || !meanings_[l].back().dropped) return std::nullopt;
        return meanings_[l].size() - 1;
    };
    // The order of Interactions::pairs.
    for (std::size_t j = 1; j < meanings_.size(); ++j)
        for (std::size_t i = 0; i < j; ++i) {
            const double cost =
                surrogate_.interactions->pair(static_cast<int64_t>(i), static_cast<int64_t>(j));
            if (cost != 0 && dropped(i) && dropped(j))
                problem.pairs.push_back({.first = i,
                                         .first_choice = *dropped(i),
                                         .second = j,
                                         .second_choice = *dropped(j),
                                         .cost = cost});
        }
}

StudentPlan FreeSpace::plan(std::size_t width, const Assignment& assignment) const {
    StudentPlan plan;
    bool has_ffn = false, has_mamba = false;
    for (std::size_t l = 0; l < meanings_.size(); ++l) {
        const Meaning& meaning = meanings_[l][assignment[l]];
        if (meaning.dropped) {
            plan.drop.push_back(static_cast<int64_t>(l));
            continue;
        }
        has_ffn |= type_of(teacher_.layers[l]) == LayerType::ffn;
        has_mamba |= type_of(teacher_.layers[l]) == LayerType::mamba;
        if (meaning.width) plan.ffn_widths[static_cast<int64_t>(l)] = *meaning.width;
    }
    if (has_ffn) plan.ffn_width = widths_[width].narrowed;
    if (has_mamba) plan.mamba_heads_per_group = options_.mamba_heads;
    return plan;
}

std::optional<FreeSpace::Place> FreeSpace::place(const StudentPlan& plan) const {
    for (std::size_t width = 0; width < widths_.size(); ++width)
        if (std::optional<Assignment> assignment = assignment_at(width, plan))
            return Place{width, std::move(*assignment)};
    return std::nullopt;
}

std::optional<Assignment> FreeSpace::assignment_at(std::size_t width, const StudentPlan& plan) const {
    Assignment assignment;
    std::array<int64_t, kTypes> kept{};
    for (std::size_t l = 0; l < meanings_.size(); ++l) {
        const Layer& layer = teacher_.layers[l];
        const bool dropped = plan.drops(static_cast<int64_t>(l));
        if (!dropped) {
            ++kept[static_cast<std::size_t>(type_of(layer))];
            const auto* mamba = std::get_if<Mamba>(&layer);
            if (mamba != nullptr && plan.mamba_heads_per_group.value_or(heads_per_group(*mamba)) !=
                                        options_.mamba_heads.value_or(heads_per_group(*mamba)))
                return std::nullopt;
        }
        const auto is_planned = [&](const Meaning& meaning) {
            if (meaning.dropped || dropped) return meaning.dropped == dropped;
            const int64_t own = ffn_width_of(layer);
            return own == 0 || meaning.width.value_or(widths_[width].narrowed.value_or(own)) ==
                                   plan.width_of(teacher_, static_cast<int64_t>(l));
        };
        const auto found = std::find_if(meanings_[l].begin(), meanings_[l].end(), is_planned);
        if (found == meanings_[l].end()) return std::nullopt;
        assignment.push_back(static_cast<std::size_t>(found - meanings_[l].begin()));
    }
    for (const CountItem& counts : count_items_) {
        const auto found =
            std::find(counts.kept.begin(), counts.kept.end(), kept[static_cast<std::size_t>(counts.type)]);
        if (found == counts.kept.end()) return std::nullopt;
        assignment.push_back(static_cast<std::size_t>(found - counts.kept.begin()));
    }
    return assignment;
}

bool FreeSpace::alike() const {
    for (const ChoiceProblem& problem : problems_)
        for (const LayerType type : kLayerTypes) {
            const Choice* first = nullptr;  // what keeps a layer
            for (std::size_t l = 0; l < meanings_.size(); ++l) {
                if (type_of(teacher_.layers[l]) != type || meanings_[l].size() < 2) continue;
                if (first != nullptr && first->weights != problem.items[l].front().weights) return false;
                first = &problem.items[l].front();
            }
        }
    return true;
}

bool FreeSpace::fits(const StudentPlan& plan) const {
    const std::optional<Place> found = place(plan);
    return found && satisfies(problems_[found->width], found->assignment);
}

}  // namespace minipuzzle::nas
