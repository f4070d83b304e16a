// What a Mamba mixer with fewer heads keeps of its tensors.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/score_table.h"

namespace minipuzzle::nas {

// The indices that stay along one axis of a tensor, ascending.
struct AxisCut {
    int axis = 0;  // 0: rows, whatever axes follow; 1: columns of a matrix
    std::vector<int32_t> kept;
};

// The first `per_group` heads of each group's order, ascending. Every group keeps as many, so that head h of
// the student still reads the B and C of group h / per_group. Error bad_input where the layer's order is not
// one of `mamba.groups` groups of this layer's heads.
std::vector<int32_t> kept_heads(const WidthScores& scores, int64_t layer, const Mamba& mamba,
                                int64_t per_group);

// The cut of a tensor of the mixer ("mixer.in_proj.weight", ...; layouts as in tensor_slots). in_proj has the
// rows z, x, B, C, dt and conv1d the channels x, B, C (Mamba-2, arXiv 2405.21060, section 7); B and C belong
// to groups and stay whole. The gated norm's weight and out_proj's columns go by x's channels.
AxisCut cut_to_heads(const Mamba& mamba, const std::vector<int32_t>& heads, std::string_view tensor);

}  // namespace minipuzzle::nas
