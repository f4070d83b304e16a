#include "cli/bench_layers.h"

#include <fmt/format.h>

#include "cli/model_loading.h"
#include "cli/opened_model.h"
#include "cli/table.h"
#include "nas/layer_timing.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

std::string sizes_of(const Layer& layer) {
    if (const auto* mamba = std::get_if<Mamba>(&layer))
        return fmt::format("{} heads of {}, state {}, {} groups", mamba->heads, mamba->head_dim, mamba->state,
                           mamba->groups);
    if (const auto* attention = std::get_if<Attention>(&layer))
        return fmt::format("{} heads of {}, {} kv heads", attention->heads, attention->head_dim,
                           attention->kv_heads);
    return fmt::format("width {}", std::get<Ffn>(layer).width);
}

std::string latency_text(const nas::LatencyTable& table, const Architecture& architecture) {
    const auto ms = [](double seconds) { return fmt::format("{:.4f}", 1e3 * seconds); };
    Table layers({"layer", "sizes", "ms", "in the model", "ms of them"});
    for (const nas::LayerTime& time : table.layers) {
        int64_t count = 0;
        for (const Layer& layer : architecture.layers) count += layer == time.layer;
        layers.add({std::string(name(type_of(time.layer))), sizes_of(time.layer), ms(time.seconds),
                    std::to_string(count), ms(static_cast<double>(count) * time.seconds)});
    }
    layers.add(
        {"outer", "embedding, final norm, LM head of last tokens", ms(table.outer), "1", ms(table.outer)});
    std::string text = fmt::format("prefill of {} x {} tokens in {} on {}\n{}", table.batch, table.prefill,
                                   table.precision, table.device, layers.text());
    for (const nas::LatencyCheck& check : table.checks)
        text += fmt::format("whole pass of {} layers: predicted {} ms, measured {} ms ({:+.2f} %)\n",
                            architecture.layers.size() - check.drop.size(), ms(check.predicted),
                            ms(check.measured), 100 * (check.predicted / check.measured - 1));
    return text;
}

}  // namespace

CommandResult bench_layers(const Context& context, const BenchCommand& command) {
    check_output_file(command.out);
    const auto backend = open_backend(context);
    const OpenedModel model(*backend, command.model, command.weights, context);
    nas::LatencyTable table = nas::time_layers(
        *backend, model.architecture(), model.weights(),
        {.prefill = command.prefill, .batch = command.batch, .ffn_widths = command.ffn_widths},
        context.seed(), context.control);
    table.provenance = context.provenance();
    table.model = model.identity();
    const std::string json = nas::latency_json(table);
    write_file_atomically(command.out, json);
    return {.json = Json::parse(json),
            .text = latency_text(table, model.architecture()) + fmt::format("wrote {}\n", command.out)};
}

}  // namespace minipuzzle::cli
