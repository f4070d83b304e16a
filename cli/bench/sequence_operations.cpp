// What mixes tokens: convolution, scan, gated norm and attention.
#include <cmath>

#include "cli/bench/shapes.h"
#include "kernels/random.h"

namespace minipuzzle::cli::bench {
namespace {

constexpr int64_t kCheckedTokens = 16, kScannedTokens = 1024, kCheckedHeads = 2;

// The last tokens of the last sequence, after the taps that lie before them.
Check check_conv(Twin& twin, const ConvForward& args) {
    const MambaShape& s = args.shape;
    const int64_t taps = s.conv_kernel - 1, channels = s.conv_channels();
    const Range tokens = last(args.xbc.rows(), std::min(kCheckedTokens, args.xbc.size(1) - taps));
    const Tensor before =
        twin.part(args.zxbcdt, {tokens.begin - taps, taps}, {{s.inner(), channels}}, {taps, channels});
    const Tensor state = twin.empty({1, channels, taps}), out = twin.empty({1, tokens.count, channels});
    const int64_t size = bytes_of(state.dtype);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < taps; ++k)
            std::copy_n(before.data + (k * channels + c) * size, size, state.data + (c * taps + k) * size);
    twin.backend().run(
        ConvForward{.shape = s,
                    .zxbcdt = twin.rows(args.zxbcdt, tokens, {1, tokens.count, s.projection()}),
                    .weight = twin.whole(args.weight),
                    .bias = twin.whole(args.bias),
                    .initial_state = state,
                    .xbc = out});
    return twin.compare(fmt::format("rows {}..{}", tokens.begin, tokens.begin + tokens.count - 1), args.xbc,
                        tokens, {{0, channels}}, out, Rounding::once);
}

// Columns of zxbcdt and of xbc that belong to some heads of one group: a smaller mixer's own.
struct HeadColumns {
    Range heads;
    std::vector<Range> zxbcdt, xbc;

    HeadColumns(const MambaShape& s, Range which) : heads(which) {
        const int64_t group = which.begin / (s.heads / s.groups);
        const Range x{which.begin * s.head_dim, which.count * s.head_dim};
        const Range b{s.inner() + group * s.state, s.state};
        const Range c{s.inner() + (s.groups + group) * s.state, s.state};
        xbc = {x, b, c};
        zxbcdt = {x};
        for (const Range& range : xbc) zxbcdt.push_back({s.inner() + range.begin, range.count});
        zxbcdt.push_back({s.inner() + s.conv_channels() + which.begin, which.count});
    }
};

// The last heads over the first tokens of the last sequence: what comes later does not reach them.
Check check_ssd(Twin& twin, const SsdForward& args) {
    const MambaShape& s = args.shape;
    const HeadColumns own(s, last(s.heads, std::min(kCheckedHeads, s.heads / s.groups)));
    const MambaShape small{.heads = own.heads.count,
                           .head_dim = s.head_dim,
                           .state = s.state,
                           .groups = 1,
                           .conv_kernel = s.conv_kernel};
    const int64_t length = args.xbc.size(1), count = std::min(length, kScannedTokens);
    const Range tokens{(args.xbc.size(0) - 1) * length, count};
    const auto of_heads = [&](const Tensor& t) {
        return twin.part(t, {0, 1}, {own.heads}, {own.heads.count});
    };
    const Tensor y = twin.empty({1, count, small.inner()});
    twin.backend().run(
        SsdForward{.shape = small,
                   .chunk = args.chunk,
                   .dt_min = args.dt_min,
                   .dt_max = args.dt_max,
                   .xbc = twin.part(args.xbc, tokens, own.xbc, {1, count, small.conv_channels()}),
                   .zxbcdt = twin.part(args.zxbcdt, tokens, own.zxbcdt, {1, count, small.projection()}),
                   .dt_bias = of_heads(args.dt_bias),
                   .a_log = of_heads(args.a_log),
                   .d = of_heads(args.d),
                   .y = y});
    return twin.compare(
        fmt::format("heads {}..{}, rows {}..{}", own.heads.begin, own.heads.begin + own.heads.count - 1,
                    tokens.begin, tokens.begin + tokens.count - 1),
        args.y, tokens, {own.xbc.front()}, y, Rounding::inside);
}

// The last group's heads over the last tokens of the last sequence: what comes before does not reach them but
// by the states that are given. Gradients of parameters, sums over all tokens, are left to the tests.
Check check_ssd_backward(Twin& twin, const SsdBackward& args) {
    const MambaShape& s = args.shape;
    const HeadColumns own(s, last(s.heads, s.heads / s.groups));
    const MambaShape small{.heads = own.heads.count,
                           .head_dim = s.head_dim,
                           .state = s.state,
                           .groups = 1,
                           .conv_kernel = s.conv_kernel};
    const int64_t sequences = args.xbc.size(0), length = args.xbc.size(1);
    const int64_t chunks = div_up(length, args.chunk),
                  checked = std::max<int64_t>(1, std::min(chunks, kScannedTokens / args.chunk));
    const int64_t begin = (chunks - checked) * args.chunk, count = length - begin;
    const Range tokens{(sequences - 1) * length + begin, count};
    const auto of_heads = [&](const Tensor& t) {
        return twin.part(t, {0, 1}, {own.heads}, {own.heads.count});
    };
    // A chunk's states of all heads as one row.
    const int64_t elements = s.head_dim * s.state;
    const Tensor states = twin.part(args.chunk_states.view({sequences * chunks, s.heads * elements}),
                                    {sequences * chunks - checked, checked},
                                    {{own.heads.begin * elements, own.heads.count * elements}},
                                    {1, checked * own.heads.count, s.head_dim, s.state});
    const Tensor d_xbc = twin.empty({1, count, small.conv_channels()}),
                 d_zxbcdt = twin.empty({1, count, small.projection()}), sums = twin.empty({own.heads.count});
    twin.backend().run(
        SsdBackward{.shape = small,
                    .chunk = args.chunk,
                    .dt_min = args.dt_min,
                    .dt_max = args.dt_max,
                    .xbc = twin.part(args.xbc, tokens, own.xbc, {1, count, small.conv_channels()}),
                    .zxbcdt = twin.part(args.zxbcdt, tokens, own.zxbcdt, {1, count, small.projection()}),
                    .dt_bias = of_heads(args.dt_bias),
                    .a_log = of_heads(args.a_log),
                    .d = of_heads(args.d),
                    .chunk_states = states,
                    .d_y = twin.part(args.d_y, tokens, {own.xbc.front()}, {1, count, small.inner()}),
                    .d_xbc = d_xbc,
                    .d_zxbcdt = d_zxbcdt,
                    .d_dt_bias = sums,
                    .d_a_log = sums,
                    .d_d = sums});
    return twin.compare(
        fmt::format("heads {}..{}, rows {}..{}", own.heads.begin, own.heads.begin + own.heads.count - 1,
                    tokens.begin, tokens.begin + tokens.count - 1),
        args.d_xbc, tokens, own.xbc, d_xbc, Rounding::inside);
}

Check check_gated_norm(Twin& twin, const GatedNormForward& args) {
    const MambaShape& s = args.shape;
    const Range rows = last(args.y.rows(), kCheckedTokens);
    const Tensor out = twin.empty({1, rows.count, s.inner()});
    twin.backend().run(
        GatedNormForward{.shape = s,
                         .y = twin.rows(args.y, rows, {1, rows.count, s.inner()}),
                         .zxbcdt = twin.rows(args.zxbcdt, rows, {1, rows.count, s.projection()}),
                         .weight = twin.whole(args.weight),
                         .eps = args.eps,
                         .out = out});
    return twin.compare(fmt::format("rows {}..{}", rows.begin, rows.begin + rows.count - 1), args.out, rows,
                        {{0, s.inner()}}, out, Rounding::once);
}

// The last head over the whole of the last sequence.
Check check_attention(Twin& twin, const AttentionForward& args) {
    const int64_t length = args.q.size(1), dim = args.head_dim;
    const Range tokens{(args.q.size(0) - 1) * length, length};
    const Range q_columns{(args.heads - 1) * dim, dim}, kv_columns{(args.kv_heads - 1) * dim, dim};
    const Tensor out = twin.empty({1, length, dim});
    twin.backend().run(AttentionForward{.heads = 1,
                                        .kv_heads = 1,
                                        .head_dim = dim,
                                        .q = twin.part(args.q, tokens, {q_columns}, {1, length, dim}),
                                        .k = twin.part(args.k, tokens, {kv_columns}, {1, length, dim}),
                                        .v = twin.part(args.v, tokens, {kv_columns}, {1, length, dim}),
                                        .out = out});
    return twin.compare(
        fmt::format("head {}, rows {}..{}", args.heads - 1, tokens.begin, tokens.begin + length - 1),
        args.out, tokens, {q_columns}, out, Rounding::inside);
}

// The last kv head, with its query heads, over the whole of the last sequence: d_q of the last of them, d_k
// and d_v; the worst counts.
Check check_attention_backward(Twin& twin, const AttentionBackward& args) {
    const int64_t length = args.q.size(1), dim = args.head_dim, group = args.heads / args.kv_heads;
    const Range tokens{(args.q.size(0) - 1) * length, length};
    const Range q_columns{(args.heads - group) * dim, group * dim},
        kv_columns{(args.kv_heads - 1) * dim, dim};
    const auto of_queries = [&](const Tensor& t) {
        return twin.part(t, tokens, {q_columns}, {1, length, group * dim});
    };
    const auto of_keys = [&](const Tensor& t) {
        return twin.part(t, tokens, {kv_columns}, {1, length, dim});
    };
    const int64_t rows = args.lse.elements() / length;
    const Tensor d_q = twin.empty({1, length, group * dim}), d_k = twin.empty({1, length, dim}),
                 d_v = twin.empty({1, length, dim});
    twin.backend().run(AttentionBackward{
        .heads = group,
        .kv_heads = 1,
        .head_dim = dim,
        .q = of_queries(args.q),
        .k = of_keys(args.k),
        .v = of_keys(args.v),
        .out = of_queries(args.out),
        .lse = twin.part(args.lse, {rows - group, group}, {{0, length}}, {1, group, length}),
        .d_out = of_queries(args.d_out),
        .d_q = d_q,
        .d_k = d_k,
        .d_v = d_v});
    const std::string part = fmt::format("heads {}..{}, rows {}..{}", args.heads - group, args.heads - 1,
                                         tokens.begin, tokens.begin + length - 1);
    Check worst = twin.compare(part + ", d_q", args.d_q, tokens, {q_columns}, d_q, Rounding::inside);
    for (const Check& check :
         {twin.compare(part + ", d_k", args.d_k, tokens, {kv_columns}, d_k, Rounding::inside),
          twin.compare(part + ", d_v", args.d_v, tokens, {kv_columns}, d_v, Rounding::inside)})
        if (!(check.error <= worst.error)) worst = check;
    return worst;
}

// A model's own ranges: softplus(dt_bias) log-uniform in [0.001, 0.1], A in [-16, -1].
struct ScanParameters {
    std::vector<double> dt_bias, a_log, d;

    explicit ScanParameters(int64_t heads) : d(heads, 1) {
        const CounterRandom random(0, "bench scan parameters");
        for (int64_t h = 0; h < heads; ++h) {
            const double delta = std::exp(std::log(1e-3) + random.uniform(2 * h) * std::log(100.0));
            dt_bias.push_back(delta + std::log(-std::expm1(-delta)));
            a_log.push_back(std::log(1 + 15 * random.uniform(2 * h + 1)));
        }
    }
};

}  // namespace

void add_conv(Operations& list, const ModelSizes& model, Batch batch) {
    add<ConvForward>(
        list, "conv", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            return ConvForward{.shape = s,
                               .zxbcdt = memory.normal({batch.sequences, batch.length, s.projection()}),
                               .weight = memory.normal({s.conv_channels(), s.conv_kernel}, 0.5),
                               .bias = memory.normal({s.conv_channels()}, 0.5),
                               .xbc = memory.empty({batch.sequences, batch.length, s.conv_channels()})};
        },
        check_conv);
}

void add_ssd(Operations& list, const ModelSizes& model, Batch batch) {
    add<SsdForward>(
        list, "ssd", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            const ScanParameters scan(s.heads);
            return SsdForward{.shape = s,
                              .dt_max = std::numeric_limits<double>::infinity(),
                              .xbc = memory.normal({batch.sequences, batch.length, s.conv_channels()}),
                              .zxbcdt = memory.normal({batch.sequences, batch.length, s.projection()}, 0.5),
                              .dt_bias = memory.precise(scan.dt_bias),
                              .a_log = memory.precise(scan.a_log),
                              .d = memory.precise(scan.d),
                              .y = memory.empty({batch.sequences, batch.length, s.inner()})};
        },
        check_ssd);
}

void add_ssd_backward(Operations& list, const ModelSizes& model, Batch batch) {
    add<SsdBackward>(
        list, "ssd_backward", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            const int64_t b = batch.sequences, t = batch.length;
            const ScanParameters scan(s.heads);
            SsdBackward args{.shape = s, .dt_max = std::numeric_limits<double>::infinity()};
            args.xbc = memory.normal({b, t, s.conv_channels()});
            args.zxbcdt = memory.normal({b, t, s.projection()}, 0.5);
            args.dt_bias = memory.precise(scan.dt_bias);
            args.a_log = memory.precise(scan.a_log);
            args.d = memory.precise(scan.d);
            args.chunk_states =
                memory.empty_precise({b, div_up(t, args.chunk) * s.heads, s.head_dim, s.state});
            args.d_y = memory.normal({b, t, s.inner()});
            args.d_xbc = memory.empty({b, t, s.conv_channels()});
            args.d_zxbcdt = memory.empty({b, t, s.projection()});
            args.d_dt_bias = memory.empty_precise({s.heads});
            args.d_a_log = memory.empty_precise({s.heads});
            args.d_d = memory.empty_precise({s.heads});
            return args;
        },
        check_ssd_backward);
}

void add_gated_norm(Operations& list, const ModelSizes& model, Batch batch) {
    add<GatedNormForward>(
        list, "gated_norm", describe(model.name, batch),
        [=](Memory& memory) {
            const MambaShape& s = model.mamba;
            std::vector<double> weight(s.inner());
            for (std::size_t i = 0; i < weight.size(); ++i)
                weight[i] = 0.5 + static_cast<double>(i % 16) / 16;
            return GatedNormForward{.shape = s,
                                    .y = memory.normal({batch.sequences, batch.length, s.inner()}),
                                    .zxbcdt = memory.normal({batch.sequences, batch.length, s.projection()}),
                                    .weight = memory.precise(weight),
                                    .out = memory.empty({batch.sequences, batch.length, s.inner()})};
        },
        check_gated_norm);
}

void add_attention(Operations& list, const ModelSizes& model, Batch batch) {
    add<AttentionForward>(
        list, "attention", describe(model.name, batch),
        [=](Memory& memory) {
            const int64_t q = model.heads * model.head_dim, kv = model.kv_heads * model.head_dim;
            return AttentionForward{.heads = model.heads,
                                    .kv_heads = model.kv_heads,
                                    .head_dim = model.head_dim,
                                    .q = memory.normal({batch.sequences, batch.length, q}),
                                    .k = memory.normal({batch.sequences, batch.length, kv}),
                                    .v = memory.normal({batch.sequences, batch.length, kv}),
                                    .out = memory.empty({batch.sequences, batch.length, q})};
        },
        check_attention);
}

void add_attention_backward(Operations& list, const ModelSizes& model, Batch batch, bool deterministic) {
    add<AttentionBackward>(
        list, "attention_backward",
        describe(model.name, batch) + (deterministic ? "" : ", sums in any order"),
        [=](Memory& memory) {
            const int64_t q = model.heads * model.head_dim, kv = model.kv_heads * model.head_dim;
            // What it is for scores of deviation 1: their exponentials have the mean exp(1/2).
            std::vector<double> lse;
            for (int64_t row = 0; row < batch.sequences * model.heads; ++row)
                for (int64_t t = 0; t < batch.length; ++t)
                    lse.push_back(std::log(static_cast<double>(t + 1)) + 0.5);
            return AttentionBackward{
                .heads = model.heads,
                .kv_heads = model.kv_heads,
                .head_dim = model.head_dim,
                .deterministic = deterministic,
                .q = memory.normal({batch.sequences, batch.length, q}),
                .k = memory.normal({batch.sequences, batch.length, kv}),
                .v = memory.normal({batch.sequences, batch.length, kv}),
                .out = memory.normal({batch.sequences, batch.length, q}, 0.1),
                .lse = memory.precise(lse).view({batch.sequences, model.heads, batch.length}),
                .d_out = memory.normal({batch.sequences, batch.length, q}),
                .d_q = memory.empty({batch.sequences, batch.length, q}),
                .d_k = memory.empty({batch.sequences, batch.length, kv}),
                .d_v = memory.empty({batch.sequences, batch.length, kv})};
        },
        check_attention_backward);
}

}  // namespace minipuzzle::cli::bench
