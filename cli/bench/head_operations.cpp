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

// With all tokens but the last masked, so that the head's gradient is theirs alone: losses, the hidden
// states' gradient and the last tokens of the vocabulary in the head's.
Check check_vocabulary_loss(Twin& twin, const VocabularyLoss& args) {
    const int64_t row_count = args.targets.elements(), vocabulary = args.student.head.size(0);
    const Range rows = last(row_count, kCheckedRows), tokens = last(vocabulary, 64);
    const std::vector<int32_t> masked(rows.begin, -1);
    twin.device().copy(args.targets.data, reinterpret_cast<const std::byte*>(masked.data()),
                       static_cast<int64_t>(masked.size() * sizeof(int32_t)));
    twin.device().zero(args.d_head);
    twin.device().run(args);

    TwinHeads heads(twin);
    VocabularyLoss own = args;
    own.student = heads.of(args.student, rows);
    own.teacher = heads.of(args.teacher, rows);
    own.targets = twin.part(args.targets.view({row_count, 1}), rows, {{0, 1}}, {rows.count});
    own.kl = twin.empty({rows.count});
    own.d_hidden = twin.empty({rows.count, args.d_hidden.columns()});
    own.d_head = twin.empty({vocabulary, args.d_head.columns()});
    twin.backend().zero(own.d_head);
    twin.backend().run(own);
    const std::string name = fmt::format("rows {}..{}", rows.begin, rows.begin + rows.count - 1);
    const Range width{0, args.d_hidden.columns()};
    const Check checks[] = {
        twin.compare(name + ", kl", args.kl.view({row_count, 1}), rows, {{0, 1}}, own.kl, Rounding::precise),
        twin.compare(name + ", d_head", args.d_head, tokens, {width},
                     own.d_head.slice(tokens.begin, tokens.count), Rounding::inside),
        twin.compare(name + ", d_hidden", args.d_hidden, rows, {width}, own.d_hidden, Rounding::inside)};
    for (const Check& check : checks)
        if (!check.passed()) return check;
    return checks[2];
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

void add_vocabulary_loss(Operations& list, const ModelSizes& model, int64_t rows) {
    add<VocabularyLoss>(
        list, "vocabulary_loss", fmt::format("{} {} rows, KL and gradients", model.name, rows),
        [=](Memory& memory) {
            // Logits of deviation 3, as above.
            const double scale = 3 / std::sqrt(static_cast<double>(model.width));
            const Tensor head = memory.normal({model.vocabulary, model.width}, scale);
            VocabularyLoss args{.student = {memory.normal({rows, model.width}), head},
                                .teacher = {memory.normal({rows, model.width}), head},
                                .targets = memory.indices({rows}, model.vocabulary),
                                .kl = memory.empty_precise({rows})};
            args.scale = 1 / static_cast<double>(rows);
            args.d_hidden = memory.empty({rows, model.width});
            args.d_head = memory.zeros(args.kl.dtype, {model.vocabulary, model.width});
            return args;
        },
        check_vocabulary_loss);
}

}  // namespace minipuzzle::cli::bench
