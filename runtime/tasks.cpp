#include "runtime/tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/check.h"
#include "runtime/files.h"
#include "runtime/unicode_regex.h"
#include "runtime/work_progress.h"

namespace minipuzzle {

namespace {

// Where the white space that ends `text` begins. White space is Python's (str.rstrip): Unicode's and the four
// separators 1C..1F.
std::size_t without_trailing_space(std::string_view text) {
    std::size_t end = text.size();
    while (end > 0) {
        std::size_t begin = end - 1;
        while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0u) == 0x80) --begin;
        const auto first = static_cast<unsigned char>(text[begin]);
        const std::size_t bytes = end - begin;
        char32_t code_point = bytes == 1 ? first : first & (0xffu >> (bytes + 1));
        for (std::size_t i = begin + 1; i < end; ++i)
            code_point = code_point << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
        if (!is_white_space(code_point) && !(code_point >= 0x1c && code_point <= 0x1f)) break;
        end = begin;
    }
    return end;
}

class RowReader {
  public:
    explicit RowReader(const TaskContext& context) : context_(context) {
        if (context.prefix >= 0) prefix_text_ = context.tokenizer->decode({context.prefix});
    }

    void read(const std::string& line, const std::string& where, TaskSet& tasks) const {
        const Json json = parse_json(line, where);
        if (!json.is_object())
            fail_input(where + ": expected a row {\"context\": ..., \"choices\": [...], \"answer\": N}");
        const std::string context = text(member(json, "context", where), "context", where);
        const Json& choices = member(json, "choices", where);
        if (!choices.is_array() || choices.empty())
            fail_input(where + ": \"choices\": expected a list of at least one text");
        TaskRow row{.first = std::ssize(tasks.sequences), .choices = std::ssize(choices)};
        row.answer = answer(member(json, "answer", where), row.choices, where);
        if (const auto task = json.find("task"); task != json.end() && !task->is_null())
            row.task = text(*task, "task", where);
        for (std::size_t c = 0; c < choices.size(); ++c)
            tasks.sequences.push_back(sequence(context, text(choices[c], "choices", where),
                                               fmt::format("{}: choice {}", where, c)));
        tasks.rows.push_back(std::move(row));
    }

  private:
    static const Json& member(const Json& row, const char* key, const std::string& where) {
        const auto found = row.find(key);
        if (found == row.end()) fail_input(fmt::format("{}: the row has no \"{}\"", where, key));
        return *found;
    }
    static std::string text(const Json& value, const char* key, const std::string& where) {
        if (!value.is_string())
            fail_input(fmt::format("{}: \"{}\": found {}, expected text", where, key, kind_of(value)));
        return value.get<std::string>();
    }
    static int64_t answer(const Json& value, int64_t choices, const std::string& where) {
        if (!value.is_number_integer() || value.get<double>() < 0 ||
            value.get<double>() >= static_cast<double>(choices))
            fail_input(fmt::format("{}: \"answer\": found {}, expected the index of one of {} choices, 0..{}",
                                   where, value.dump(), choices, choices - 1));
        return value.get<int64_t>();
    }

    // The template is left out where the text brings the prefix token itself.
    std::vector<int32_t> encode(const std::string& text) const {
        const bool brings = !prefix_text_.empty() && text.compare(0, prefix_text_.size(), prefix_text_) == 0;
        return context_.tokenizer->encode(text, !brings);
    }

    TaskSequence sequence(const std::string& context, const std::string& choice,
                          const std::string& where) const {
        TaskSequence result;
        try {
            result = context.empty() ? without_context(choice, where) : with_context(context, choice, where);
        } catch (const Error& error) {
            const std::string message = error.what();
            throw Error(error.kind(), message.compare(0, where.size(), where) == 0
                                          ? message
                                          : fmt::format("{}: {}", where, message));
        }
        if (result.scored < 1)
            fail_input(where + ": gives no token of its own after the context, so nothing can be scored");
        for (const int32_t id : result.tokens)
            if (id >= context_.vocab)
                fail_input(fmt::format("{}: the tokenizer gives the id {}, but the model's vocabulary is {}",
                                       where, id, context_.vocab));
        const int64_t read = std::ssize(result.tokens) - 1;
        if (context_.longest > 0 && read > context_.longest)
            fail_input(
                fmt::format("{}: {} tokens with its context, but the model reads at most {} "
                            "(max_position_embeddings): shorten the row",
                            where, read, context_.longest));
        return result;
    }

    TaskSequence after_prefix(std::vector<int32_t> continuation, const std::string& where) const {
        if (context_.prefix < 0)
            fail_input(where +
                       ": has no context, and the model's config names no bos_token_id or eos_token_id to "
                       "begin with");
        TaskSequence result{.tokens = {context_.prefix}, .scored = std::ssize(continuation)};
        result.tokens.insert(result.tokens.end(), continuation.begin(), continuation.end());
        return result;
    }

    TaskSequence without_context(const std::string& choice, const std::string& where) const {
        std::vector<int32_t> continuation = context_.tokenizer->encode(choice, false);
        if (!continuation.empty() && continuation.front() == context_.prefix) {
            const int64_t scored = std::ssize(continuation) - 1;
            return {.tokens = std::move(continuation), .scored = scored};
        }
        return after_prefix(std::move(continuation), where);
    }

    TaskSequence with_context(const std::string& context, const std::string& choice,
                              const std::string& where) const {
        TaskSequence result;
        result.tokens = encode(context.substr(0, without_trailing_space(context)));
        const std::vector<int32_t> whole = encode(context + choice);
        const std::size_t begin = std::min(result.tokens.size(), whole.size());
        std::vector<int32_t> continuation(whole.begin() + static_cast<std::ptrdiff_t>(begin), whole.end());
        if (result.tokens.empty()) return after_prefix(std::move(continuation), where);
        result.scored = std::ssize(continuation);
        result.tokens.insert(result.tokens.end(), continuation.begin(), continuation.end());
        return result;
    }

    const TaskContext& context_;
    std::string prefix_text_;
};

// Index of the first of the largest values.
int64_t likeliest(const std::vector<double>& values) {
    return std::max_element(values.begin(), values.end()) - values.begin();
}

struct Tally {
    int64_t rows = 0, right = 0, right_per_token = 0;

    void add(bool is_right, bool is_right_per_token) {
        ++rows;
        right += is_right;
        right_per_token += is_right_per_token;
    }
    TaskAccuracy accuracy() const {
        TaskAccuracy result{.rows = rows};
        const double n = static_cast<double>(rows);
        const auto error = [&](double p) -> std::optional<double> {
            if (rows < 2) return std::nullopt;
            return std::sqrt(p * (1 - p) / (n - 1));
        };
        result.accuracy = static_cast<double>(right) / n;
        result.accuracy_per_token = static_cast<double>(right_per_token) / n;
        result.standard_error = error(result.accuracy);
        result.standard_error_per_token = error(result.accuracy_per_token);
        return result;
    }
};

// Sequences of one length stacked, the targets of contexts masked.
std::vector<WindowBatch> batches_of(const TaskSet& tasks, int64_t max_tokens) {
    std::map<int64_t, std::vector<int64_t>> by_length;
    for (int64_t s = 0; s < std::ssize(tasks.sequences); ++s)
        by_length[std::ssize(tasks.sequences[s].tokens) - 1].push_back(s);
    std::vector<WindowBatch> batches;
    for (const auto& [length, group] : by_length) {
        const int64_t most = std::max<int64_t>(1, max_tokens / length);
        for (std::size_t i = 0; i < group.size(); ++i) {
            if (static_cast<int64_t>(i) % most == 0)
                batches.push_back({.windows = {}, .batch = 0, .length = length, .tokens = {}, .targets = {}});
            WindowBatch& batch = batches.back();
            const TaskSequence& sequence = tasks.sequences[group[i]];
            batch.windows.push_back(group[i]);
            batch.tokens.insert(batch.tokens.end(), sequence.tokens.begin(), sequence.tokens.end() - 1);
            batch.targets.insert(batch.targets.end(), length - sequence.scored, -1);
            batch.targets.insert(batch.targets.end(), sequence.tokens.end() - sequence.scored,
                                 sequence.tokens.end());
            ++batch.batch;
        }
    }
    return batches;
}

// Sums from the sweep's means over all of a sequence's positions, of which masked ones give 0.
std::vector<double> sums(const SequenceMetrics& metrics, const std::vector<int64_t>& positions) {
    std::vector<double> log_likelihood;
    for (std::size_t s = 0; s < positions.size(); ++s)
        log_likelihood.push_back(-metrics.loss[s] * static_cast<double>(positions[s]));
    return log_likelihood;
}

}  // namespace

TaskSet read_tasks(const std::filesystem::path& path, const TaskContext& context) {
    const std::string content = read_file(path);
    if (!context.tokenizer)
        fail_input(path.string() + ": its rows are text, which needs tokenizer.json in the model folder");
    TaskSet tasks{.file = {.path = path.string(), .hash = sha256(content)}};
    const RowReader reader(context);
    std::istringstream lines(content);
    std::string line;
    for (int64_t number = 1; std::getline(lines, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        reader.read(line, fmt::format("{}:{}", path.string(), number), tasks);
        tasks.rows.back().line = number;
    }
    if (tasks.rows.empty())
        fail_input(path.string() +
                   ": holds no rows, expected {\"context\": ..., \"choices\": [...], \"answer\": N} a line");
    return tasks;
}

TaskScores task_scores(const TaskSet& tasks, std::vector<double> log_likelihood) {
    MP_ASSERT(log_likelihood.size() == tasks.sequences.size());
    Tally all;
    std::map<std::string, Tally> per_task;
    for (const TaskRow& row : tasks.rows) {
        std::vector<double> sum, per_token;
        for (int64_t s = row.first; s < row.first + row.choices; ++s) {
            sum.push_back(log_likelihood[s]);
            per_token.push_back(log_likelihood[s] / static_cast<double>(tasks.sequences[s].scored));
        }
        const bool right = likeliest(sum) == row.answer;
        const bool right_per_token = likeliest(per_token) == row.answer;
        all.add(right, right_per_token);
        per_task[row.task].add(right, right_per_token);
    }
    TaskScores scores{.log_likelihood = std::move(log_likelihood), .all = all.accuracy()};
    for (const auto& [name, tally] : per_task) scores.per_task[name] = tally.accuracy();
    return scores;
}

TaskResults run_tasks(Backend& backend, const Architecture& architecture, WeightSource weights,
                      const std::vector<StudentPlan>& plans, const WidthScores* width_scores,
                      const TaskSet& tasks, const RunControl& control) {
    VariantSweep sweep(backend, architecture, weights, plans, width_scores);
    const SweepSchedule schedule = make_schedule(architecture, plans);
    WorkProgress progress("tasks", control);
    std::vector<Window> windows;
    for (const TaskSequence& sequence : tasks.sequences) {
        windows.push_back({.length = std::ssize(sequence.tokens) - 1});
        const int64_t length = windows.back().length;
        progress.announce(schedule_work(architecture, schedule, length, length));
    }
    const auto tell = [&](const Work& done) {
        if (control.stopping()) throw Interrupted{"the tasks were stopped; nothing was kept"};
        progress.advance(done);
    };
    SweepResult result;
    for (const WindowBatch& batch : batches_of(tasks, sweep.batch_tokens(windows)))
        scatter(sweep.run(batch, tell), batch.windows, std::ssize(windows), result);
    TaskResults results{.base = task_scores(tasks, sums(result.base, result.tokens))};
    for (const SequenceMetrics& variant : result.variants)
        results.variants.push_back(task_scores(tasks, sums(variant, result.tokens)));
    return results;
}

}  // namespace minipuzzle
