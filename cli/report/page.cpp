#include "cli/report/page.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/agreement_matrix.h"
#include "cli/report/claims.h"
#include "cli/report/finalists_table.h"
#include "cli/report/frontier_chart.h"
#include "cli/report/html.h"
#include "cli/report/importance_chart.h"
#include "cli/report/layer_strips.h"
#include "cli/report/loss_curve.h"
#include "cli/report/memory_chart.h"
#include "cli/report/pair_map.h"
#include "cli/report/prediction_scatter.h"
#include "cli/report/removal_chart.h"
#include "cli/report/results_table.h"
#include "cli/report/style.h"
#include "cli/report/width_curve.h"
#include "cli/report/words.h"
#include "cli/score_analysis.h"

namespace minipuzzle::report {
namespace {

// Markup in, markup out: heading, what the figure says, the figure.
std::string section(const std::string& heading, const std::string& words, const std::string& figure) {
    return fmt::format("<section>\n<h2>{}</h2>\n<p>{}</p>\n<figure>\n{}</figure>\n</section>\n", heading,
                       words, figure);
}

std::string tile(const std::string& figure, const std::string& words, const std::string& detail) {
    return fmt::format("<div class=\"tile\"><span>{}</span><b>{}</b><span>{}</span></div>", words, figure,
                       detail);
}

// The objective the search went by; without a search the first metric that any layer has.
std::optional<Objective> shown_objective(const ReportInputs& inputs) {
    if (!inputs.scores) return std::nullopt;
    const auto known = [&](Objective objective) {
        return std::any_of(inputs.scores->layers.begin(), inputs.scores->layers.end(),
                           [&](const LayerScore& layer) { return value(layer, objective).has_value(); });
    };
    if (inputs.search && known(inputs.search->objective)) return inputs.search->objective;
    return cli::shown_metric(*inputs.scores);
}

// "96.6 % of the teacher's 17.23 M".
std::string share_of(int64_t part, int64_t whole, const std::string& whole_text) {
    if (whole <= 0) return "";
    const double percent = 100.0 * static_cast<double>(part) / static_cast<double>(whole);
    return fmt::format("{:.1f} % of the teacher\u2019s {}", percent, whole_text);
}

std::string best_tiles(const nas::SearchResult& search, const nas::Candidate& best) {
    const int64_t memory = best.memory.total(), teacher = search.teacher_memory.total();
    std::string out = tile(count_text(best.params), "parameters",
                           share_of(best.params, search.teacher_params, count_text(search.teacher_params)));
    const std::string budget = search.budget_bytes >= 0 ? ", budget " + memory_text(search.budget_bytes) : "";
    out += tile(memory_text(memory), "memory", share_of(memory, teacher, memory_text(teacher)) + budget);
    out += tile(fmt::format("{} of {}", search.teacher_pattern.size() - best.plan.drop.size(),
                            search.teacher_pattern.size()),
                "layers kept", counts_text(best.mamba, best.ffn, best.attention));
    if (best.measured)
        out += tile(fixed_text(best.measured->loss, 4), "loss",
                    fmt::format("{}, on the search's text, not yet distilled", escape(best.id)));
    else
        out += tile(
            value_text(best.predicted.value),
            std::string("predicted ") + (best.predicted.loss ? "loss" : std::string(name(search.objective))),
            escape(best.id) + ", not measured");
    return out;
}

std::string tiles(const ReportInputs& inputs) {
    std::string out;
    const nas::Candidate* best = inputs.search ? best_of(*inputs.search) : nullptr;
    if (best) {
        out += best_tiles(*inputs.search, *best);
    } else if (inputs.scores) {
        out += tile(fmt::format("{}", inputs.scores->layers.size()), "layers scored",
                    escape(std::string(name(*shown_objective(inputs)))));
    }
    if (inputs.scores && inputs.scores->base_loss)
        out +=
            tile(fixed_text(*inputs.scores->base_loss, 4), "loss of the teacher", "on the calibration text");
    return out.empty() ? out : "<div class=\"tiles\">" + out + "</div>\n";
}

std::string header(const ReportInputs& inputs) {
    std::string name = inputs.folder, pattern;
    if (inputs.search) pattern = inputs.search->teacher_pattern;
    if (inputs.scores) {
        if (!inputs.scores->model.path.empty()) name = inputs.scores->model.path;
        pattern = inputs.scores->model.pattern;
    }
    std::string badge;
    if (inputs.search)
        badge = inputs.search->status == "measured" ? "<span class=\"badge\">candidates measured</span>"
                                                    : "<span class=\"badge caution\">predicted only</span>";
    return fmt::format(
        "<header><h1>Compression of {}{}</h1>\n<p class=\"sub\"><code>{}</code></p></header>\n", escape(name),
        badge, escape(pattern));
}

std::string importance_section(const ReportInputs& inputs) {
    if (!inputs.scores) return "";
    const nas::Candidate* best = inputs.search ? best_of(*inputs.search) : nullptr;
    std::string figure = importance_chart(*inputs.scores, *shown_objective(inputs),
                                          best ? best->plan.drop : std::vector<int64_t>{});
    const std::string widths = width_curve(inputs.scores->ffn_width_curve);
    if (!widths.empty())
        figure +=
            "<h3>Narrower FFN layers</h3>\n<p class=\"sub\">The whole model with every FFN cut to its best "
            "neurons.</p>" +
            widths;
    return section("Which layers matter",
                   "One bar per layer: what the model loses when that layer alone is skipped. Long bars are "
                   "layers to keep.",
                   figure);
}

// What scores hold beyond a row a layer; each where it is there.
std::string analysis_sections(const ReportInputs& inputs) {
    if (!inputs.scores) return "";
    const ScoreTable& scores = *inputs.scores;
    std::string out;
    if (const std::string figure = agreement_matrix(scores); !figure.empty())
        out +=
            section("How far the metrics agree",
                    "Spearman\u2019s rank correlation between the metrics, over all layers and inside each "
                    "type: 1 where two of them put the layers in the same order, 0 where their orders have "
                    "nothing in common.",
                    figure);
    if (const std::string figure = removal_chart(scores); !figure.empty())
        out +=
            section("Removing layer after layer",
                    "Every step removes the layer that costs least in what the steps before left over, and "
                    "measures the rest anew; where the line leaves the dashed one, layers are not "
                    "independent.",
                    figure);
    if (const std::string figure = pair_map(scores); !figure.empty())
        out += section("Layers in pairs",
                       "A cell is two layers: what losing both costs beyond the sum of losing each alone, in "
                       "nats per token; the row is the first of the two, the column the second.",
                       figure);
    return out;
}

std::string finalists_words(const nas::SearchResult& search) {
    if (!search.tournament.empty())
        return fmt::format(
            "Every figure that is known of them, measured as cut; \u201cdistilled\u201d is the loss "
            "after the tournament\u2019s {} tokens of distillation.",
            count_text(search.tournament.front().tokens));
    return search.status == "measured"
               ? "Every figure that is known of them, the best first, measured as cut, not yet distilled."
               : "Every figure that is known of them, the best predicted first.";
}

std::string search_sections(const ReportInputs& inputs) {
    if (!inputs.search) return "";
    const nas::SearchResult& search = *inputs.search;
    const std::size_t drawn = drawn_candidates(search).size();
    const bool measured = search.status == "measured";
    std::string out = section(
        "What memory buys",
        std::string(
            "The line of predictions is exact: at every budget the lowest value that keeping the best "
            "of each layer type reaches. Marks are the candidates.") +
            (measured ? " The line of measurements joins the best of those that were measured." : ""),
        frontier_chart(search));
    if (const std::string figure = prediction_scatter(search); !figure.empty())
        out += section(
            "Predicted against measured",
            comparable(search)
                ? "One dot a measured candidate. On the dashed line prediction and measurement agree; "
                  "the rank correlation says how far they put the candidates in the same order."
                : "One dot a measured candidate; the two axes have different units, so that their order "
                  "alone can agree.",
            figure);
    out += section(!search.finalists.empty() ? "The finalists" : "The first candidates",
                   finalists_words(search), finalists_table(search));
    out +=
        section("The candidates, layer by layer",
                fmt::format("{} of {}: the best (\u2605), {}then {}. A coloured cell is a layer that stays.",
                            drawn, search.candidates.size(),
                            search.finalists.size() > 1 ? "the other finalists (\u2606), " : "",
                            measured ? "as measured" : "as predicted"),
                layer_strips(search));
    out += section("Where the memory goes",
                   "Bytes in use at the chosen context and batch, teacher against student.",
                   memory_chart(search));
    return out;
}

std::string distillation_sections(const ReportInputs& inputs) {
    std::string out;
    for (const NamedRun& run : inputs.runs) {
        const std::string figure = loss_curve(run.log);
        if (figure.empty()) continue;
        const distill::RunStep& last = run.log.steps.back();
        out += section(
            "Distillation",
            fmt::format("{}: {} step{}, {} tokens, on {}.", escape(run.path), grouped(last.step),
                        last.step == 1 ? "" : "s", count_text(last.tokens), escape(run.log.header.device)),
            figure);
    }
    return out;
}

std::string claims_section(const ReportInputs& inputs) {
    std::string out = "<section>\n<h2>How to read this page</h2>\n<ul class=\"words\">\n";
    for (const std::string& claim : claims(inputs)) out += "<li>" + claim + "</li>\n";
    return out + "</ul>\n</section>\n";
}

std::string sources_section(const ReportInputs& inputs) {
    std::vector<Row> rows;
    for (const SourceFile& source : inputs.sources)
        rows.push_back({.cells = {"<code class=\"path\">" + escape(source.path) + "</code>",
                                  "<code>" + escape(source.provenance.command) + "</code>",
                                  fmt::format("{}", source.provenance.seed), escape(source.version)},
                        .css_class = "source"});
    if (rows.empty()) return "";
    return "<section>\n<h2>How it was made</h2>\n" +
           table({{"file", CellKind::text}, {"command", CellKind::text}, {"seed"}, {"version"}}, rows) +
           "</section>\n";
}

}  // namespace

std::string report_page(const ReportInputs& inputs) {
    std::string title =
        inputs.scores && !inputs.scores->model.path.empty() ? inputs.scores->model.path : inputs.folder;
    std::string page = fmt::format(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
        "content=\"width=device-width, initial-scale=1\"/>\n<title>minipuzzle: "
        "{}</title>\n<style>{}</style>\n</head>\n"
        "<body>\n<main>\n",
        escape(title), kStyle);
    page += header(inputs) + tiles(inputs) + results_section(inputs) + importance_section(inputs) +
            analysis_sections(inputs) + search_sections(inputs) + distillation_sections(inputs) +
            claims_section(inputs) + sources_section(inputs);
    return page + fmt::format("<footer>minipuzzle {}</footer>\n</main>\n</body>\n</html>\n", version());
}

}  // namespace minipuzzle::report
