#include "cli/report/claims.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/html.h"
#include "cli/report/layer_strips.h"
#include "cli/report/words.h"

namespace minipuzzle::report {
namespace {

void claims_of_scores(const ScoreTable& table, std::vector<std::string>& out) {
    if (table.calibration)
        out.push_back(fmt::format(
            "Every layer was switched off in turn on {} sequences ({} tokens) of calibration text. "
            "A score says what one layer is worth while all others stay; what two "
            "layers cost together it does not say.",
            grouped(table.calibration->sequences), grouped(table.calibration->tokens)));
    else
        out.push_back(
            "The scores file names no calibration data: its scores are published figures or another "
            "tool\u2019s, not "
            "measurements of this program.");
    const auto unknown = std::count_if(table.layers.begin(), table.layers.end(), [](const LayerScore& layer) {
        return !layer.loss_delta && !layer.kl && !layer.hidden_mse && !layer.logit_nmse && !layer.cosine;
    });
    if (unknown > 0)
        out.push_back(fmt::format("{} layer{} no score; a layer without a score is never dropped.", unknown,
                                  unknown == 1 ? " has" : "s have"));
    const bool intervals = std::any_of(table.layers.begin(), table.layers.end(), [](const LayerScore& layer) {
        return layer.loss_delta_ci.has_value();
    });
    if (intervals)
        out.push_back(
            "Whiskers are 95 % Student t intervals over paired differences, clustered by document: they "
            "cover the choice of "
            "calibration text, nothing else.");
    if (!table.notes.empty()) out.push_back("Note in the scores file: " + escape(table.notes));
}

// How the best student was picked.
void claims_of_choice(const nas::SearchResult& search, std::vector<std::string>& out) {
    if (!search.tournament.empty())
        out.push_back(
            fmt::format("\u201cBest\u201d is the winner of a tournament: {} measured students were distilled "
                        "on {} tokens each, "
                        "and the one with the {} afterwards was taken.",
                        search.tournament.size(), count_text(search.tournament.front().tokens),
                        selection_of(search).words));
    else if (search.status == "measured")
        out.push_back(
            fmt::format("\u201cBest\u201d is the candidate with the {} among those that were measured; "
                        "candidates that were not measured may be better.",
                        selection_of(search).words));
    else
        out.push_back(
            "No student was run: every quality figure of a student is a <b>prediction</b>, and "
            "\u201cbest\u201d means lowest predicted value only.");
}

void claims_of_predictor(const nas::SearchResult& search, std::vector<std::string>& out) {
    if (search.predictor == nas::Predictor::pairs)
        out.push_back(
            "The predictor adds up what the dropped layers cost one by one and what each two of them cost "
            "beyond "
            "that, on top of the teacher\u2019s loss; what three and more mean for each other it leaves "
            "out.");
    else
        out.push_back(fmt::format(
            "The predictor adds up the {} of the dropped layers{}. It takes the layers as independent, "
            "which they are not.",
            name(search.objective),
            search.objective == Objective::loss_delta
                ? " and what narrower FFNs cost, on top of the teacher\u2019s loss"
                : " and what narrower FFNs cost where that is known"));
    if (!search.rounds.empty())
        out.push_back(
            fmt::format("Students were measured in {} round{}: what was measured was fitted, and the fit "
                        "proposed the next "
                        "ones.",
                        search.rounds.size(), search.rounds.size() == 1 ? "" : "s"));
    if (const double shift = prediction_shift(search); shift != 0)
        out.push_back(fmt::format(
            "The teacher\u2019s own loss is {} on the search\u2019s text and {} on the scores\u2019; "
            "predicted losses "
            "are shown raised by the difference, {}, so that they can stand beside measured ones.",
            fixed_text(search.teacher_measured->loss, 4),
            fixed_text(search.teacher_measured->loss - shift, 4), fixed_text(shift, 4)));
    if (search.type_corrections)
        out.push_back(
            fmt::format("Sums of a layer type are corrected for how much more many layers cost than one, as "
                        "measured on {} "
                        "with {} random sets of layers.",
                        escape(search.type_corrections->origin), search.type_corrections->sets));
}

// What is proven, and how far the order of predictions is that of measurements.
void claims_of_proof(const nas::SearchResult& search, std::vector<std::string>& out) {
    const std::string considered =
        search.compositions > 0 ? fmt::format("of {} compositions ", grouped(search.compositions)) : "";
    if (search.proven && search.gap == 0)
        out.push_back(
            fmt::format("The search is exact: {}no student within the limits asked for has a lower predicted "
                        "value than {}. "
                        "That holds for the predictor, not for the students themselves.",
                        considered, value_text(search.bound)));
    else
        out.push_back(fmt::format("The search proved a bound of {} and stands {} above it.",
                                  value_text(search.bound), value_text(search.gap)));
    if (search.rank_correlation)
        out.push_back(
            fmt::format("Rank correlation (Spearman) between predicted and measured order: <b>{}</b>. 1 "
                        "would be the same order, 0 no relation; "
                        "it is taken over the measured candidates alone.",
                        value_text(*search.rank_correlation, 3)));
    if (search.objective == Objective::hidden_mse || search.objective == Objective::logit_nmse ||
        search.objective == Objective::one_minus_cosine)
        out.push_back(fmt::format(
            "Sums of {} are a ranking aid, not a quality in nats: they have no meaning beyond their order, "
            "and the error of several layers dropped together is not the sum of their errors.",
            name(search.objective)));
}

void claims_of_search(const nas::SearchResult& search, std::vector<std::string>& out) {
    claims_of_choice(search, out);
    claims_of_predictor(search, out);
    claims_of_proof(search, out);
    if (search.candidates.size() > kMostStrips)
        out.push_back(
            fmt::format("{} of {} candidates are drawn as strips; the search file lists all of them.",
                        kMostStrips, search.candidates.size()));
    const nas::Workload& load = search.workload;
    out.push_back(fmt::format(
        "Memory is that of deployment at context {}, batch {}: weights {}, KV cache {}, SSM state {}, conv "
        "state {}, buffers {}. Sizes are computed exactly from the architecture, not read off a device.",
        grouped(load.context), grouped(load.batch),
        load.weights_as_in_file ? "as in the file" : std::string(nas::name(load.weights)), nas::name(load.kv),
        nas::name(load.ssm), nas::name(load.conv), memory_text(load.buffers)));
    if (load.prefill_chunk > 0)
        out.back() += fmt::format(" A prefill of {} tokens a sequence at a time has its workspace in it.",
                                  grouped(load.prefill_chunk));
}

}  // namespace

std::vector<std::string> claims(const ReportInputs& inputs) {
    std::vector<std::string> out;
    if (inputs.search) claims_of_search(*inputs.search, out);
    if (inputs.scores) claims_of_scores(*inputs.scores, out);
    if (!inputs.runs.empty())
        out.push_back(
            "Distillation losses are those of the training batches. How good the student became, only "
            "held-out text "
            "tells: the results table, where it is there.");
    for (const std::string& file : inputs.left_aside)
        out.push_back(fmt::format("Not shown: {}", escape(file)));
    return out;
}

}  // namespace minipuzzle::report
