#include "cli/report/finalists_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/html.h"
#include "cli/report/layer_strips.h"
#include "cli/report/words.h"

namespace minipuzzle::report {
namespace {

constexpr std::size_t kFirst = 10;

// A column that may be empty throughout; then it is left out.
struct Figure {
    std::string heading;
    std::vector<std::string> cells;  // the teacher's first
    bool known = false;

    void add(const std::optional<std::string>& cell) {
        known |= cell.has_value();
        cells.push_back(cell.value_or("\u2013"));
    }
};

std::optional<std::string> fixed(const std::optional<double>& value, int decimals = 4) {
    return value ? std::optional(fixed_text(*value, decimals)) : std::nullopt;
}

int predicted_decimals(const nas::SearchResult& search) {
    if (search.objective == Objective::loss_delta) return 4;
    std::vector<double> values;
    for (const nas::Candidate& candidate : search.candidates) values.push_back(candidate.predicted.value);
    return decimals_for(values);
}

std::vector<Figure> measured_figures(const nas::SearchResult& search,
                                     const std::vector<const nas::Candidate*>& students) {
    const std::pair<const char*, double nas::Measured::*> kinds[] = {
        {"loss", &nas::Measured::loss},
        {"KL", &nas::Measured::kl},
        {"accuracy", &nas::Measured::next_token_accuracy},
        {"agreement", &nas::Measured::top1_agreement}};
    std::vector<Figure> figures;
    for (const auto& [heading, of] : kinds) {
        Figure figure{.heading = heading, .cells = {}};
        const auto value = [&](const std::optional<nas::Measured>& measured) {
            return measured ? fixed((*measured).*of) : std::nullopt;
        };
        figure.cells.push_back(value(search.teacher_measured).value_or(""));
        for (const nas::Candidate* student : students) figure.add(value(student->measured));
        figures.push_back(std::move(figure));
    }
    Figure tasks{.heading = "tasks", .cells = {""}};
    const auto share = [](const std::optional<nas::Measured>& measured) -> std::optional<std::string> {
        if (!measured || !measured->tasks) return std::nullopt;
        const auto& [accuracy, error] = *measured->tasks;
        return fixed_text(accuracy, 3) + (error ? " \u00b1 " + fixed_text(*error, 3) : "");
    };
    if (const auto teacher = share(search.teacher_measured)) tasks.cells[0] = *teacher;
    for (const nas::Candidate* student : students) tasks.add(share(student->measured));
    figures.push_back(std::move(tasks));
    return figures;
}

std::vector<Figure> fit_figures(const nas::SearchResult& search,
                                const std::vector<const nas::Candidate*>& students) {
    std::vector<Figure> figures;
    for (std::size_t i = 0; i < search.constraints.size(); ++i) {
        const nas::Constraint& at = search.constraints[i];
        Figure figure{.heading = fmt::format("at {} \u00d7 {}", grouped(at.context), grouped(at.batch)),
                      .cells = {memory_text(at.total)}};
        for (const nas::Candidate* student : students) figure.add(memory_text(student->fit_totals[i]));
        figures.push_back(std::move(figure));
    }
    return figures;
}

// The loss after the tournament's distillation.
Figure tournament_figure(const nas::SearchResult& search,
                         const std::vector<const nas::Candidate*>& students) {
    Figure figure{.heading = "distilled", .cells = {""}};
    for (const nas::Candidate* student : students) {
        std::optional<double> loss;
        for (const nas::TournamentEntry& entry : search.tournament)
            if (entry.id == student->id) loss = entry.after.loss;
        figure.add(fixed(loss));
    }
    return figure;
}

std::vector<Figure> figures_of(const nas::SearchResult& search,
                               const std::vector<const nas::Candidate*>& students) {
    const std::string& pattern = search.teacher_pattern;
    const auto count = [&](char wanted) { return std::count(pattern.begin(), pattern.end(), wanted); };
    const int decimals = predicted_decimals(search);
    const double shift = prediction_shift(search);
    Figure kept{.heading = "kept", .cells = {counts_text(count('M'), count('-'), count('*'))}};
    Figure width{.heading = "FFN width", .cells = {""}};
    Figure params{.heading = "params", .cells = {count_text(search.teacher_params)}};
    Figure memory{.heading = "memory", .cells = {memory_text(search.teacher_memory.total())}};
    Figure predicted{.heading = "predicted", .cells = {""}}, fitted{.heading = "foretold", .cells = {""}};
    Figure round{.heading = "round", .cells = {""}};
    for (const nas::Candidate* student : students) {
        kept.add(counts_text(student->mamba, student->ffn, student->attention));
        width.add(student->ffn_width > 0 ? std::optional(grouped(student->ffn_width)) : std::nullopt);
        params.add(count_text(student->params));
        memory.add(fmt::format("<span title=\"{}\">{}</span>", exact_bytes(student->memory.total()),
                               memory_text(student->memory.total())));
        predicted.add(fixed_text(student->predicted.value + shift, decimals));
        fitted.add(fixed(student->predicted.fitted));
        round.add(student->round ? std::optional(grouped(*student->round)) : std::nullopt);
    }
    std::vector<Figure> figures = {kept, width, params, memory};
    const auto append = [&](std::vector<Figure> more) {
        for (Figure& figure : more) figures.push_back(std::move(figure));
    };
    append(fit_figures(search, students));
    append({predicted, fitted});
    append(measured_figures(search, students));
    append({tournament_figure(search, students), round});
    std::erase_if(figures, [](const Figure& figure) { return !figure.known; });
    return figures;
}

}  // namespace

std::vector<const nas::Candidate*> finalists_of(const nas::SearchResult& search) {
    std::vector<const nas::Candidate*> students;
    for (const std::string& id : search.finalists)
        for (const nas::Candidate& candidate : search.candidates)
            if (candidate.id == id) students.push_back(&candidate);
    if (!students.empty()) return students;
    students = drawn_candidates(search);
    if (students.size() > kFirst) students.resize(kFirst);
    return students;
}

std::string finalists_table(const nas::SearchResult& search) {
    const std::vector<const nas::Candidate*> students = finalists_of(search);
    const std::vector<Figure> figures = figures_of(search, students);
    std::vector<Column> columns = {{"student", CellKind::text}};
    for (const Figure& figure : figures) columns.push_back({figure.heading});
    std::vector<Row> rows(students.size() + 1);
    rows[0] = {.cells = {"teacher"}, .css_class = "teacher"};
    for (std::size_t i = 0; i < students.size(); ++i) {
        const bool best = students[i]->id == search.best;
        rows[i + 1] = {.cells = {escape(students[i]->id) + (best ? " <b class=\"star\">\u2605</b>" : "")},
                       .css_class = best ? "best" : ""};
    }
    for (const Figure& figure : figures)
        for (std::size_t row = 0; row < rows.size(); ++row) rows[row].cells.push_back(figure.cells[row]);
    return table(columns, rows);
}

}  // namespace minipuzzle::report
