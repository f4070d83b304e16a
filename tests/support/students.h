// A student that only drops layers, as a model of its own.
#pragma once

#include <vector>

#include "runtime/evaluate.h"
#include "runtime/student_plan.h"

namespace minipuzzle::test {

// Loss per window of the model without the layers of `drop` (ascending), computed by evaluate() alone.
inline std::vector<double> losses_alone(Backend& backend, const Architecture& teacher, Weights weights,
                                        const std::vector<int64_t>& drop, const Corpus& corpus,
                                        const std::vector<Window>& windows) {
    const StudentPlan plan{.drop = drop};
    const Architecture student = student_architecture(teacher, plan);
    std::vector<LayerWeights> kept;
    for (const int64_t layer : plan.kept(teacher)) kept.push_back(weights.layers.at(layer));
    weights.layers = std::move(kept);
    return evaluate(backend, {student, weights}, nullptr, corpus, windows, {}).per_sequence_loss;
}

}  // namespace minipuzzle::test
