#include "runtime/score_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/score_parts.h"

namespace minipuzzle {

namespace {

constexpr const char* kScoresFormat = "minipuzzle.scores/1";

struct ObjectiveName {
    Objective objective;
    std::string_view name;
};
constexpr ObjectiveName kObjectives[] = {{Objective::loss_delta, "loss_delta"},
                                         {Objective::kl, "kl"},
                                         {Objective::hidden_mse, "hidden_mse"},
                                         {Objective::logit_nmse, "logit_nmse"},
                                         {Objective::one_minus_cosine, "one_minus_cosine"}};

// The metrics of a layer that are one number or null, in file order. loss_delta_ci follows loss_delta.
struct Metric {
    const char* key;
    std::optional<double> LayerScore::*member;
};
constexpr Metric kMetrics[] = {
    {"loss_delta", &LayerScore::loss_delta}, {"kl", &LayerScore::kl},
    {"hidden_mse", &LayerScore::hidden_mse}, {"logit_nmse", &LayerScore::logit_nmse},
    {"cosine", &LayerScore::cosine},         {"top1_agreement", &LayerScore::top1_agreement}};
constexpr Metric kPreNorm = {"hidden_mse_pre_norm", &LayerScore::hidden_mse_pre_norm};

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

bool has_pre_norm(const ScoreTable& table) {
    return std::any_of(table.layers.begin(), table.layers.end(),
                       [](const LayerScore& layer) { return layer.hidden_mse_pre_norm.has_value(); });
}

// ---- reading

LayerType parse_letter(const std::string& text, const ObjectReader& reader) {
    for (const LayerType type : kLayerTypes)
        if (text.size() == 1 && text[0] == letter(type)) return type;
    reader.fail(fmt::format("type: found \"{}\", expected M, * or -", text));
}

std::vector<double> read_numbers(const Json& array, const std::string& key, const ObjectReader& reader) {
    const bool numbers = array.is_array() &&
                         std::all_of(array.begin(), array.end(), [](const Json& x) { return x.is_number(); });
    if (!numbers) reader.fail(key + ": expected an array of numbers");
    return array.get<std::vector<double>>();
}

LayerScore read_layer(ObjectReader reader, int64_t expected_layer) {
    LayerScore score;
    score.layer = reader.integer("layer");
    if (score.layer != expected_layer)
        reader.fail(fmt::format("layer: found {}, expected {}: every layer once, in order", score.layer,
                                expected_layer));
    score.type = parse_letter(reader.text("type"), reader);
    for (const Metric& metric : kMetrics) score.*metric.member = reader.optional_number(metric.key);
    score.*kPreNorm.member = reader.optional_number(kPreNorm.key);
    if (const Json* interval = reader.optional("loss_delta_ci")) {
        const std::vector<double> ends = read_numbers(*interval, "loss_delta_ci", reader);
        if (ends.size() != 2 || ends[0] > ends[1]) reader.fail("loss_delta_ci: expected [low, high]");
        score.loss_delta_ci = {ends[0], ends[1]};
    }
    score.samples = reader.integer("samples", 0);
    reader.finish();
    return score;
}

CalibrationInfo read_calibration(ObjectReader reader) {
    CalibrationInfo calibration;
    reader.each("sources", [&](ObjectReader source) {
        calibration.sources.push_back({.path = source.text("path"), .hash = source.text("hash")});
        source.finish();
    });
    calibration.sequences = reader.integer("sequences");
    calibration.seq_len = reader.integer("seq_len");
    calibration.tokens = reader.integer("tokens");
    reader.finish();
    return calibration;
}

std::vector<WidthPoint> read_curve(ObjectReader& reader) {
    std::vector<WidthPoint> curve;
    reader.each("ffn_width_curve", [&](ObjectReader point) {
        curve.push_back({.ffn_width = point.integer("ffn_width"),
                         .loss_delta = point.number("loss_delta"),
                         .kl = point.optional_number("kl")});
        if (curve.back().ffn_width < 1) point.fail("ffn_width: expected at least 1");
        point.finish();
    });
    std::sort(curve.begin(), curve.end(),
              [](const WidthPoint& a, const WidthPoint& b) { return a.ffn_width > b.ffn_width; });
    for (std::size_t i = 1; i < curve.size(); ++i)
        if (curve[i].ffn_width == curve[i - 1].ffn_width)
            reader.fail(fmt::format("ffn_width_curve: width {} is listed twice", curve[i].ffn_width));
    return curve;
}

void read_layers(ObjectReader& reader, ScoreTable& table) {
    reader.each("layers", [&](ObjectReader layer) {
        table.layers.push_back(read_layer(std::move(layer), static_cast<int64_t>(table.layers.size())));
    });
    std::string pattern;
    for (const LayerScore& layer : table.layers) pattern += letter(layer.type);
    if (pattern != table.model.pattern)
        reader.fail(fmt::format("layers: their types spell {}, expected model.pattern {}", pattern,
                                table.model.pattern));
}

void read_optional_parts(ObjectReader& reader, ScoreTable& table) {
    if (reader.optional("calibration")) table.calibration = read_calibration(reader.object("calibration"));
    if (reader.optional("base")) {
        ObjectReader base = reader.object("base");
        table.base_loss = base.optional_number("loss");
        table.base_accuracy = base.optional_number("next_token_accuracy");
        base.finish();
    }
    if (reader.optional("ffn_width_curve")) table.ffn_width_curve = read_curve(reader);
    if (reader.optional("width_scores")) {
        ObjectReader width = reader.object("width_scores");
        table.width_scores_file = width.text("file");
        table.width_scores_hash = width.text("hash", "");
        width.finish();
    }
    if (const Json* sequences = reader.optional("per_sequence")) {
        if (!sequences->is_object()) reader.fail("per_sequence: expected an object of arrays");
        for (const auto& [key, values] : sequences->items())
            table.per_sequence[key] = read_numbers(values, "per_sequence." + key, reader);
    }
    read_score_parts(reader, table);
}

// ---- writing

Json layer_json(const LayerScore& layer, bool pre_norm) {
    Json json = {{"layer", layer.layer}, {"type", std::string(1, letter(layer.type))}};
    for (const Metric& metric : kMetrics) {
        json[metric.key] = number_or_null(layer.*metric.member);
        if (metric.member == &LayerScore::loss_delta)
            json["loss_delta_ci"] = layer.loss_delta_ci ? Json(*layer.loss_delta_ci) : Json(nullptr);
    }
    if (pre_norm) json[kPreNorm.key] = number_or_null(layer.*kPreNorm.member);
    json["samples"] = layer.samples;
    return json;
}

Json calibration_json(const std::optional<CalibrationInfo>& calibration) {
    if (!calibration) return nullptr;
    Json sources = Json::array();
    for (const DataFile& file : calibration->sources)
        sources.push_back({{"path", file.path}, {"hash", file.hash}});
    return {{"sources", sources},
            {"sequences", calibration->sequences},
            {"seq_len", calibration->seq_len},
            {"tokens", calibration->tokens}};
}

}  // namespace

std::string_view name(Objective objective) { return kObjectives[static_cast<std::size_t>(objective)].name; }

Objective parse_objective(const std::string& text) {
    std::string known;
    for (const ObjectiveName& entry : kObjectives) {
        if (entry.name == text) return entry.objective;
        known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.name);
    }
    fail_usage(fmt::format("objective {}: expected one of {}", text, known));
}

std::optional<double> value(const LayerScore& score, Objective objective) {
    switch (objective) {
        case Objective::loss_delta:
            return score.loss_delta;
        case Objective::kl:
            return score.kl;
        case Objective::hidden_mse:
            return score.hidden_mse;
        case Objective::logit_nmse:
            return score.logit_nmse;
        case Objective::one_minus_cosine:
            return score.cosine ? std::optional(1.0 - *score.cosine) : std::nullopt;
    }
    MP_ASSERT(false);
}

Objective default_objective(const ScoreTable& table) {
    std::vector<Objective> present;
    for (const ObjectiveName& entry : kObjectives)
        if (std::any_of(table.layers.begin(), table.layers.end(),
                        [&](const LayerScore& layer) { return value(layer, entry.objective).has_value(); }))
            present.push_back(entry.objective);
    if (present.empty())
        fail_input("the scores hold no metric at all, expected loss_delta or another; score the model first");
    if (present.front() == Objective::loss_delta || present.size() == 1) return present.front();
    std::string names;
    for (const Objective objective : present)
        names += fmt::format("{}{}", names.empty() ? "" : ", ", name(objective));
    fail_input(fmt::format("the scores hold {} but no loss_delta; choose with --objective", names));
}

ScoreTable read_scores(const std::filesystem::path& path) {
    const Json json = read_json(path);
    ObjectReader reader(json, path.string() + ": ");
    ScoreTable table;
    table.provenance = reader.header(kScoresFormat);
    table.model = reader.model("model");
    read_layers(reader, table);
    read_optional_parts(reader, table);
    table.notes = reader.text("notes", "");
    reader.finish();
    return table;
}

std::string scores_json(const ScoreTable& table) {
    Json json = artefact_header(kScoresFormat, table.provenance);
    json["model"] = to_json(table.model);
    json["calibration"] = calibration_json(table.calibration);
    json["base"] = {{"loss", number_or_null(table.base_loss)},
                    {"next_token_accuracy", number_or_null(table.base_accuracy)}};
    const bool pre_norm = has_pre_norm(table);
    json["layers"] = Json::array();
    for (const LayerScore& layer : table.layers) json["layers"].push_back(layer_json(layer, pre_norm));
    if (!table.ffn_width_curve.empty()) {
        Json& curve = json["ffn_width_curve"] = Json::array();
        for (const WidthPoint& point : table.ffn_width_curve) {
            curve.push_back({{"ffn_width", point.ffn_width}, {"loss_delta", point.loss_delta}});
            if (point.kl) curve.back()["kl"] = *point.kl;
        }
    }
    if (!table.width_scores_file.empty())
        json["width_scores"] = {{"file", table.width_scores_file}, {"hash", table.width_scores_hash}};
    if (!table.per_sequence.empty()) json["per_sequence"] = table.per_sequence;
    write_score_parts(table, json);
    if (!table.notes.empty()) json["notes"] = table.notes;
    return pretty(json);
}

std::string scores_csv(const ScoreTable& table) {
    const auto cell = [](const std::optional<double>& value) {
        return value ? fmt::format(",{}", *value) : std::string(",");
    };
    const bool pre_norm = has_pre_norm(table);
    std::string text = "layer,type";
    for (const Metric& metric : kMetrics) {
        text += fmt::format(",{}", metric.key);
        if (metric.member == &LayerScore::loss_delta) text += ",loss_delta_low,loss_delta_high";
    }
    text += fmt::format("{},samples\n", pre_norm ? std::string(",") + kPreNorm.key : "");
    for (const LayerScore& layer : table.layers) {
        text += fmt::format("{},{}", layer.layer, letter(layer.type));
        for (const Metric& metric : kMetrics) {
            text += cell(layer.*metric.member);
            if (metric.member != &LayerScore::loss_delta) continue;
            for (std::size_t end = 0; end < 2; ++end)
                text += cell(layer.loss_delta_ci ? std::optional((*layer.loss_delta_ci)[end]) : std::nullopt);
        }
        if (pre_norm) text += cell(layer.*kPreNorm.member);
        text += fmt::format(",{}\n", layer.samples);
    }
    return text;
}

void check_scores(const ScoreTable& table, const Architecture& architecture, const std::string& where) {
    if (table.model.pattern != architecture.pattern())
        fail_input(fmt::format("{}: the scores are of the pattern {}, the model's is {}; score this model",
                               where, table.model.pattern, architecture.pattern()));
    if (!table.model.arch_hash.empty() && table.model.arch_hash != arch_hash(architecture))
        fail_input(
            fmt::format("{}: the scores are of the architecture {}, the model's is {}; score this model",
                        where, table.model.arch_hash, arch_hash(architecture)));
}

}  // namespace minipuzzle
