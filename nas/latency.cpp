#include "nas/latency.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/check.h"

namespace minipuzzle::nas {

namespace {

constexpr const char* kLatencyFormat = "minipuzzle.latency/1";

// The sizes of a layer by the names that every file of ours gives them.
Json to_json(const Layer& layer) {
    Json json = {{"type", name(type_of(layer))}};
    if (const auto* mamba = std::get_if<Mamba>(&layer)) {
        json["heads"] = mamba->heads;
        json["head_dim"] = mamba->head_dim;
        json["state"] = mamba->state;
        json["groups"] = mamba->groups;
        json["conv_kernel"] = mamba->conv_kernel;
    } else if (const auto* attention = std::get_if<Attention>(&layer)) {
        json["heads"] = attention->heads;
        json["kv_heads"] = attention->kv_heads;
        json["head_dim"] = attention->head_dim;
    } else {
        json["width"] = std::get<Ffn>(layer).width;
    }
    return json;
}

Layer read_layer(ObjectReader& reader) {
    const std::string type = reader.text("type");
    if (type == name(LayerType::mamba))
        return Mamba{.heads = reader.integer("heads"),
                     .head_dim = reader.integer("head_dim"),
                     .state = reader.integer("state"),
                     .groups = reader.integer("groups"),
                     .conv_kernel = reader.integer("conv_kernel")};
    if (type == name(LayerType::attention))
        return Attention{.heads = reader.integer("heads"),
                         .kv_heads = reader.integer("kv_heads"),
                         .head_dim = reader.integer("head_dim")};
    if (type == name(LayerType::ffn)) return Ffn{.width = reader.integer("width")};
    reader.fail(fmt::format("type: found \"{}\", expected mamba, attention or ffn", type));
}

// "an FFN of width 480", for messages.
std::string describe(const Layer& layer) {
    if (const auto* mamba = std::get_if<Mamba>(&layer))
        return fmt::format("a Mamba layer of {} heads in {} groups", mamba->heads, mamba->groups);
    if (const auto* attention = std::get_if<Attention>(&layer))
        return fmt::format("an attention layer of {} and {} heads", attention->heads, attention->kv_heads);
    return fmt::format("an FFN of width {}", std::get<Ffn>(layer).width);
}

double read_seconds(ObjectReader& reader, const std::string& key) {
    const double seconds = reader.number(key);
    if (!(seconds >= 0)) reader.fail(fmt::format("{}: found {}, expected at least 0", key, seconds));
    return seconds;
}

}  // namespace

double LatencyTable::seconds(const Layer& layer) const {
    for (const LayerTime& time : layers)
        if (time.layer == layer) return time.seconds;
    const bool ffn = type_of(layer) == LayerType::ffn;
    fail_input(fmt::format(
        "{}: has no time of {}; measure it with bench --layer-latency{}", where, describe(layer),
        ffn ? fmt::format(" --ffn-widths {}", std::get<Ffn>(layer).width) : std::string(" of this model")));
}

double LatencyTable::seconds(const Architecture& student) const {
    double sum = outer;
    for (const Layer& layer : student.layers) sum += seconds(layer);
    return sum;
}

void check_latency(const LatencyTable& table, const Architecture& teacher) {
    const std::string hash = arch_hash(teacher);
    if (table.model.arch_hash == hash) return;
    fail_input(fmt::format(
        "{}: was measured of {} ({}), but the teacher's architecture is {}: time the teacher with "
        "bench --layer-latency",
        table.where, table.model.path, table.model.arch_hash, hash));
}

std::string latency_json(const LatencyTable& table) {
    Json json = artefact_header(kLatencyFormat, table.provenance);
    json["device"] = table.device;
    json["precision"] = table.precision;
    json["model"] = minipuzzle::to_json(table.model);
    json["workload"] = {{"prefill", table.prefill}, {"batch", table.batch}};
    json["outer"] = table.outer;
    json["layers"] = Json::array();
    for (const LayerTime& time : table.layers) {
        Json entry = to_json(time.layer);
        entry["seconds"] = time.seconds;
        json["layers"].push_back(std::move(entry));
    }
    json["checks"] = Json::array();
    for (const LatencyCheck& check : table.checks)
        json["checks"].push_back(
            {{"drop", check.drop}, {"predicted", check.predicted}, {"measured", check.measured}});
    return pretty(json);
}

LatencyTable read_latency(const std::filesystem::path& path) {
    const Json json = read_json(path);
    ObjectReader reader(json, path.string());
    LatencyTable table;
    table.where = path.string();
    table.provenance = reader.header(kLatencyFormat);
    table.device = reader.text("device");
    table.precision = reader.text("precision");
    table.model = reader.model("model");
    ObjectReader workload = reader.object("workload");
    table.prefill = workload.integer("prefill");
    table.batch = workload.integer("batch");
    workload.finish();
    table.outer = read_seconds(reader, "outer");
    reader.each("layers", [&](ObjectReader entry) {
        Layer layer = read_layer(entry);
        table.layers.push_back({.layer = std::move(layer), .seconds = read_seconds(entry, "seconds")});
        entry.finish();
    });
    if (reader.optional("checks"))
        reader.each("checks", [&](ObjectReader entry) {
            table.checks.push_back({.drop = entry.integers("drop"),
                                    .predicted = read_seconds(entry, "predicted"),
                                    .measured = read_seconds(entry, "measured")});
            entry.finish();
        });
    reader.finish();
    return table;
}

}  // namespace minipuzzle::nas
