// search.json: minipuzzle.search/1.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "nas/search.h"

namespace minipuzzle::nas {

namespace {

constexpr const char* kSearchFormat = "minipuzzle.search/1";

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }
// 0 stands for "no single width".
Json width_json(int64_t width) { return width == 0 ? Json(nullptr) : Json(width); }

Json predicted_json(const Predicted& predicted) {
    Json terms = {{"base", number_or_null(predicted.base)},
                  {"layers", number_or_null(predicted.layers)},
                  {"pairs", number_or_null(predicted.pairs)},
                  {"width_term", number_or_null(predicted.width_term)}};
    if (predicted.correction) terms["correction"] = *predicted.correction;
    if (predicted.fitted) terms["fitted"] = *predicted.fitted;
    return {{"value", predicted.value}, {"loss", number_or_null(predicted.loss)}, {"terms", terms}};
}

Json type_corrections_json(const TypeCorrections& corrections) {
    Json json = {{"origin", corrections.origin}, {"sets", corrections.sets}};
    for (const LayerType type : kLayerTypes) {
        const TypeCorrections::Type& of = corrections.types[static_cast<std::size_t>(type)];
        json[std::string(name(type))] = {{"weight", of.weight}, {"growth", of.growth}};
    }
    return json;
}

TypeCorrections read_type_corrections(ObjectReader reader, Objective objective) {
    TypeCorrections corrections;
    corrections.objective = objective;
    corrections.origin = reader.text("origin");
    corrections.sets = static_cast<std::size_t>(reader.integer("sets"));
    for (const LayerType type : kLayerTypes) {
        ObjectReader of = reader.object(std::string(name(type)));
        corrections.types[static_cast<std::size_t>(type)] = {.weight = of.number("weight"),
                                                             .growth = of.number("growth")};
        of.finish();
    }
    reader.finish();
    return corrections;
}

Json measured_json(const std::optional<Measured>& measured) {
    if (!measured) return nullptr;
    Json json = {{"loss", measured->loss},
                 {"kl", measured->kl},
                 {"next_token_accuracy", measured->next_token_accuracy},
                 {"top1_agreement", measured->top1_agreement},
                 {"tokens", measured->tokens}};
    if (measured->tasks)
        json["tasks"] = {{"accuracy", measured->tasks->accuracy},
                         {"stderr", number_or_null(measured->tasks->standard_error)}};
    return json;
}

Json entry_json(const TournamentEntry& entry) {
    Json json = {{"id", entry.id}, {"loss_before", entry.loss_before}};
    json.update(measured_json(entry.after));
    json["tokens"] = entry.tokens;
    return json;
}

Json candidate_json(const Candidate& candidate) {
    Json json = {{"id", candidate.id},
                 {"pattern", candidate.pattern},
                 {"drop", candidate.plan.drop},
                 {"ffn_width", width_json(candidate.ffn_width)}};
    if (!candidate.plan.ffn_widths.empty()) {
        Json& widths = json["ffn_widths"] = Json::object();
        for (const auto& [layer, width] : candidate.plan.ffn_widths) widths[std::to_string(layer)] = width;
    }
    if (candidate.plan.mamba_heads_per_group)
        json["mamba_heads_per_group"] = *candidate.plan.mamba_heads_per_group;
    json["counts"] = {{"mamba", candidate.mamba}, {"ffn", candidate.ffn}, {"attention", candidate.attention}};
    json["params"] = candidate.params;
    json["memory"] = to_json(candidate.memory);
    if (!candidate.fit_totals.empty()) json["fits"] = candidate.fit_totals;
    if (candidate.latency) json["latency"] = *candidate.latency;
    json["predicted"] = predicted_json(candidate.predicted);
    json["measured"] = measured_json(candidate.measured);
    json["round"] = candidate.round ? Json(*candidate.round) : Json(nullptr);
    json["pareto_predicted"] = candidate.pareto_predicted;
    json["pareto_measured"] = candidate.pareto_measured;
    return json;
}

Predicted read_predicted(ObjectReader reader) {
    Predicted predicted;
    predicted.value = reader.number("value");
    predicted.loss = reader.optional_number("loss");
    ObjectReader terms = reader.object("terms");
    predicted.base = terms.optional_number("base");
    predicted.layers = terms.optional_number("layers");
    predicted.pairs = terms.optional_number("pairs");
    predicted.correction = terms.optional_number("correction");
    predicted.width_term = terms.optional_number("width_term");
    predicted.fitted = terms.optional_number("fitted");
    terms.finish();
    reader.finish();
    return predicted;
}

Measured read_measured(ObjectReader& reader) {
    Measured measured;
    measured.loss = reader.number("loss");
    measured.kl = reader.number("kl");
    measured.next_token_accuracy = reader.number("next_token_accuracy");
    measured.top1_agreement = reader.number("top1_agreement");
    measured.tokens = reader.integer("tokens");
    if (reader.optional("tasks")) {
        ObjectReader tasks = reader.object("tasks");
        measured.tasks = {.accuracy = tasks.number("accuracy"),
                          .standard_error = tasks.optional_number("stderr")};
        tasks.finish();
    }
    return measured;
}

// {"3": 512}: FFN widths of single layers.
std::map<int64_t, int64_t> read_widths(ObjectReader& reader) {
    std::map<int64_t, int64_t> widths;
    const Json* value = reader.optional("ffn_widths");
    if (value == nullptr) return widths;
    for (const auto& [key, width] : value->items()) {
        const bool digits =
            !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == key.npos;
        if (!digits || !width.is_number_integer())
            reader.fail(fmt::format("ffn_widths: found \"{}\": {}, expected a layer and its width", key,
                                    width.dump()));
        widths[std::stoll(key)] = width.get<int64_t>();
    }
    return widths;
}

TournamentEntry read_entry(ObjectReader reader) {
    TournamentEntry entry;
    entry.id = reader.text("id");
    entry.loss_before = reader.number("loss_before");
    entry.after = read_measured(reader);
    entry.tokens = std::exchange(entry.after.tokens, 0);
    reader.finish();
    return entry;
}

Candidate read_candidate(ObjectReader reader) {
    Candidate candidate;
    candidate.id = reader.text("id");
    candidate.pattern = reader.text("pattern");
    candidate.plan.drop = reader.integers("drop");
    candidate.ffn_width = reader.integer("ffn_width", 0);
    candidate.plan.ffn_widths = read_widths(reader);
    if (candidate.ffn_width != 0 && candidate.plan.ffn_widths.empty())
        candidate.plan.ffn_width = candidate.ffn_width;
    if (reader.optional("mamba_heads_per_group"))
        candidate.plan.mamba_heads_per_group = reader.integer("mamba_heads_per_group");
    ObjectReader counts = reader.object("counts");
    candidate.mamba = counts.integer("mamba");
    candidate.ffn = counts.integer("ffn");
    candidate.attention = counts.integer("attention");
    counts.finish();
    candidate.params = reader.integer("params");
    candidate.memory = read_memory(reader.object("memory"));
    if (reader.optional("fits")) candidate.fit_totals = reader.integers("fits");
    candidate.latency = reader.optional_number("latency");
    candidate.predicted = read_predicted(reader.object("predicted"));
    if (reader.optional("measured")) {
        ObjectReader measured = reader.object("measured");
        candidate.measured = read_measured(measured);
        measured.finish();
    }
    if (reader.optional("round")) candidate.round = reader.integer("round");
    candidate.pareto_predicted = reader.boolean("pareto_predicted", false);
    candidate.pareto_measured = reader.boolean("pareto_measured", false);
    reader.finish();
    return candidate;
}

Json constraint_json(const Constraint& constraint) {
    return {{"context", constraint.context},
            {"batch", constraint.batch},
            {"bytes", constraint.bytes},
            {"total", constraint.total}};
}

Constraint read_constraint(ObjectReader reader) {
    Constraint constraint;
    constraint.context = reader.integer("context");
    constraint.batch = reader.integer("batch");
    constraint.bytes = reader.integer("bytes");
    constraint.total = reader.integer("total");
    reader.finish();
    return constraint;
}

FrontierPoint read_frontier_point(ObjectReader reader) {
    FrontierPoint point;
    point.total = reader.integer("total");
    point.value = reader.number("value");
    point.drop = reader.integers("drop");
    point.ffn_width = reader.integer("ffn_width", 0);
    reader.finish();
    return point;
}

SearchRound read_round(ObjectReader reader) {
    SearchRound round;
    round.measured = reader.integer("measured");
    round.fresh = reader.integer("new");
    round.best = reader.text("best");
    round.best_cost = reader.number("best_cost");
    round.rank_correlation = reader.optional_number("rank_correlation");
    reader.finish();
    return round;
}

void read_head(ObjectReader& reader, SearchResult& result) {
    result.provenance = reader.header(kSearchFormat);
    result.status = reader.text("status");
    if (result.status != "measured" && result.status != "predicted_only")
        reader.fail(fmt::format("status: found \"{}\", expected measured or predicted_only", result.status));
    result.objective = parse_objective(reader.text("objective"));
    result.select_by = reader.text("select_by", "");
    ObjectReader budget = reader.object("budget");
    result.budget_bytes = budget.integer("bytes", -1);
    if (budget.optional("max_params")) result.max_params = budget.integer("max_params");
    budget.finish();
    result.workload = read_workload(reader.object("workload"));
    if (reader.optional("constraints"))
        reader.each("constraints", [&](ObjectReader constraint) {
            result.constraints.push_back(read_constraint(constraint));
        });
    ObjectReader teacher = reader.object("teacher");
    result.teacher_pattern = teacher.text("pattern");
    result.teacher_params = teacher.integer("params");
    result.teacher_memory = read_memory(teacher.object("memory"));
    if (teacher.optional("measured")) {
        ObjectReader measured = teacher.object("measured");
        result.teacher_measured = read_measured(measured);
        measured.finish();
    }
    teacher.finish();
}

// Predictor, solver and seconds are missing in files of before there was a choice.
void read_proof(ObjectReader proof, SearchResult& result) {
    const std::string status = proof.text("status");
    if (status != "optimal_for_predictor" && status != "bounded")
        proof.fail(fmt::format("status: found \"{}\", expected optimal_for_predictor or bounded", status));
    result.proven = status == "optimal_for_predictor";
    result.bound = proof.number("bound");
    result.gap = proof.number("gap");
    const std::string predictor = proof.text("predictor", "additive");
    if (predictor != "additive" && predictor != "pairs")
        proof.fail(fmt::format("predictor: found \"{}\", expected additive or pairs", predictor));
    result.predictor = predictor == "pairs" ? Predictor::pairs : Predictor::additive;
    result.solver = proof.text("solver", "enumeration");
    result.seconds = proof.optional_number("seconds");
    proof.finish();
}

}  // namespace

std::string search_json(const SearchResult& result) {
    Json json = artefact_header(kSearchFormat, result.provenance);
    json["status"] = result.status;
    json["objective"] = name(result.objective);
    json["select_by"] = result.select_by.empty() ? Json(nullptr) : Json(result.select_by);
    json["budget"] = {{"bytes", result.budget_bytes < 0 ? Json(nullptr) : Json(result.budget_bytes)},
                      {"max_params", result.max_params ? Json(*result.max_params) : Json(nullptr)}};
    json["workload"] = to_json(result.workload);
    for (const Constraint& constraint : result.constraints)
        json["constraints"].push_back(constraint_json(constraint));
    json["teacher"] = {{"pattern", result.teacher_pattern},
                       {"params", result.teacher_params},
                       {"memory", to_json(result.teacher_memory)}};
    if (result.teacher_measured) json["teacher"]["measured"] = measured_json(result.teacher_measured);
    json["candidates"] = Json::array();
    for (const Candidate& candidate : result.candidates)
        json["candidates"].push_back(candidate_json(candidate));
    json["best"] = result.best;
    json["finalists"] = result.finalists;
    json["rounds"] = Json::array();
    for (const SearchRound& round : result.rounds)
        json["rounds"].push_back({{"measured", round.measured},
                                  {"new", round.fresh},
                                  {"best", round.best},
                                  {"best_cost", round.best_cost},
                                  {"rank_correlation", number_or_null(round.rank_correlation)}});
    json["frontier"] = Json::array();
    for (const FrontierPoint& point : result.frontier)
        json["frontier"].push_back({{"total", point.total},
                                    {"value", point.value},
                                    {"drop", point.drop},
                                    {"ffn_width", width_json(point.ffn_width)}});
    json["proof"] = {{"status", result.proven ? "optimal_for_predictor" : "bounded"},
                     {"bound", result.bound},
                     {"gap", result.gap},
                     {"predictor", name(result.predictor)},
                     {"solver", result.solver},
                     {"seconds", number_or_null(result.seconds)}};
    json["compositions"] = result.compositions;
    json["rank_correlation"] = number_or_null(result.rank_correlation);
    for (const TournamentEntry& entry : result.tournament) json["tournament"].push_back(entry_json(entry));
    if (result.type_corrections) json["type_corrections"] = type_corrections_json(*result.type_corrections);
    return pretty(json);
}

SearchResult read_search(const std::filesystem::path& path) {
    const Json json = read_json(path);
    ObjectReader reader(json, path.string());
    SearchResult result;
    read_head(reader, result);
    reader.each("candidates",
                [&](ObjectReader candidate) { result.candidates.push_back(read_candidate(candidate)); });
    result.best = reader.text("best");
    if (const Json* finalists = reader.optional("finalists"))
        for (const Json& id : *finalists) {
            if (!id.is_string()) reader.fail("finalists: expected candidates' ids");
            result.finalists.push_back(id.get<std::string>());
        }
    if (reader.optional("rounds"))
        reader.each("rounds", [&](ObjectReader round) { result.rounds.push_back(read_round(round)); });
    reader.each("frontier",
                [&](ObjectReader point) { result.frontier.push_back(read_frontier_point(point)); });
    read_proof(reader.object("proof"), result);
    result.compositions = reader.integer("compositions", 0);
    result.rank_correlation = reader.optional_number("rank_correlation");
    if (reader.optional("tournament"))
        reader.each("tournament",
                    [&](ObjectReader entry) { result.tournament.push_back(read_entry(entry)); });
    if (reader.optional("type_corrections"))
        result.type_corrections = read_type_corrections(reader.object("type_corrections"), result.objective);
    reader.finish();
    for (const Candidate& candidate : result.candidates)
        if (candidate.fit_totals.size() != result.constraints.size())
            reader.fail(fmt::format("candidate {} has {} totals in fits, expected {}, one a constraint",
                                    candidate.id, candidate.fit_totals.size(), result.constraints.size()));
    const bool has_best =
        std::any_of(result.candidates.begin(), result.candidates.end(),
                    [&](const Candidate& candidate) { return candidate.id == result.best; });
    if (!has_best) reader.fail(fmt::format("best: found \"{}\", expected a candidate's id", result.best));
    return result;
}

}  // namespace minipuzzle::nas
