#include "cli/task_results.h"

#include <fmt/format.h>

#include "cli/table.h"

namespace minipuzzle::cli {
namespace {

Json optional_json(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json accuracy_json(const TaskAccuracy& accuracy) {
    return {{"rows", accuracy.rows},
            {"accuracy", accuracy.accuracy},
            {"stderr", optional_json(accuracy.standard_error)},
            {"accuracy_per_token", accuracy.accuracy_per_token},
            {"stderr_per_token", optional_json(accuracy.standard_error_per_token)}};
}

std::optional<double> number(const Json& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number()) return std::nullopt;
    return found->get<double>();
}

std::vector<std::string> line(const std::string& name, const Json& accuracy) {
    return {name,
            cell(number(accuracy, "rows"), 0),
            cell(number(accuracy, "accuracy")),
            cell(number(accuracy, "stderr")),
            cell(number(accuracy, "accuracy_per_token")),
            cell(number(accuracy, "stderr_per_token"))};
}

}  // namespace

Json to_json(const TaskScores& scores) {
    Json json = accuracy_json(scores.all);
    json["per_task"] = Json::object();
    for (const auto& [name, accuracy] : scores.per_task) json["per_task"][name] = accuracy_json(accuracy);
    return json;
}

Json to_json(const TaskSet& tasks, const TaskScores& scores) {
    Json json = {{"file", tasks.file.path}, {"hash", tasks.file.hash}};
    json.update(to_json(scores));
    return json;
}

std::string tasks_text(const Json& tasks) {
    Table table({"task", "rows", "accuracy", "stderr", "per token", "stderr"});
    if (tasks.contains("per_task"))
        for (const auto& [name, accuracy] : tasks["per_task"].items())
            table.add(line(name.empty() ? "(no name)" : name, accuracy));
    table.add(line("all rows", tasks));
    return table.text();
}

std::string students_table(const Json& students) {
    const bool with_data = !students.empty() && students[0].contains("loss");
    const bool with_tasks = !students.empty() && students[0].contains("tasks");
    std::vector<std::string> header = {"drop", "ffn_width"};
    if (with_data) header.insert(header.end(), {"loss", "loss_delta", "kl", "accuracy", "top1"});
    if (with_tasks) header.insert(header.end(), {"tasks", "stderr", "tasks per token", "stderr"});
    Table table(header);
    for (const Json& row : students) {
        std::vector<std::string> cells = {row.value("drop", Json()).dump(),
                                          row.value("ffn_width", Json()).dump()};
        if (cells[1] == "null") cells[1] = "-";
        if (with_data)
            for (const char* key : {"loss", "loss_delta", "kl"}) cells.push_back(cell(number(row, key), 6));
        if (with_data)
            for (const char* key : {"next_token_accuracy", "top1_agreement"})
                cells.push_back(cell(number(row, key)));
        const Json tasks = row.value("tasks", Json::object());
        if (with_tasks)
            for (const char* key : {"accuracy", "stderr", "accuracy_per_token", "stderr_per_token"})
                cells.push_back(cell(number(tasks, key)));
        table.add(std::move(cells));
    }
    return table.text();
}

}  // namespace minipuzzle::cli
