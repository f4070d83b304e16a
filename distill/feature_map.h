// Which hidden streams of student and teacher the feature loss compares.
#pragma once

#include <cstdint>
#include <vector>

namespace minipuzzle::distill {

// The student's stream after `student_layer` against the teacher's after `teacher_layer`.
struct FeaturePair {
    int64_t student_layer = 0, teacher_layer = 0;
    bool operator==(const FeaturePair&) const = default;
};

// One pair for every student layer, derived from the teacher layers it keeps (ascending, in [0,
// teacher_layers)). A layer followed by dropped ones is held against the teacher's stream just before the
// next kept layer (after the last layer, for the last): both streams then enter the same next layer, so the
// student is asked to do the dropped layers' work where their output is used. Holding it against its own
// layer's output instead would ask the student to reproduce a stream that lacks what the next layer needs.
// Layers dropped before the first kept one give no pair: only the embedding could answer for them.
// Error bad_input where `kept` is not such a list.
std::vector<FeaturePair> feature_map(const std::vector<int64_t>& kept, int64_t teacher_layers);

}  // namespace minipuzzle::distill
