#include "nas/infeasible.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

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

int64_t smallest_total(const SearchProblem& problem, const SearchOptions& options) {
    const Space space(problem.teacher, problem.surrogate, options);
    int64_t smallest = std::numeric_limits<int64_t>::max();
    space.for_each([&](const Point& point) { smallest = std::min(smallest, space.memory(point).total()); });
    return smallest;
}

// A change of one option and the smallest total under it.
struct Hint {
    std::string text;
    int64_t total = 0;
};

// The largest value of a workload size in [1, now) with which a student fits; else 1.
Hint shrink(const SearchProblem& problem, int64_t Workload::*size, const char* option) {
    SearchOptions options = problem.options;
    int64_t low = 1, high = options.workload.*size - 1;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        options.workload.*size = middle;
        if (smallest_total(problem, options) <= options.mem_budget)
            low = middle;
        else
            high = middle - 1;
    }
    options.workload.*size = low;
    return {fmt::format("{} {}", option, low), smallest_total(problem, options)};
}

Hint retype(const SearchProblem& problem, ElementType Workload::*part, ElementType type, const char* option) {
    SearchOptions options = problem.options;
    options.workload.*part = type;
    if (part == &Workload::weights) options.workload.weights_as_in_file = false;
    return {fmt::format("{} {}", option, name(type)), smallest_total(problem, options)};
}

// The bounds the user set, lifted.
Hint free_choices(const SearchProblem& problem) {
    SearchOptions options = problem.options;
    options.mamba_layers = options.ffn_layers = options.attention_layers = options.ffn_width = {};
    return {"free layer counts and width", smallest_total(problem, options)};
}

std::vector<Hint> hints(const SearchProblem& problem, int64_t smallest) {
    const Workload& workload = problem.options.workload;
    std::vector<Hint> all;
    if (workload.context > 1) all.push_back(shrink(problem, &Workload::context, "--context"));
    if (workload.batch > 1) all.push_back(shrink(problem, &Workload::batch, "--batch"));
    all.push_back(retype(problem, &Workload::kv, ElementType::fp8, "--kv"));
    all.push_back(retype(problem, &Workload::ssm, ElementType::bf16, "--ssm"));
    all.push_back(retype(problem, &Workload::weights, ElementType::fp8, "--weights"));
    all.push_back(retype(problem, &Workload::weights, ElementType::fp4, "--weights"));
    all.push_back(free_choices(problem));
    const auto useless = [&](const Hint& hint) { return hint.total >= smallest; };
    all.erase(std::remove_if(all.begin(), all.end(), useless), all.end());
    return all;
}

// The changes that fit, else what each of them reaches.
std::string advice(const SearchProblem& problem, int64_t smallest) {
    const std::vector<Hint> all = hints(problem, smallest);
    std::string fitting, reached;
    for (const Hint& hint : all) {
        if (hint.total <= problem.options.mem_budget)
            fitting += fmt::format("{}{}", fitting.empty() ? "" : " or ", hint.text);
        reached +=
            fmt::format("{}{} reaches {}", reached.empty() ? "" : ", ", hint.text, readable(hint.total));
    }
    if (!fitting.empty()) return fmt::format("a student fits with {}", fitting);
    if (!reached.empty()) return fmt::format("no single change is enough: {}", reached);
    return "raise the budget";
}

}  // namespace

void fail_infeasible(const SearchProblem& problem, const Solution& solution) {
    const SearchOptions& options = problem.options;
    std::string message = "no student fits:";
    const bool too_many_bytes = options.mem_budget >= 0 && solution.smallest_total > options.mem_budget;
    if (too_many_bytes)
        message +=
            fmt::format(" the smallest takes {}, the budget is {}; {}", readable(solution.smallest_total),
                        readable(options.mem_budget), advice(problem, solution.smallest_total));
    if (options.max_params && solution.smallest_params > *options.max_params)
        message += fmt::format("{} the smallest has {} parameters, at most {} were asked for",
                               too_many_bytes ? ";" : "", solution.smallest_params, *options.max_params);
    if (options.max_latency && solution.smallest_seconds > *options.max_latency)
        message += fmt::format(
            "{} the fastest takes {:.6g} ms by the latency table, at most {:.6g} ms were asked for",
            message.back() == ':' ? "" : ";", 1e3 * solution.smallest_seconds, 1e3 * *options.max_latency);
    if (message.back() == ':') message += " each limit can be met alone, but not all at once; loosen one";
    throw Error(ErrorKind::infeasible, message);
}

}  // namespace minipuzzle::nas
