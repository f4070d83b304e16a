// Backward of what the Mamba-2 mixer has around its scan: convolution and gated norm. Checked over the last
// sequence, alone, and a few channels, which make a smaller mixer; gradients of parameters start from zero.
#include "cli/bench/shapes.h"

namespace minipuzzle::cli::bench {
namespace {

Tensor last_sequence(const Tensor& tensor) { return tensor.slice(tensor.size(0) - 1, 1); }

// These columns of the last sequence.
Tensor of_last_sequence(Twin& twin, const Tensor& tensor, const std::vector<Range>& columns) {
    const int64_t length = tensor.size(1);
    int64_t width = 0;
    for (const Range& range : columns) width += range.count;
    return twin.part(last_sequence(tensor), {0, length}, columns, {1, length, width});
}

// The worse of both, each by its own measure.
Check worse(const Check& a, const Check& b) {
    return a.passed() && !(b.error / b.tolerance <= a.error / a.tolerance) ? b : a;
}

// The last channels.
Check check_conv_backward(Twin& twin, const ConvBackward& args) {
    const MambaShape &s = args.shape,
                     small{.heads = 1, .head_dim = 62, .state = 1, .groups = 1, .conv_kernel = s.conv_kernel};
    const int64_t count = small.conv_channels(), first = s.conv_channels() - count,
                  length = args.d_xbc.size(1);
    const Range channels{first, count}, tokens{0, length};
    const std::vector<Range> columns = {
        {0, small.inner()}, {s.inner() + first, count}, {s.inner() + s.conv_channels(), small.heads}};

    const Tensor d_zxbcdt =
        of_last_sequence(twin, args.d_zxbcdt, columns);  // outside of x|B|C nothing changes
    ConvBackward own = args;
    own.zxbcdt = last_sequence(args.zxbcdt);
    own.d_xbc = last_sequence(args.d_xbc);
    own.d_zxbcdt = last_sequence(args.d_zxbcdt);
    for (const Tensor& sums : {args.d_weight, args.d_bias}) twin.device().zero(sums);
    twin.device().run(own);

    const Tensor d_weight = twin.empty({count, s.conv_kernel}), d_bias = twin.empty({count});
    for (const Tensor& sums : {d_weight, d_bias}) twin.backend().zero(sums);
    twin.backend().run(
        ConvBackward{.shape = small,
                     .zxbcdt = of_last_sequence(twin, args.zxbcdt, columns),
                     .weight = twin.part(args.weight, channels, {{0, s.conv_kernel}}, {count, s.conv_kernel}),
                     .bias = twin.part(args.bias, {0, 1}, {channels}, {count}),
                     .d_xbc = of_last_sequence(twin, args.d_xbc, {channels}),
                     .d_zxbcdt = d_zxbcdt,
                     .d_weight = d_weight,
                     .d_bias = d_bias});
    const std::string part = fmt::format("channels {}..{}", first, first + count - 1);
    return worse(
        worse(twin.compare(part, own.d_zxbcdt, tokens, columns, d_zxbcdt, Rounding::once),
              twin.compare(part + " of d_weight", args.d_weight, channels, {{0, s.conv_kernel}}, d_weight,
                           Rounding::precise)),
        twin.compare(part + " of d_bias", args.d_bias, {0, 1}, {channels}, d_bias, Rounding::precise));
}

// The last group.
Check check_gated_norm_backward(Twin& twin, const GatedNormBackward& args) {
    const MambaShape &s = args.shape, small{.heads = s.heads / s.groups,
                                            .head_dim = s.head_dim,
                                            .state = 1,
                                            .groups = 1,
                                            .conv_kernel = s.conv_kernel};
    const int64_t width = small.inner(), length = args.y.size(1);
    const Range group{s.inner() - width, width}, tokens{0, length};
    const std::vector<Range> columns = {group, {s.inner(), small.projection() - width}};

    const Tensor d_zxbcdt = of_last_sequence(twin, args.d_zxbcdt, columns);  // outside of z nothing changes
    GatedNormBackward own = args;
    for (Tensor* tensor : {&own.y, &own.zxbcdt, &own.d_out, &own.d_y, &own.d_zxbcdt})
        *tensor = last_sequence(*tensor);
    twin.device().zero(args.d_weight);
    twin.device().run(own);

    const Tensor d_y = twin.empty({1, length, width}), d_weight = twin.empty({width});
    twin.backend().zero(d_weight);
    twin.backend().run(GatedNormBackward{.shape = small,
                                         .y = of_last_sequence(twin, args.y, {group}),
                                         .zxbcdt = of_last_sequence(twin, args.zxbcdt, columns),
                                         .weight = twin.part(args.weight, {0, 1}, {group}, {width}),
                                         .eps = args.eps,
                                         .d_out = of_last_sequence(twin, args.d_out, {group}),
                                         .d_y = d_y,
                                         .d_zxbcdt = d_zxbcdt,
                                         .d_weight = d_weight});
    const std::string part = fmt::format("group {}", s.groups - 1);
    return worse(
        worse(twin.compare(part + " of d_y", own.d_y, tokens, {group}, d_y, Rounding::once),
              twin.compare(part, own.d_zxbcdt, tokens, columns, d_zxbcdt, Rounding::once)),
        twin.compare(part + " of d_weight", args.d_weight, {0, 1}, {group}, d_weight, Rounding::precise));
}

}  // namespace

void add_conv_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<ConvBackward>(
        list, "conv_backward", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            const int64_t b = batch.sequences, t = batch.length, channels = s.conv_channels();
            return ConvBackward{.shape = s,
                                .zxbcdt = memory.normal({b, t, s.projection()}),
                                .weight = memory.normal({channels, s.conv_kernel}, 0.5),
                                .bias = memory.normal({channels}, 0.5),
                                .d_xbc = memory.normal({b, t, channels}),
                                .d_zxbcdt = memory.empty({b, t, s.projection()}),
                                .d_weight = memory.empty_precise({channels, s.conv_kernel}),
                                .d_bias = memory.empty_precise({channels})};
        },
        check_conv_backward);
}

void add_gated_norm_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<GatedNormBackward>(
        list, "gated_norm_backward", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            const int64_t b = batch.sequences, t = batch.length;
            std::vector<double> weight(s.inner());
            for (std::size_t i = 0; i < weight.size(); ++i)
                weight[i] = 0.5 + static_cast<double>(i % 16) / 16;
            return GatedNormBackward{.shape = s,
                                     .y = memory.normal({b, t, s.inner()}),
                                     .zxbcdt = memory.normal({b, t, s.projection()}),
                                     .weight = memory.precise(weight),
                                     .d_out = memory.normal({b, t, s.inner()}),
                                     .d_y = memory.empty({b, t, s.inner()}),
                                     .d_zxbcdt = memory.empty({b, t, s.projection()}),
                                     .d_weight = memory.empty_precise({s.inner()})};
        },
        check_gated_norm_backward);
}

}  // namespace minipuzzle::cli::bench
