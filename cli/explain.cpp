#include "cli/explain.h"

#include <fmt/format.h>

#include "cli/table.h"
#include "cli/units.h"

namespace minipuzzle::cli {
namespace {

template <class T>
Json or_null(const std::optional<T>& value) {
    return value ? Json(*value) : Json();
}

std::string letter_of(LayerType type) { return std::string(1, letter(type)); }

// "M: 45 stay, 9 go; the last to go is layer 29 (0.0121), the first to stay layer 30 (0.0130)".
std::string cut_line(const nas::Cut& cut, const nas::Explanation& explanation) {
    const auto layer = [&](int64_t index) {
        return fmt::format("layer {} ({})", index,
                           cell(explanation.layers[static_cast<std::size_t>(index)].loss, 6));
    };
    std::string text = fmt::format("{}: {} stay, {} go", letter_of(cut.type), cut.kept, cut.dropped);
    if (cut.last_dropped) text += fmt::format("; the dearest that goes is {}", layer(*cut.last_dropped));
    if (cut.first_kept) text += fmt::format("; the cheapest that stays is {}", layer(*cut.first_kept));
    return text + "\n";
}

}  // namespace

Json explain_json(const nas::Explanation& explanation) {
    Json json = {
        {"objective", name(explanation.objective)}, {"cuts", Json::array()}, {"layers", Json::array()}};
    for (const nas::Cut& cut : explanation.cuts)
        json["cuts"].push_back({{"type", letter_of(cut.type)},
                                {"kept", cut.kept},
                                {"dropped", cut.dropped},
                                {"last_dropped", or_null(cut.last_dropped)},
                                {"first_kept", or_null(cut.first_kept)}});
    for (const nas::LayerVerdict& layer : explanation.layers)
        json["layers"].push_back({{"layer", layer.layer},
                                  {"type", letter_of(layer.type)},
                                  {"dropped", layer.dropped},
                                  {"loss", or_null(layer.loss)},
                                  {"bytes", layer.bytes},
                                  {"loss_per_mib", or_null(layer.loss_per_mib)},
                                  {"rank", or_null(layer.rank)},
                                  {"against_cut", or_null(layer.against_cut)},
                                  {"why", layer.why}});
    return json;
}

std::string explain_text(const nas::Explanation& explanation) {
    std::string text =
        fmt::format("why layers stay or go ({}; bytes at the workload)\n", name(explanation.objective));
    for (const nas::Cut& cut : explanation.cuts) text += cut_line(cut, explanation);
    Table table({"layer", "type", "fate", "loss", "bytes", "loss per MiB", "rank", "against cut", "why"});
    for (const nas::LayerVerdict& layer : explanation.layers)
        table.add({std::to_string(layer.layer), letter_of(layer.type), layer.dropped ? "goes" : "stays",
                   cell(layer.loss, 6), std::to_string(layer.bytes),
                   layer.loss_per_mib ? fmt::format("{:.4g}", *layer.loss_per_mib) : "-",
                   layer.rank ? std::to_string(*layer.rank) : "-", cell(layer.against_cut, 6), layer.why});
    return text + table.text();
}

}  // namespace minipuzzle::cli
