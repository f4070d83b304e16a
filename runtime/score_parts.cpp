#include "runtime/score_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace minipuzzle {

namespace {

int64_t layer_of(const ObjectReader& reader, const char* key, int64_t layer, int64_t layers) {
    if (layer < 0 || layer >= layers)
        reader.fail(fmt::format("{}: found layer {}, expected one of 0..{}", key, layer, layers - 1));
    return layer;
}

std::optional<Interval> read_interval(ObjectReader& reader, const char* key) {
    const Json* json = reader.optional(key);
    if (!json) return std::nullopt;
    const bool numbers =
        json->is_array() && json->size() == 2 && (*json)[0].is_number() && (*json)[1].is_number();
    if (!numbers || (*json)[0].get<double>() > (*json)[1].get<double>())
        reader.fail(std::string(key) + ": expected [low, high]");
    return json->get<Interval>();
}

// An array of pairs of integers.
std::vector<std::array<int64_t, 2>> read_pairs_of_integers(ObjectReader& reader, const char* key) {
    const Json& json = reader.required(key);
    const auto is_pair = [](const Json& item) {
        return item.is_array() && item.size() == 2 && item[0].is_number_integer() &&
               item[1].is_number_integer();
    };
    if (!json.is_array() || !std::all_of(json.begin(), json.end(), is_pair))
        reader.fail(std::string(key) + ": expected an array of pairs of integers");
    return json.get<std::vector<std::array<int64_t, 2>>>();
}

PairScores read_pairs(ObjectReader reader, int64_t layers) {
    PairScores scores{
        .window = reader.integer("window"), .sequences = reader.integer("sequences"), .pairs = {}};
    reader.each("pairs", [&](ObjectReader item) {
        PairScore pair;
        const std::vector<int64_t> both = item.integers("layers");
        if (both.size() != 2 || both[0] >= both[1]) item.fail("layers: expected two layers, the lower first");
        pair.first = layer_of(item, "layers", both[0], layers);
        pair.second = layer_of(item, "layers", both[1], layers);
        pair.loss_delta = item.number("loss_delta");
        pair.interaction = item.number("interaction");
        pair.interaction_ci = read_interval(item, "interaction_ci");
        item.finish();
        const auto place = [](const PairScore& p) { return std::array{p.first, p.second}; };
        if (!scores.pairs.empty() && place(scores.pairs.back()) >= place(pair))
            item.fail("layers: expected pairs in ascending order, each once");
        scores.pairs.push_back(pair);
    });
    reader.finish();
    return scores;
}

RemovalStep read_step(ObjectReader reader, int64_t layers) {
    RemovalStep step;
    step.removed = layer_of(reader, "removed", reader.integer("removed"), layers);
    step.loss_delta = reader.number("loss_delta");
    step.loss_delta_ci = read_interval(reader, "loss_delta_ci");
    if (reader.optional("bytes")) step.bytes = reader.integer("bytes");
    const Json& deltas = reader.required("layers");
    const auto fits = [](const Json& item) { return item.is_null() || item.is_number(); };
    if (!deltas.is_array() || static_cast<int64_t>(deltas.size()) != layers ||
        !std::all_of(deltas.begin(), deltas.end(), fits))
        reader.fail(fmt::format("layers: expected {} numbers or nulls", layers));
    for (const Json& delta : deltas)
        step.layers.push_back(delta.is_null() ? std::nullopt : std::optional(delta.get<double>()));
    reader.finish();
    return step;
}

IterativeScores read_iterative(ObjectReader reader, int64_t layers) {
    IterativeScores scores{.sequences = reader.integer("sequences"), .steps = {}};
    reader.each("steps",
                [&](ObjectReader step) { scores.steps.push_back(read_step(std::move(step), layers)); });
    reader.finish();
    return scores;
}

RandomSets read_random_sets(ObjectReader reader, int64_t layers) {
    RandomSets scores{.sequences = reader.integer("sequences"), .sets = {}};
    reader.each("sets", [&](ObjectReader item) {
        RandomSet set{.drop = item.integers("drop"), .loss_delta = item.number("loss_delta")};
        item.finish();
        for (const int64_t layer : set.drop) layer_of(item, "drop", layer, layers);
        if (std::adjacent_find(set.drop.begin(), set.drop.end(), std::greater_equal<>()) != set.drop.end())
            item.fail("drop: expected layers in ascending order, each once");
        scores.sets.push_back(std::move(set));
    });
    reader.finish();
    return scores;
}

Certainty read_certainty(ObjectReader reader, int64_t layers) {
    Certainty certainty;
    certainty.confidence = reader.number("confidence");
    certainty.tie = reader.number("tie");
    certainty.drop = reader.integers("drop");
    for (const int64_t layer : certainty.drop) layer_of(reader, "drop", layer, layers);
    certainty.ties = read_pairs_of_integers(reader, "ties");
    certainty.open = read_pairs_of_integers(reader, "open");
    certainty.layer_work = reader.number("layer_work");
    reader.finish();
    return certainty;
}

// The file keeps both under "stability", either alone too.
void read_stability(ObjectReader reader, ScoreTable& table) {
    const int64_t layers = static_cast<int64_t>(table.layers.size());
    if (reader.optional("resamples")) {
        RankStability& stability = table.stability.emplace();
        stability.resamples = reader.integer("resamples");
        stability.documents = reader.integer("documents");
        stability.rank_correlation = reader.number("rank_correlation");
        stability.ranks = read_pairs_of_integers(reader, "ranks");
        stability.split_half = reader.optional_number("split_half");
        if (static_cast<int64_t>(stability.ranks.size()) != layers)
            reader.fail(fmt::format("ranks: found {}, expected one of each of {} layers",
                                    stability.ranks.size(), layers));
    }
    if (reader.optional("until_certain"))
        table.certainty = read_certainty(reader.object("until_certain"), layers);
    reader.finish();
}

PrecisionCheck read_precision(ObjectReader reader) {
    PrecisionCheck check{.sweep = reader.text("sweep"), .head = reader.text("head")};
    check.sequences = reader.integer("sequences");
    check.rank_correlation = reader.number("rank_correlation");
    check.rms_error = reader.number("rms_error");
    check.largest_error = reader.number("largest_error");
    reader.finish();
    return check;
}

template <class T>
Json value_or_null(const std::optional<T>& value) {
    return value ? Json(*value) : Json(nullptr);
}

Json to_json(const PairScores& scores) {
    Json json = {{"window", scores.window}, {"sequences", scores.sequences}, {"pairs", Json::array()}};
    for (const PairScore& pair : scores.pairs)
        json["pairs"].push_back({{"layers", {pair.first, pair.second}},
                                 {"loss_delta", pair.loss_delta},
                                 {"interaction", pair.interaction},
                                 {"interaction_ci", value_or_null(pair.interaction_ci)}});
    return json;
}

Json to_json(const IterativeScores& scores) {
    Json json = {{"sequences", scores.sequences}, {"steps", Json::array()}};
    for (const RemovalStep& step : scores.steps) {
        Json layers = Json::array();
        for (const auto& delta : step.layers) layers.push_back(value_or_null(delta));
        json["steps"].push_back({{"removed", step.removed},
                                 {"loss_delta", step.loss_delta},
                                 {"loss_delta_ci", value_or_null(step.loss_delta_ci)},
                                 {"bytes", value_or_null(step.bytes)},
                                 {"layers", std::move(layers)}});
    }
    return json;
}

Json to_json(const RandomSets& scores) {
    Json json = {{"sequences", scores.sequences}, {"sets", Json::array()}};
    for (const RandomSet& set : scores.sets)
        json["sets"].push_back({{"drop", set.drop}, {"loss_delta", set.loss_delta}});
    return json;
}

Json to_json(const Certainty& certainty) {
    return {{"confidence", certainty.confidence},
            {"tie", certainty.tie},
            {"drop", certainty.drop},
            {"ties", certainty.ties},
            {"open", certainty.open},
            {"layer_work", certainty.layer_work}};
}

Json stability_json(const ScoreTable& table) {
    Json json = Json::object();
    if (table.stability)
        json = {{"resamples", table.stability->resamples},
                {"documents", table.stability->documents},
                {"rank_correlation", table.stability->rank_correlation},
                {"ranks", table.stability->ranks},
                {"split_half", value_or_null(table.stability->split_half)}};
    if (table.certainty) json["until_certain"] = to_json(*table.certainty);
    return json;
}

Json to_json(const PrecisionCheck& check) {
    return {{"sweep", check.sweep},         {"head", check.head},
            {"sequences", check.sequences}, {"rank_correlation", check.rank_correlation},
            {"rms_error", check.rms_error}, {"largest_error", check.largest_error}};
}

}  // namespace

void read_score_parts(ObjectReader& reader, ScoreTable& table) {
    const int64_t layers = static_cast<int64_t>(table.layers.size());
    if (reader.optional("pairs")) table.pairs = read_pairs(reader.object("pairs"), layers);
    if (reader.optional("iterative")) table.iterative = read_iterative(reader.object("iterative"), layers);
    if (reader.optional("random_sets"))
        table.random_sets = read_random_sets(reader.object("random_sets"), layers);
    if (reader.optional("stability")) read_stability(reader.object("stability"), table);
    if (reader.optional("precision")) table.precision = read_precision(reader.object("precision"));
}

void write_score_parts(const ScoreTable& table, Json& json) {
    if (table.pairs) json["pairs"] = to_json(*table.pairs);
    if (table.iterative) json["iterative"] = to_json(*table.iterative);
    if (table.random_sets) json["random_sets"] = to_json(*table.random_sets);
    if (table.stability || table.certainty) json["stability"] = stability_json(table);
    if (table.precision) json["precision"] = to_json(*table.precision);
}

}  // namespace minipuzzle
