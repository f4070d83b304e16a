#include "cli/bench_ops.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <regex>

#include "cli/bench/limits.h"
#include "cli/bench/operation.h"
#include "cli/bench/timing.h"
#include "cli/bench/twin.h"
#include "cli/model_loading.h"
#include "cli/table.h"
#include "cli/units.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

using namespace bench;

constexpr const char* kFormat = "minipuzzle.bench/1";

// Bytes that the sets of one operation hold together, so that no cache keeps one from launch to launch.
int64_t rotated_bytes(const Backend& backend) {
    return backend.device() == DeviceKind::cpu ? int64_t{64} << 20 : int64_t{1} << 30;
}
constexpr int64_t kMostSets = 64;

Operations matching(const Backend& backend, const std::string& match) {
    Operations all = all_operations(backend.device()), chosen;
    std::vector<std::string> names;
    try {
        const std::regex pattern(match);
        for (auto& operation : all) {
            names.push_back(operation->name());
            if (std::regex_search(operation->name(), pattern)) chosen.push_back(std::move(operation));
        }
    } catch (const std::regex_error& error) {
        fail_usage(fmt::format("--match \"{}\" is no regular expression: {}", match, error.what()));
    }
    if (chosen.empty())
        fail_usage(fmt::format("--match \"{}\" matches none of: {}", match, fmt::join(names, "; ")));
    return chosen;
}

// What was measured of one operation; without a timing it did not fit.
struct Measured {
    std::string operation, shape;
    Needs needs;
    std::optional<Timing> timing;
    Check check;

    bool failed() const { return timing && !check.passed(); }
};

// How many sets of `needs` there are room and use for; 0 where not even one fits.
int64_t set_count(const Backend& backend, const Needs& needs) {
    const int64_t bytes = std::max<int64_t>(needs.bytes, 1);
    const int64_t room = backend.available() / 10 * 9 - needs.scratch;
    return std::min({div_up(rotated_bytes(backend), bytes), kMostSets, std::max<int64_t>(room, 0) / bytes});
}

Measured measure(Backend& backend, Operation& operation, int threads) {
    Measured measured{.operation = operation.operation(),
                      .shape = operation.shape(),
                      .needs = operation.needs(backend),
                      .timing = {},
                      .check = {}};
    const int64_t sets = set_count(backend, measured.needs);
    if (sets == 0) return measured;
    backend.reserve_scratch(measured.needs.scratch);
    Memory memory(backend);
    for (int64_t i = 0; i < sets; ++i) operation.make_set(memory);
    measured.timing = time_launches(backend, [&](int64_t i) { operation.launch(backend, i); });
    Twin twin(backend, threads);
    measured.check = operation.check(twin);
    operation.forget_sets();
    return measured;
}

// ---- the result

double flops_of(const Cost& cost) { return cost.flops + cost.quantised_flops; }

struct Rate {
    bool memory;
    double value, share;  // GB/s or TFLOP/s; of the device's limit

    Rate(const Limits& limits, const Needs& needs, const Timing& timing)
        : memory(limits.memory_bound(needs.cost)),
          value(memory ? needs.cost.bytes / timing.ms * 1e-6 : flops_of(needs.cost) / timing.ms * 1e-9),
          share(limits.seconds(needs.cost) * 1e3 / timing.ms) {}
    const char* unit() const { return memory ? "GB/s" : "TFLOP/s"; }
};

Json to_json(const Limits& limits) {
    Json json = {
        {"copy",
         {{"name", limits.copy.name}, {"ms", limits.copy.ms}, {"bytes_per_second", limits.copy.per_second}}},
        {"products", Json::array()},
        {"bytes_per_second", limits.bandwidth},
        {"flops_per_second", limits.product_rate},
        {"quantised_flops_per_second", limits.quantised_product_rate}};
    for (const auto* rows : {&limits.products, &limits.quantised_products})
        for (const LimitRow& row : *rows)
            json["products"].push_back(
                {{"name", row.name}, {"ms", row.ms}, {"flops_per_second", row.per_second}});
    return json;
}

Json to_json(const Measured& measured, const Limits& limits) {
    Json json = {{"operation", measured.operation},
                 {"shape", measured.shape},
                 {"bytes", measured.needs.cost.bytes},
                 {"flops", flops_of(measured.needs.cost)},
                 {"ms", nullptr},
                 {"launches", 0},
                 {"limit", nullptr},
                 {"rate", nullptr},
                 {"unit", nullptr},
                 {"share", nullptr},
                 {"check", nullptr}};
    if (!measured.timing) return json;
    const Rate rate(limits, measured.needs, *measured.timing);
    json["ms"] = measured.timing->ms;
    json["launches"] = measured.timing->launches;
    json["limit"] = rate.memory ? "memory" : "products";
    json["rate"] = rate.value;
    json["unit"] = rate.unit();
    json["share"] = rate.share;
    json["check"] = {{"passed", measured.check.passed()},
                     {"error", measured.check.error},
                     {"tolerance", measured.check.tolerance},
                     {"part", measured.check.part}};
    return json;
}

std::string text_of(const Limits& limits) {
    Table table({"limit", "ms", "rate"});
    table.add(
        {limits.copy.name, cell(limits.copy.ms, 3), fmt::format("{:.1f} GB/s", limits.bandwidth * 1e-9)});
    for (const auto* rows : {&limits.products, &limits.quantised_products})
        for (const LimitRow& row : *rows)
            table.add({row.name, cell(row.ms, 3), fmt::format("{:.3g} TFLOP/s", row.per_second * 1e-12)});
    return table.text();
}

std::string text_of(const std::vector<Measured>& all, const Limits& limits) {
    Table table({"operation", "ms", "rate", "of limit", "check", "error", "allowed"});
    for (const Measured& each : all) {
        if (!each.timing) {
            table.add({each.operation + " " + each.shape, "-", "-", "-",
                       fmt::format("needs {}", format_bytes(each.needs.bytes + each.needs.scratch)), "-",
                       "-"});
            continue;
        }
        const Rate rate(limits, each.needs, *each.timing);
        table.add({each.operation + " " + each.shape, fmt::format("{:.4g}", each.timing->ms),
                   fmt::format("{:.4g} {}", rate.value, rate.unit()),
                   fmt::format("{:.0f} %", 100 * rate.share), each.check.passed() ? "PASS" : "FAIL",
                   fmt::format("{:.1e}", each.check.error), fmt::format("{:.0e}", each.check.tolerance)});
    }
    return table.text();
}

}  // namespace

CommandResult bench_ops(const Context& context, const std::string& match) {
    const auto backend = open_backend(context);
    const Operations operations = matching(*backend, match);
    if (backend->device() == DeviceKind::cpu)
        context.console.note("on the CPU the shapes are those of a small model");
    const auto total = static_cast<double>(operations.size() + 1);
    const auto next = [&](double done, const std::string& name) {
        if (context.control.stopping()) throw Interrupted{"bench stopped; nothing was kept"};
        context.control.report({"measuring", done, total, "operations", name});
    };

    next(0, "limits");
    const Limits limits = measure_limits(*backend);
    std::vector<Measured> all;
    for (const auto& operation : operations) {
        next(static_cast<double>(all.size() + 1), operation->name());
        all.push_back(measure(*backend, *operation, narrow<int>(context.globals.threads)));
    }

    Json json = artefact_header(kFormat, context.provenance());
    json["device"] = backend->name();
    json["limits"] = to_json(limits);
    json["operations"] = Json::array();
    for (const Measured& each : all) json["operations"].push_back(to_json(each, limits));
    const auto failed =
        std::count_if(all.begin(), all.end(), [](const Measured& each) { return each.failed(); });
    std::string text = fmt::format("{}\n\n{}\n{}", backend->name(), text_of(limits), text_of(all, limits));
    if (failed > 0) text += fmt::format("{} of {} checks against the CPU failed\n", failed, all.size());
    return {.json = std::move(json), .text = text, .failed = failed > 0};
}

}  // namespace minipuzzle::cli
