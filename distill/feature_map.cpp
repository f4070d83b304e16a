#include "distill/feature_map.h"

#include <fmt/format.h>

#include "kernels/check.h"

namespace minipuzzle::distill {

std::vector<FeaturePair> feature_map(const std::vector<int64_t>& kept, int64_t teacher_layers) {
    std::vector<FeaturePair> pairs;
    for (std::size_t i = 0; i < kept.size(); ++i) {
        const int64_t next = i + 1 < kept.size() ? kept[i + 1] : teacher_layers;
        if (kept[i] < 0 || kept[i] >= next)
            fail_input(
                fmt::format("kept layers: entry {} is {} and is followed by {}; expected ascending "
                            "layers of a teacher with {}",
                            i, kept[i], next, teacher_layers));
        pairs.push_back({.student_layer = static_cast<int64_t>(i), .teacher_layer = next - 1});
    }
    return pairs;
}

}  // namespace minipuzzle::distill
