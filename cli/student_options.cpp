#include "cli/commands.h"
#include "kernels/check.h"
#include "nas/search.h"

namespace minipuzzle::cli {

void StudentOptions::add_to(OptionTable& table) {
    table.choices("keep", keep, "layers of the teacher that stay (0-based: 0,3..5)");
    table.choices("drop", drop, "layers of the teacher that go");
    table.choices("ffn-widths", ffn_widths,
                  "each FFN keeps its own width or takes one of these (not with --ffn-width)");
    table.count("mamba-heads", mamba_heads,
                "heads a group in every Mamba layer, not with --data; its cost is not predicted");
    table.word("predictor", {"auto", "additive", "pairs"}, predictor,
               "what is minimised; auto: with pairs of layers where the scores have them");
    table.number("solve-seconds", solve_seconds,
                 "for the exact solver at most; a gap is stated where it needs more");
}

void StudentOptions::apply(nas::SearchOptions& options) const {
    options.keep = keep;
    options.drop = drop;
    options.ffn_widths.values = ffn_widths;
    options.mamba_heads = mamba_heads;
    options.solve_seconds = solve_seconds;
    if (predictor == "additive") options.predictor = nas::Predictor::additive;
    if (predictor == "pairs") options.predictor = nas::Predictor::pairs;
}

}  // namespace minipuzzle::cli
