// The scoring head.
#include <algorithm>
#include <cmath>

#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kCheckedRows = 4;

// Models that share a head share the twin's copy too: it is the largest thing here.
class TwinHeads {
  public:
    explicit TwinHeads(Twin& twin) : twin_(twin) {}
    LmHead of(const LmHead& lm, Range rows) {
        if (lm.head.data != from_) {
            copy_ = twin_.whole(lm.head);
            from_ = lm.head.data;
        }
        return {twin_.rows(lm.hidden, rows, {rows.count, lm.hidden.columns()}), copy_};
    }

  private:
    Twin& twin_;
    const std::byte* from_ = nullptr;
    Tensor copy_;
};

// Every output of the last rows; the worst of them counts. 0 or 1 is compared too: a wrong argmax shows as a
// large error.
Check check_compare_logits(Twin& twin, const CompareLogits& args) {
    const int64_t row_count = args.targets.elements();
    const Range rows = last(row_count, kCheckedRows);
    TwinHeads heads(twin);
    std::vector<std::pair<Tensor, Tensor>> outputs;  // the device's, the twin's
    const auto output = [&](const Tensor& result) {
        if (!result) return Tensor();
        outputs.emplace_back(result, twin.empty({rows.count}));
        return outputs.back().second;
    };
    CompareLogits own{.base = heads.of(args.base, rows),
                      .targets = twin.part(args.targets.view({row_count, 1}), rows, {{0, 1}}, {rows.count}),
                      .base_loss = output(args.base_loss),
                      .base_correct = output(args.base_correct),
                      .base_power = output(args.base_power)};
    for (const LogitsComparison& each : args.variants)
        own.variants.push_back({.variant = heads.of(each.variant, rows),
                                .loss = output(each.loss),
                                .correct = output(each.correct),
                                .kl = output(each.kl),
                                .agrees = output(each.agrees),
                                .error = output(each.error),
                                .hidden_mse = output(each.hidden_mse),
                                .cosine = output(each.cosine)});
    twin.backend().run(own);
    Check worst{.part = fmt::format("rows {}..{}", rows.begin, rows.begin + rows.count - 1),
                .error = 0,
                .tolerance = twin.tolerance(Rounding::precise)};
    for (const auto& [result, expected] : outputs) {
        const double error =
            twin.compare("", result.view({row_count, 1}), rows, {{0, 1}}, expected, Rounding::precise).error;
        if (std::isnan(error) || error > worst.error) worst.error = error;
        if (std::isnan(error)) break;
    }
    return worst;
}

}  // namespace

void add_compare_logits(Operations& list, const ModelSizes& model, int64_t rows, int variants) {
    add<CompareLogits>(
        list, "compare_logits",
        fmt::format(
            "{} {} rows, base{}", model.name, rows,
            variants > 0 ? fmt::format(" and {} variant{}", variants, variants > 1 ? "s" : "") : " only"),
        [=](Memory& memory) {
            // Logits of deviation 3: a loss of some nats, as a model's are.
            const double scale = 3 / std::sqrt(static_cast<double>(model.width));
            const auto output = [&] { return memory.empty_precise({rows}); };
            const Tensor head = memory.normal({model.vocabulary, model.width}, scale);
            CompareLogits args{.base = {memory.normal({rows, model.width}), head},
                               .targets = memory.indices({rows}, model.vocabulary),
                               .base_loss = output(),
                               .base_correct = output(),
                               .base_power = output()};
            for (int v = 0; v < variants; ++v)
                args.variants.push_back({.variant = {memory.normal({rows, model.width}), head},
                                         .loss = output(),
                                         .correct = output(),
                                         .kl = output(),
                                         .agrees = output(),
                                         .error = output(),
                                         .hidden_mse = output(),
                                         .cosine = output()});
            return args;
        },
        check_compare_logits);
}

}  // namespace minipuzzle::cli::bench
