// minipuzzle inspect
#include "cli/inspect.h"

#include <fmt/format.h>

#include "cli/search_text.h"
#include "cli/table.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostDifferences = 60;  // rows printed; --json has all

LayerView view_of(const InspectCommand& command) {
    LayerView view{.by_score = command.sort == "score", .type = {}};
    for (const LayerType type : kLayerTypes)
        if (command.type == std::string(1, letter(type))) view.type = type;
    return view;
}

Inspected inspect_one(const std::string& target, const InspectCommand& command) {
    const fs::path path = target;
    if (!fs::exists(path)) fail_input(target + ": no such file or folder");
    if (fs::is_directory(path)) {
        if (fs::exists(path / "config.json"))
            return inspect_model(target, command.workload, command.full_hash);
        for (const char* name : {"summary.json", "search.json"})
            if (fs::exists(path / name)) return inspect_artefact(path / name, view_of(command));
        fail_input(target + ": found neither config.json nor search.json nor summary.json in it");
    }
    if (path.filename() == "config.json") return inspect_model(target, command.workload, command.full_hash);
    return inspect_artefact(path, view_of(command));
}

// Every scalar of `json` under its path: "layers[3].kl".
void flatten(const Json& json, const std::string& path, Json& into) {
    if (json.is_object()) {
        for (const auto& [key, value] : json.items())
            flatten(value, path.empty() ? key : path + "." + key, into);
    } else if (json.is_array()) {
        for (std::size_t i = 0; i < json.size(); ++i) flatten(json[i], fmt::format("{}[{}]", path, i), into);
    } else {
        into[path] = json;
    }
}

std::string shown(const Json& value) {
    if (value.is_null()) return "-";
    return value.is_string() ? value.get<std::string>() : value.dump();
}

Json difference_row(const std::string& at, const Json& a, const Json& b) {
    Json row = {{"at", at}, {"a", a}, {"b", b}, {"change", nullptr}};
    if (a.is_number_integer() && b.is_number_integer())
        row["change"] = b.get<int64_t>() - a.get<int64_t>();
    else if (a.is_number() && b.is_number())
        row["change"] = b.get<double>() - a.get<double>();
    return row;
}

}  // namespace

CommandResult inspect_difference(const Inspected& a, const Inspected& b, const LayerView& view) {
    if (b.search && a.plan) return inspect_difference(b, a, view);
    if (a.search && b.plan)
        return {.json = standing_json(*a.search, *b.plan), .text = standing_text(*a.search, *b.plan)};
    if (a.kind != b.kind)
        fail_usage(fmt::format("only two of a kind can be compared, found {} and {}", a.kind, b.kind));
    Json flat_a = Json::object(), flat_b = Json::object();
    flatten(a.essence, "", flat_a);
    flatten(b.essence, "", flat_b);
    Json rows = Json::array();
    for (const auto& [at, value] : flat_a.items()) {
        const Json other = flat_b.value(at, Json());
        if (other != value) rows.push_back(difference_row(at, value, other));
    }
    for (const auto& [at, value] : flat_b.items())
        if (!flat_a.contains(at)) rows.push_back(difference_row(at, Json(), value));

    if (rows.empty()) return {.json = {{"kind", a.kind}, {"differences", rows}}, .text = "no difference\n"};
    if (a.scores && b.scores && a.scores->model.pattern == b.scores->model.pattern) {
        Json json = score_difference_json(*a.scores, *b.scores, view);
        json["kind"] = a.kind;
        json["differences"] = std::move(rows);
        return {.json = std::move(json), .text = score_difference_text(*a.scores, *b.scores, view)};
    }
    if (a.search && b.search && a.search->teacher_pattern == b.search->teacher_pattern) {
        Json json = search_difference_json(*a.search, *b.search);
        json["kind"] = a.kind;
        json["differences"] = std::move(rows);
        return {.json = std::move(json), .text = search_difference_text(*a.search, *b.search)};
    }
    Table table({"what", "a", "b", "change"});
    for (std::size_t i = 0; i < std::min(rows.size(), kMostDifferences); ++i)
        table.add({rows[i]["at"], shown(rows[i]["a"]), shown(rows[i]["b"]), shown(rows[i]["change"])});
    std::string text = table.text();
    if (rows.size() > kMostDifferences)
        text += fmt::format("and {} more (--json lists them all)\n", rows.size() - kMostDifferences);
    return {.json = {{"kind", a.kind}, {"differences", std::move(rows)}}, .text = text};
}

OptionTable InspectCommand::options() {
    OptionTable table;
    table.positionals(
        "target", targets,
        "a model folder, config.json, scores.json, search.json, plan.yaml, eval.json, run.jsonl, "
        "summary.json; two of a kind: their difference; a search.json and a plan.yaml: where the plan "
        "stands");
    table.text(
        "arch", "NAME", arch, "a published architecture: " + [] {
            std::string names;
            for (const std::string& name : architecture_names()) names += (names.empty() ? "" : ", ") + name;
            return names;
        }());
    table.text("scores", "FILE.json", scores, "predict the plan given (or --plans) with these scores");
    table.text("plans", "FILE.jsonl", plans, "predict each row: {\"drop\": [...], \"ffn_width\": N}");
    table.text("type-corrections", "FILE.json", type_corrections,
               "with --scores: another model's scores with random sets, as search takes them");
    table.text("model", "FOLDER", model, "the teacher of those predictions; where the scores say by default");
    table.word("sort", {"depth", "score"}, sort, "scores: the layers by depth, or the least important first");
    table.word("type", {"M", "-", "*"}, type, "scores: the layers of this type alone");
    workload.add_to(table);
    table.flag("full-hash", full_hash, "hash the weights' content, not only their headers and sizes");
    return table;
}

CommandResult InspectCommand::run(const Context& context) {
    const bool view_given = sort != "depth" || !type.empty();
    if (view_given && !scores.empty()) fail_usage("--sort and --type do not go with --scores");
    if (!scores.empty()) return inspect_predictions(*this);
    if (!plans.empty()) fail_usage("--plans needs --scores");
    if (!type_corrections.empty()) fail_usage("--type-corrections needs --scores");
    if (!model.empty()) fail_usage("--model goes with --scores: name the folder itself to look at it");
    std::vector<Inspected> things;
    if (!arch.empty()) things.push_back(inspect_architecture(arch, workload));
    for (const std::string& target : targets) things.push_back(inspect_one(target, *this));
    if (things.empty()) fail_usage("nothing to inspect: name a model folder, a file of ours, or --arch NAME");
    if (things.size() > 2) fail_usage("inspect takes one thing, or two of a kind");
    if (view_given && !things[0].scores)
        fail_usage("--sort and --type go with scores.json, found " + things[0].kind);
    if (things.size() == 2) return inspect_difference(things[0], things[1], view_of(*this));
    context.console.detail(things[0].kind);
    return {.json = std::move(things[0].json), .text = std::move(things[0].text)};
}

}  // namespace minipuzzle::cli
