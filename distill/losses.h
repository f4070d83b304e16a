// What distillation minimises: the weights of its terms, their sums and means.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/ops.h"

namespace minipuzzle::distill {

// loss = kl * KL(teacher || student) + reverse_kl * KL(student || teacher) + ce * cross-entropy + feature *
// (sum over feature pairs), each a mean over the unmasked targets. Forward KL alone is the best single logit
// loss and KL + cosine the best mix in the published ablations (Minitron, arXiv 2407.14679; Puzzle, arXiv
// 2411.19146), hence the defaults.
struct LossWeights {
    double kl = 1, ce = 0, feature = 0;
    double temperature =
        1;  // of the KLs; their terms are multiplied by temperature^2 (ops.h, VocabularyLoss)
    FeatureKind feature_kind = FeatureKind::cosine;
    double reverse_kl = 0;
    int64_t top_k = 0;  // the KL sees the teacher's likeliest tokens only; 0: all

    bool needs_teacher_logits() const { return kl > 0 || reverse_kl > 0; }
    bool needs_teacher() const { return needs_teacher_logits() || feature > 0; }
};

// Checks signs and the temperature (Error usage) and settles what a run without a teacher minimises:
// cross-entropy alone.
LossWeights settle(const LossWeights& asked, bool has_teacher);

std::string_view name(FeatureKind kind);
// "cosine" or "mse"; Error usage otherwise.
FeatureKind parse_feature_kind(const std::string& text);

// Per-token terms summed over unmasked targets; feature is summed over the pairs as well.
struct LossSums {
    double kl = 0, ce = 0, feature = 0, reverse_kl = 0;
    LossSums& operator+=(const LossSums& other);
    bool finite() const;
};

// What a step's log line says; a term that is not in the loss is null.
struct LossMeans {
    double loss = 0;
    std::optional<double> kl, ce, feature, reverse_kl;
};
LossMeans means(const LossSums& sums, const LossWeights& weights, int64_t targets);

}  // namespace minipuzzle::distill
