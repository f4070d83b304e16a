#include "nas/mamba_heads.h"

#include <fmt/format.h>

#include <algorithm>

namespace minipuzzle::nas {

namespace {

// Appends `each` indices a head: head h's begin at `first` + h * `each`.
void append_heads(std::vector<int32_t>& indices, const std::vector<int32_t>& heads, int64_t first,
                  int64_t each) {
    for (const int32_t head : heads)
        for (int64_t i = 0; i < each; ++i) indices.push_back(narrow<int32_t>(first + head * each + i));
}

void append_range(std::vector<int32_t>& indices, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) indices.push_back(narrow<int32_t>(first + i));
}

}  // namespace

std::vector<int32_t> kept_heads(const WidthScores& scores, int64_t layer, const Mamba& mamba,
                                int64_t per_group) {
    const int64_t own = div_exact(mamba.heads, mamba.groups);
    MP_ASSERT(per_group >= 1 && per_group <= own);
    const auto found = scores.mamba_head_order.find(layer);
    const int64_t groups =
        found == scores.mamba_head_order.end() ? 0 : static_cast<int64_t>(found->second.size());
    const int64_t each = groups == 0 ? 0 : static_cast<int64_t>(found->second.front().size());
    if (groups != mamba.groups || each != own)
        fail_input(
            fmt::format("width scores: found the order of {} groups of {} Mamba heads for layer {}, expected "
                        "the teacher's {} of {}; score this model with `score --width`",
                        groups, each, layer, mamba.groups, own));
    std::vector<int32_t> kept;
    for (const std::vector<int32_t>& group : found->second)
        kept.insert(kept.end(), group.begin(), group.begin() + per_group);
    std::sort(kept.begin(), kept.end());  // the heads of a group are neighbours, so groups stay together
    return kept;
}

AxisCut cut_to_heads(const Mamba& mamba, const std::vector<int32_t>& heads, std::string_view tensor) {
    const int64_t both = 2 * mamba.groups * mamba.state;  // rows of B and C
    AxisCut cut;
    if (tensor == "mixer.in_proj.weight") {
        append_heads(cut.kept, heads, 0, mamba.head_dim);
        append_heads(cut.kept, heads, mamba.inner(), mamba.head_dim);
        append_range(cut.kept, 2 * mamba.inner(), both);
        append_heads(cut.kept, heads, 2 * mamba.inner() + both, 1);
    } else if (tensor == "mixer.conv1d.weight" || tensor == "mixer.conv1d.bias") {
        append_heads(cut.kept, heads, 0, mamba.head_dim);
        append_range(cut.kept, mamba.inner(), both);
    } else if (tensor == "mixer.norm.weight" || tensor == "mixer.out_proj.weight") {
        append_heads(cut.kept, heads, 0, mamba.head_dim);
        cut.axis = tensor == "mixer.out_proj.weight" ? 1 : 0;
    } else {
        MP_ASSERT(tensor == "mixer.A_log" || tensor == "mixer.D" || tensor == "mixer.dt_bias");
        cut.kept = heads;
    }
    return cut;
}

}  // namespace minipuzzle::nas
