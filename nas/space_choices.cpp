// What the options and the scores leave to choose: numbers of layers, FFN widths.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "nas/space.h"

namespace minipuzzle::nas {

namespace {

const Choices& choices_of(const SearchOptions& options, LayerType type) {
    if (type == LayerType::mamba) return options.mamba_layers;
    return type == LayerType::attention ? options.attention_layers : options.ffn_layers;
}

// What of a type's layers the options and the scores leave to choose.
struct Room {
    int64_t layers = 0, droppable = 0, always_dropped = 0;
};
Room room_of(const Surrogate& surrogate, const Architecture& teacher, const SearchOptions& options,
             LayerType type) {
    Room room;
    for (int64_t layer = 0; layer < static_cast<int64_t>(teacher.layers.size()); ++layer) {
        const std::size_t l = static_cast<std::size_t>(layer);
        if (type_of(teacher.layers[l]) != type) continue;
        ++room.layers;
        if (surrogate.cost[l] && !has_layer(options.keep, layer)) ++room.droppable;
        if (has_layer(options.drop, layer)) ++room.always_dropped;
    }
    return room;
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

}  // namespace

std::vector<int64_t> kept_choices(const Surrogate& surrogate, const Architecture& teacher,
                                  const SearchOptions& options, LayerType type) {
    const Room room = room_of(surrogate, teacher, options, type);
    const int64_t least = room.layers - room.droppable, most = room.layers - room.always_dropped;
    std::vector<int64_t> kept = choices_of(options, type).values;
    if (kept.empty())
        for (int64_t count = least; count <= most; ++count) kept.push_back(count);
    for (const int64_t count : kept) {
        if (count < 0 || count > room.layers)
            fail_usage(fmt::format("--{}-layers {}: the teacher has {}, expected 0..{}", name(type), count,
                                   room.layers, room.layers));
        if (count < least)
            fail_usage(
                fmt::format("--{}-layers {}: {} of the teacher's {} have no score or are named by --keep "
                            "and never dropped, expected at least {}",
                            name(type), count, least, room.layers, least));
        if (count > most)
            fail_usage(fmt::format("--{}-layers {}: --drop names {} of the teacher's {}, expected at most {}",
                                   name(type), count, room.always_dropped, room.layers, most));
    }
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    return kept;
}

std::vector<WidthChoice> width_grid(const Surrogate& surrogate, const Architecture& teacher,
                                    const SearchOptions& options) {
    if (!options.ffn_width.values.empty()) return asked_widths(surrogate, teacher, options.ffn_width.values);
    std::vector<WidthChoice> choices = {{.narrowed = std::nullopt, .term = 0.0}};
    // Widths of single layers take the place of common ones: both at once would give a student two
    // predictions.
    if (teacher.count(LayerType::ffn) == 0 || !options.ffn_widths.values.empty()) return choices;
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

std::vector<int64_t> own_widths(const Surrogate& surrogate, const Architecture& teacher,
                                const SearchOptions& options) {
    std::vector<int64_t> widths = options.ffn_widths.values;
    if (widths.empty()) return widths;
    if (!options.ffn_width.values.empty())
        fail_usage("--ffn-width and --ffn-widths are given; choose one width for all FFNs or one for each");
    if (teacher.count(LayerType::ffn) == 0)
        fail_usage(fmt::format("--ffn-widths {}: the teacher has no FFN layer", widths.front()));
    std::sort(widths.rbegin(), widths.rend());
    widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
    int64_t widest = 0;
    for (const Layer& layer : teacher.layers)
        if (const auto* ffn = std::get_if<Ffn>(&layer)) widest = std::max(widest, ffn->width);
    for (const int64_t width : widths) {
        if (width < 1 || width > widest)
            fail_usage(
                fmt::format("--ffn-widths {}: expected 1..{}, the teacher's own width", width, widest));
        if (width != teacher.ffn_width() && !surrogate.width_terms.contains(width))
            fail_usage(
                fmt::format("--ffn-widths {}: the scores have no {} for this width (ffn_width_curve), so "
                            "widths cannot be compared; score with --width {}",
                            width, name(surrogate.objective), width));
    }
    return widths;
}

}  // namespace minipuzzle::nas
