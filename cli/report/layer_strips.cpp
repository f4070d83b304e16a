#include "cli/report/layer_strips.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"

namespace minipuzzle::report {

std::vector<const nas::Candidate*> drawn_candidates(const nas::SearchResult& search) {
    std::vector<const nas::Candidate*> order;
    for (const nas::Candidate& candidate : search.candidates) order.push_back(&candidate);
    const bool larger = selection_of(search).larger_is_better;
    const auto place = [&](const nas::Candidate* candidate) {
        if (candidate->id == search.best) return std::ptrdiff_t{-1};
        const auto& ids = search.finalists;
        return std::find(ids.begin(), ids.end(), candidate->id) - ids.begin();
    };
    const auto before = [&](const nas::Candidate* a, const nas::Candidate* b) {
        if (place(a) != place(b)) return place(a) < place(b);
        if (a->measured.has_value() != b->measured.has_value()) return a->measured.has_value();
        if (!a->measured) return false;  // the file's order is the prediction's
        const double left = selected_value(*a->measured, search.select_by);
        const double right = selected_value(*b->measured, search.select_by);
        return larger ? left > right : left < right;
    };
    std::stable_sort(order.begin(), order.end(), before);
    if (order.size() > kMostStrips) order.resize(kMostStrips);
    return order;
}

namespace {

constexpr double kStripWidth = 590, kCellHeight = 15;

// One path per type keeps a strip of 118 layers under 2 KB.
std::string strip(const std::string& pattern, const std::vector<int64_t>& drop, const std::string& css_class,
                  const std::string& label) {
    const double slot = std::min(kStripWidth / static_cast<double>(pattern.size()), 16.0);
    const double cell = slot > 6 ? slot - 1.5 : slot * 0.78;
    std::array<std::string, 4> paths;  // by type, then what is dropped
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        const bool gone = std::find(drop.begin(), drop.end(), static_cast<int64_t>(i)) != drop.end();
        const double height = gone ? 3 : kCellHeight;
        auto& path = paths[gone ? 3 : static_cast<std::size_t>(type_of_letter(pattern[i]))];
        path += fmt::format("M{} {}h{}v{}h-{}z", px(slot * static_cast<double>(i)),
                            px((kCellHeight - height) / 2), px(cell), px(height), px(cell));
    }
    const double width = slot * static_cast<double>(pattern.size());
    Svg svg(width, kCellHeight, label, css_class);
    for (const LayerType type : kLayerTypes)
        if (const auto& path = paths[static_cast<std::size_t>(type)]; !path.empty())
            svg.path(path, fmt::format("cell {}", type_class(type)));
    if (!paths[3].empty()) svg.path(paths[3], "cell gone");
    // On narrow pages the table scrolls before the cells grow too thin to see.
    return fmt::format("<div style=\"min-width:{}px\">{}</div>", px(std::min(width, 280.0)), svg.finish());
}

std::string layer_list(const std::vector<int64_t>& layers) {
    if (layers.empty()) return "nothing";
    std::string text;
    for (const int64_t layer : layers) text += fmt::format("{}{}", text.empty() ? "" : ", ", layer);
    return text;
}

// Whether there is anything measured, and the decimals of the predicted values.
struct Shape {
    bool measured = false;
    int decimals = 4;
};

Shape shape_of(const nas::SearchResult& search) {
    Shape shape;
    std::vector<double> values;
    for (const nas::Candidate& candidate : search.candidates) {
        shape.measured |= candidate.measured.has_value();
        values.push_back(candidate.predicted.value);
    }
    shape.decimals = search.objective == Objective::loss_delta ? 4 : decimals_for(values);
    return shape;
}

Row teacher_row(const nas::SearchResult& search, const Shape& shape) {
    const std::string& pattern = search.teacher_pattern;
    const auto count = [&](char wanted) { return std::count(pattern.begin(), pattern.end(), wanted); };
    Row row{.cells = {}, .css_class = "teacher"};
    row.cells = {"teacher",
                 strip(pattern, {}, "teacher-strip", fmt::format("Teacher: all {} layers", pattern.size())),
                 counts_text(count('M'), count('-'), count('*'))};
    row.cells.push_back(memory_text(search.teacher_memory.total()));
    row.cells.push_back("");
    if (shape.measured)
        row.cells.push_back(search.teacher_measured
                                ? fixed_text(selected_value(*search.teacher_measured, search.select_by), 4)
                                : "");
    return row;
}

Row candidate_row(const nas::SearchResult& search, const nas::Candidate& candidate, const Shape& shape) {
    const bool best = candidate.id == search.best;
    Row row{.cells = {}, .css_class = best ? "best" : ""};
    const std::string label =
        fmt::format("Candidate {} drops layers {}", candidate.id, layer_list(candidate.plan.drop));
    const bool finalist =
        std::find(search.finalists.begin(), search.finalists.end(), candidate.id) != search.finalists.end();
    row.cells = {escape(candidate.id) + (best       ? " <b class=\"star\">\u2605</b>"
                                         : finalist ? " <b class=\"star\">\u2606</b>"
                                                    : ""),
                 fmt::format("<div title=\"{}\">{}</div>", escape(label),
                             strip(search.teacher_pattern, candidate.plan.drop, "strip", label)),
                 counts_text(candidate.mamba, candidate.ffn, candidate.attention)};
    row.cells.push_back(fmt::format("<span title=\"{}\">{}</span>", exact_bytes(candidate.memory.total()),
                                    memory_text(candidate.memory.total())));
    row.cells.push_back(fixed_text(candidate.predicted.value + prediction_shift(search), shape.decimals));
    if (shape.measured)
        row.cells.push_back(candidate.measured
                                ? fixed_text(selected_value(*candidate.measured, search.select_by), 4)
                                : "\u2013");
    return row;
}

}  // namespace

std::string layer_strips(const nas::SearchResult& search) {
    const Shape shape = shape_of(search);
    std::vector<Column> columns = {
        {"candidate", CellKind::text}, {"layers kept, in depth order", CellKind::text}, {"kept"}};
    columns.insert(columns.end(), {{"memory"}, {"predicted"}});
    if (shape.measured) columns.push_back({selection_word(search.select_by)});
    std::vector<Row> rows = {teacher_row(search, shape)};
    for (const nas::Candidate* candidate : drawn_candidates(search))
        rows.push_back(candidate_row(search, *candidate, shape));
    std::vector<LegendEntry> entries;
    for (const LayerType type : kLayerTypes) entries.push_back({type_class(type), type_word(type)});
    entries.push_back({"gone", "dropped"});
    return legend(entries) + table(columns, rows);
}

}  // namespace minipuzzle::report
