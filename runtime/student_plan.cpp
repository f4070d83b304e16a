#include "runtime/student_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "runtime/files.h"

namespace minipuzzle {

namespace {

constexpr const char* kPlanFormat = "minipuzzle.plan/1";

// A layer number as a YAML or JSON key.
int64_t layer_key(const std::string& key, const ObjectReader& reader) {
    const bool digits = !key.empty() && key.size() < 10 &&
                        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) reader.fail(fmt::format("ffn_width: found the key \"{}\", expected a layer number", key));
    return std::stoll(key);
}

// `drop`, ascending; a layer named twice is a slip of the hand that must not pass silently.
std::vector<int64_t> read_drop(ObjectReader& reader) {
    std::vector<int64_t> drop = reader.integers("drop");
    std::sort(drop.begin(), drop.end());
    const auto twice = std::adjacent_find(drop.begin(), drop.end());
    if (twice != drop.end())
        reader.fail(fmt::format("drop: layer {} is listed twice; list each layer once", *twice));
    return drop;
}

// `ffn_width`: a number for every FFN, or {layer: width}.
void read_width(ObjectReader& reader, StudentPlan& plan) {
    const Json* value = reader.optional("ffn_width");
    if (value == nullptr) return;
    if (value->is_number_integer()) {
        plan.ffn_width = value->get<int64_t>();
        return;
    }
    if (!value->is_object())
        reader.fail(fmt::format("ffn_width: found {}, expected a number or {{layer: width}}", value->dump()));
    for (const auto& [key, width] : value->items()) {
        if (!width.is_number_integer())
            reader.fail(fmt::format("ffn_width.{}: found {}, expected a number", key, width.dump()));
        plan.ffn_widths[layer_key(key, reader)] = width.get<int64_t>();
    }
}

// The keys that plan.yaml and the rows of `eval --plans` share.
StudentPlan read_fields(ObjectReader& reader) {
    StudentPlan plan;
    plan.drop = read_drop(reader);
    read_width(reader, plan);
    if (reader.has("mamba_heads_per_group"))
        plan.mamba_heads_per_group = reader.integer("mamba_heads_per_group");
    else
        reader.ignore("mamba_heads_per_group");
    plan.width_scores = reader.text("width_scores", "");
    plan.notes = reader.text("notes", "");
    return plan;
}

void check_width(int64_t width, int64_t layer, const Architecture& teacher, const std::string& where) {
    const int64_t own = std::get<Ffn>(teacher.layers[static_cast<std::size_t>(layer)]).width;
    if (width < 1 || width > own)
        fail_input(fmt::format("{}: ffn_width {} for layer {}, expected 1..{}, the teacher's own width",
                               where, width, layer, own));
}

void check_widths(const StudentPlan& plan, const Architecture& teacher, const std::string& where) {
    if (plan.ffn_width && !plan.ffn_widths.empty())
        fail_input(fmt::format("{}: ffn_width is one number or {{layer: width}}, not both", where));
    const int64_t layers = static_cast<int64_t>(teacher.layers.size());
    if (plan.ffn_width)
        for (const int64_t layer : plan.kept(teacher))
            if (type_of(teacher.layers[static_cast<std::size_t>(layer)]) == LayerType::ffn)
                check_width(*plan.ffn_width, layer, teacher, where);
    for (const auto& [layer, width] : plan.ffn_widths) {
        if (layer < 0 || layer >= layers ||
            type_of(teacher.layers[static_cast<std::size_t>(layer)]) != LayerType::ffn)
            fail_input(fmt::format("{}: ffn_width names layer {}, which is no FFN layer of the teacher ({})",
                                   where, layer, teacher.pattern()));
        if (plan.drops(layer))
            fail_input(fmt::format("{}: layer {} is dropped and given a width; choose one", where, layer));
        check_width(width, layer, teacher, where);
    }
}

void check_heads(const StudentPlan& plan, const Architecture& teacher, const std::string& where) {
    if (!plan.mamba_heads_per_group) return;
    for (const int64_t layer : plan.kept(teacher)) {
        const auto* mamba = std::get_if<Mamba>(&teacher.layers[static_cast<std::size_t>(layer)]);
        if (mamba == nullptr) continue;
        const int64_t own = div_exact(mamba->heads, mamba->groups);
        if (*plan.mamba_heads_per_group < 1 || *plan.mamba_heads_per_group > own)
            fail_input(fmt::format("{}: mamba_heads_per_group {} for layer {}, expected 1..{}, the teacher's",
                                   where, *plan.mamba_heads_per_group, layer, own));
    }
}

}  // namespace

bool StudentPlan::drops(int64_t layer) const { return std::binary_search(drop.begin(), drop.end(), layer); }

int64_t StudentPlan::width_of(const Architecture& teacher, int64_t layer) const {
    if (ffn_width) return *ffn_width;
    const auto found = ffn_widths.find(layer);
    if (found != ffn_widths.end()) return found->second;
    return std::get<Ffn>(teacher.layers.at(static_cast<std::size_t>(layer))).width;
}

std::vector<int64_t> StudentPlan::kept(const Architecture& teacher) const {
    std::vector<int64_t> layers;
    for (int64_t layer = 0; layer < static_cast<int64_t>(teacher.layers.size()); ++layer)
        if (!drops(layer)) layers.push_back(layer);
    return layers;
}

std::vector<StudentPlan> leave_one_out(const Architecture& architecture) {
    std::vector<StudentPlan> plans(architecture.layers.size());
    for (std::size_t l = 0; l < plans.size(); ++l) plans[l].drop = {static_cast<int64_t>(l)};
    return plans;
}

void check_plan(const StudentPlan& plan, const Architecture& teacher, const std::string& where) {
    const int64_t layers = static_cast<int64_t>(teacher.layers.size());
    for (std::size_t i = 0; i < plan.drop.size(); ++i) {
        if (plan.drop[i] < 0 || plan.drop[i] >= layers)
            fail_input(fmt::format("{}: drop names layer {}, expected 0..{} (layers count from 0)", where,
                                   plan.drop[i], layers - 1));
        if (i > 0 && plan.drop[i] <= plan.drop[i - 1])
            fail_input(fmt::format("{}: drop must be ascending without repeats, found {} after {}", where,
                                   plan.drop[i], plan.drop[i - 1]));
    }
    if (static_cast<int64_t>(plan.drop.size()) == layers)
        fail_input(fmt::format("{}: all {} layers are dropped; keep at least one", where, layers));
    check_widths(plan, teacher, where);
    check_heads(plan, teacher, where);
}

Architecture student_architecture(const Architecture& teacher, const StudentPlan& plan) {
    Architecture student = teacher;
    student.layers.clear();
    for (const int64_t index : plan.kept(teacher)) {
        Layer layer = teacher.layers[static_cast<std::size_t>(index)];
        if (auto* ffn = std::get_if<Ffn>(&layer)) ffn->width = plan.width_of(teacher, index);
        if (auto* mamba = std::get_if<Mamba>(&layer); mamba && plan.mamba_heads_per_group)
            mamba->heads = mamba->groups * *plan.mamba_heads_per_group;
        student.layers.push_back(layer);
    }
    return student;
}

StudentPlan read_plan(const std::filesystem::path& path) {
    const Json json = read_yaml(path);
    ObjectReader reader(json, path.string() + ": ");
    reader.header(kPlanFormat);
    StudentPlan plan = read_fields(reader);
    reader.finish();
    return plan;
}

std::string plan_text(const StudentPlan& plan) {
    std::string text = fmt::format("format: {}\ndrop: [", kPlanFormat);
    for (std::size_t i = 0; i < plan.drop.size(); ++i)
        text += fmt::format("{}{}", i == 0 ? "" : ", ", plan.drop[i]);
    text += "]  # layers of the teacher, counted from 0\n";
    if (plan.ffn_width) text += fmt::format("ffn_width: {}\n", *plan.ffn_width);
    if (!plan.ffn_widths.empty()) {
        std::string widths;
        for (const auto& [layer, width] : plan.ffn_widths)
            widths += fmt::format("{}{}: {}", widths.empty() ? "" : ", ", layer, width);
        text += fmt::format("ffn_width: {{{}}}\n", widths);
    }
    if (plan.mamba_heads_per_group)
        text += fmt::format("mamba_heads_per_group: {}\n", *plan.mamba_heads_per_group);
    // A JSON string is a YAML double-quoted one: quoting and escapes need no second rule.
    if (!plan.width_scores.empty()) text += "width_scores: " + Json(plan.width_scores).dump() + "\n";
    if (!plan.notes.empty()) text += "notes: " + Json(plan.notes).dump() + "\n";
    return text;
}

std::vector<StudentPlan> read_plan_rows(const std::filesystem::path& path) {
    std::istringstream lines(read_file(path));
    std::vector<StudentPlan> plans;
    std::string line;
    for (int64_t number = 1; std::getline(lines, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string where = fmt::format("{}:{}", path.string(), number);
        const Json row = parse_json(line, where);
        ObjectReader reader(row, where + ": ");
        plans.push_back(read_fields(reader));
        reader.finish();
    }
    if (plans.empty())
        fail_input(fmt::format("{}: found no rows, expected one {{\"drop\": [...], \"ffn_width\": N}} a line",
                               path.string()));
    return plans;
}

}  // namespace minipuzzle
