#include "cli/report/memory_chart.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/html.h"
#include "cli/report/svg.h"
#include "cli/report/words.h"

namespace minipuzzle::report {
namespace {

struct Part {
    const char *css_class, *word;
    int64_t nas::Memory::*bytes;
};
// A cache has its layer type's colour: attention owns KV, Mamba the two states.
constexpr Part kParts[] = {{"weights", "weights", &nas::Memory::weights},
                           {"kv", "KV cache", &nas::Memory::kv},
                           {"ssm", "SSM state", &nas::Memory::ssm},
                           {"conv", "conv state", &nas::Memory::conv},
                           {"buffers", "buffers", &nas::Memory::buffers},
                           {"workspace", "prefill workspace", &nas::Memory::workspace}};

constexpr double kLeft = 118, kBarWidth = 830, kBarHeight = 34, kPitch = 52, kTop = 26;

// Where a bar's total stands: behind the bar, or behind the budget line where that would run through the
// words.
double total_left(double bar_end, double words, double budget_line) {
    const double left = bar_end + 9;
    return budget_line > left - 6 && budget_line < left + words + 6 ? budget_line + 8 : left;
}

// `budget_line` is where the budget stands, negative where it is not drawn.
void draw_bar(Svg& svg, const Scale& scale, const nas::Memory& memory, const std::string& name, double top,
              double budget_line) {
    svg.text({kLeft - 12, top + kBarHeight / 2 + 5}, name, Anchor::end, "strong");
    int64_t sum = 0;
    for (const Part& part : kParts) {
        const int64_t bytes = memory.*part.bytes;
        const double left = scale(static_cast<double>(sum)), right = scale(static_cast<double>(sum + bytes));
        sum += bytes;
        if (bytes == 0) continue;
        const double gap = right - left > 3 ? 1 : 0;
        svg.rect({left, top, right - left - gap, kBarHeight}, fmt::format("memory {}", part.css_class),
                 fmt::format("{}, {}: {} ({})", name, part.word, memory_text(bytes), exact_bytes(bytes)));
        const std::string inside = fmt::format("{} {}", part.word, memory_text(bytes));
        for (const std::string& text : {inside, memory_text(bytes)})
            if (text_width(text) + 12 < right - left) {
                svg.text({(left + right) / 2, top + kBarHeight / 2 + 4}, text, Anchor::middle, "on-bar");
                break;
            }
    }
    const std::string total = memory_text(sum);
    svg.text({total_left(scale(static_cast<double>(sum)), text_width(total), budget_line),
              top + kBarHeight / 2 + 5},
             total, Anchor::start, "strong halo");
}

std::string change_text(int64_t before, int64_t after) {
    if (before == after) return "unchanged";
    if (before == 0) return "new";
    const double percent = 100.0 * static_cast<double>(after - before) / static_cast<double>(before);
    return (percent > 0 ? "+" : "") + fixed_text(percent, 1) + " %";
}

std::string numbers(const nas::SearchResult& search, const nas::Candidate* best) {
    std::vector<Row> rows;
    const auto add = [&](const char* word, int64_t teacher, int64_t student, const char* css_class) {
        Row row{.cells = {word, fmt::format("<span title=\"{}\">{}</span>", exact_bytes(teacher),
                                            memory_text(teacher))},
                .css_class = css_class};
        if (best) {
            row.cells.push_back(
                fmt::format("<span title=\"{}\">{}</span>", exact_bytes(student), memory_text(student)));
            row.cells.push_back(change_text(teacher, student));
        }
        rows.push_back(row);
    };
    const nas::Memory& teacher = search.teacher_memory;
    const nas::Memory student = best ? best->memory : nas::Memory{};
    for (const Part& part : kParts)
        if (teacher.*part.bytes > 0 || student.*part.bytes > 0)
            add(part.word, teacher.*part.bytes, student.*part.bytes, "");
    add("total", teacher.total(), student.total(), "sum");
    std::vector<Column> columns = {{"", CellKind::text}, {"teacher"}};
    if (best) columns.insert(columns.end(), {{"student " + best->id}, {"change"}});
    return table(columns, rows);
}

}  // namespace

std::string memory_chart(const nas::SearchResult& search) {
    const nas::Candidate* best = best_of(search);
    const int64_t teacher = search.teacher_memory.total();
    const auto reach = static_cast<double>(std::max<int64_t>({teacher, best ? best->memory.total() : 0, 1}));
    const Scale scale{0, reach, kLeft, kLeft + kBarWidth};
    const double height = kTop + kPitch * (best ? 2 : 1) + 2;
    std::string label = "Memory: teacher " + memory_text(teacher);
    if (best) label += fmt::format(", student {} {}", best->id, memory_text(best->memory.total()));
    Svg svg(1080, height, label);
    const auto budget = static_cast<double>(search.budget_bytes);
    const double budget_line = search.budget_bytes >= 0 && budget <= reach * 1.1 ? scale(budget) : -1;
    if (budget_line >= 0) {
        svg.line({budget_line, kTop - 8}, {budget_line, height}, "budget");
        svg.text({budget_line, kTop - 13}, "budget " + memory_text(search.budget_bytes), Anchor::middle,
                 "small budget-label");
    }
    draw_bar(svg, scale, search.teacher_memory, "teacher", kTop, budget_line);
    if (best) draw_bar(svg, scale, best->memory, "student " + best->id, kTop + kPitch, budget_line);
    std::vector<LegendEntry> entries;
    for (const Part& part : kParts)
        if (search.teacher_memory.*part.bytes > 0)
            entries.push_back({fmt::format("memory {}", part.css_class), part.word});
    return legend(entries) + svg.finish() + numbers(search, best);
}

}  // namespace minipuzzle::report
