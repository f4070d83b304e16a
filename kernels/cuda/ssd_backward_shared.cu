// What the heads of a group share in the plain backward scan: the gradients of B and C, and U. One block per
// (sequence, step, group, tile of the state's columns) goes through the group's heads; per head
//   b = x dS_out,  c = d_y S_in   (64 tokens by the tile's columns, over the head's channels)
//   dB += e^{s_last - s_j} delta_j b_j,  dC += e^{s_i} c_i,  U_i = e^{s_i} c_i . C_i,
// and U of the last token also takes carry <S_in, dS_out>, which decays through every token. At the end
//   dB += M^T C,  dC += M B.
//
// At the 8B shape: reads two states per 64 tokens (537 MB), x and d_y (268 MB, twice), writes dB and dC; 4
// HPN per token, 34 GFLOP.
#include "kernels/cuda/ssd_backward_plain.cuh"

namespace minipuzzle::cuda::ssd_backward {
namespace {

constexpr int kThreads = 256;  // 4 warps down the tokens, 2 across the columns

template <int kWidth, int kColumns>
struct Layout {
    static constexpr int kXPitch = 2 * (kWidth + 8), kStatePitch = 2 * (kColumns + 8);
    static constexpr int kX = 0, kDy = kX + kStep * kXPitch, kLeaving = kDy + kStep * kXPitch;
    static constexpr int kEntering = kLeaving + kWidth * kStatePitch;
    static constexpr int kM = 0;  // in the heads' place, when they are done
    static constexpr int kHeads = kEntering + kWidth * kStatePitch;
    static constexpr int kB = kHeads > kStep* kPairsPitch ? kHeads : kStep* kPairsPitch;
    static constexpr int kC = kB + kStep * kStatePitch, kValues = kC + kStep * kStatePitch;
    static constexpr int kSums = kValues + static_cast<int>(sizeof(StepValues));
    static constexpr int kBytes = kSums + (2 * kStep + kThreads / kWarp) * 4;
};

template <int kWidth, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) shared_kernel(const Params p) {
    using L = Layout<kWidth, kColumns>;
    constexpr int kTiles = kColumns / 16;  // of 8 columns, per warp
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    int64_t rest = blockIdx.x;
    const int column_tile = static_cast<int>(rest % p.column_tiles), column = column_tile * kColumns;
    rest /= p.column_tiles;
    const int group = static_cast<int>(rest % p.groups);
    rest /= p.groups;
    const int step = static_cast<int>(rest % p.steps);
    const int64_t sequence = rest / p.steps, at_step = sequence * p.steps + step;
    const StepRange range(p, step);
    const int64_t token = sequence * p.time + range.begin;
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int row = warp / 2 * 16, half = warp % 2, first = half * (kColumns / 2);
    const uint16_t* rows = p.xbc + token * p.conv_channels;
    const int64_t of_group = int64_t{group} * p.state + column;

    load_tile<kStep, kColumns / 8>(base + L::kB, {rows + p.b_offset + of_group, p.conv_channels, range.count,
                                                  p.state - column, p.bc_aligned});
    load_tile<kStep, kColumns / 8>(base + L::kC, {rows + p.c_offset + of_group, p.conv_channels, range.count,
                                                  p.state - column, p.bc_aligned});
    float d_b[kTiles][4] = {}, d_c[kTiles][4] = {};
    const StepValues& values = *reinterpret_cast<const StepValues*>(shared + L::kValues);
    float* sums = reinterpret_cast<float*>(shared + L::kSums);

    for (int head = group * p.heads_per_group; head < (group + 1) * p.heads_per_group; ++head) {
        const int64_t at_head = at_step * p.heads + head;
        float b[kTiles][4] = {}, c[kTiles][4] = {};
        float through = 0;
        for (int tile = 0; tile < p.channel_tiles; ++tile) {
            const int channel = tile * p.tile_width, channels = min(p.tile_width, p.head_dim - channel);
            const int64_t x_at = int64_t{head} * p.head_dim + channel;
            const int64_t state_at = at_head * p.head_elements() + int64_t{channel} * p.state_pitch + column;
            __syncthreads();  // everyone is done with what was there
            if (tile == 0) load_values(base + L::kValues, p.values[at_head]);
            load_tile<kStep, kWidth / 8>(base + L::kX,
                                         {rows + x_at, p.conv_channels, range.count, channels, p.x_aligned});
            load_tile<kStep, kWidth / 8>(base + L::kDy, {p.d_y + token * p.inner + x_at, p.inner, range.count,
                                                         channels, p.d_y_aligned});
            load_tile<kWidth, kColumns / 8>(base + L::kLeaving, {p.leaving + state_at, p.state_pitch,
                                                                 channels, p.state_pitch - column, true});
            load_tile<kWidth, kColumns / 8>(base + L::kEntering, {p.entering + state_at, p.state_pitch,
                                                                  channels, p.state_pitch - column, true});
            wait_for_tiles();
#pragma unroll
            for (int k = 0; k < kWidth; k += 16) {
                if (k >= channels) break;
                uint32_t x[4], d_y[4];
                load_left<false>(x, base + L::kX, L::kXPitch, row, k);
                load_left<false>(d_y, base + L::kDy, L::kXPitch, row, k);
#pragma unroll
                for (int n = 0; n < kTiles / 2; ++n) {
                    uint32_t right[4];
                    load_right<true>(right, base + L::kLeaving, L::kStatePitch, first + n * 16, k);
                    multiply_add_16(b[2 * n], b[2 * n + 1], x, right);
                    load_right<true>(right, base + L::kEntering, L::kStatePitch, first + n * 16, k);
                    multiply_add_16(c[2 * n], c[2 * n + 1], d_y, right);
                }
            }
            for (int i = thread; i < kWidth * kColumns / 8; i += kThreads) {
                const int place = i / (kColumns / 8) * L::kStatePitch + i % (kColumns / 8) * 16;
                const uint4 s = *reinterpret_cast<const uint4*>(shared + L::kEntering + place);
                const uint4 d = *reinterpret_cast<const uint4*>(shared + L::kLeaving + place);
                const uint32_t s_pairs[4] = {s.x, s.y, s.z, s.w}, d_pairs[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    through = fmaf(low_value(s_pairs[e]), low_value(d_pairs[e]), through);
                    through = fmaf(high_value(s_pairs[e]), high_value(d_pairs[e]), through);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int i = row + lane / 4 + r * 8;
            const float to_exit = values.to_exit[i] * values.delta[i], from_entry = values.from_entry[i];
            float enters = 0;
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
                const uint32_t pair = *reinterpret_cast<const uint32_t*>(shared + L::kC + i * L::kStatePitch +
                                                                         (first + n * 8 + lane % 4 * 2) * 2);
                d_b[n][2 * r] = fmaf(to_exit, b[n][2 * r], d_b[n][2 * r]);
                d_b[n][2 * r + 1] = fmaf(to_exit, b[n][2 * r + 1], d_b[n][2 * r + 1]);
                d_c[n][2 * r] = fmaf(from_entry, c[n][2 * r], d_c[n][2 * r]);
                d_c[n][2 * r + 1] = fmaf(from_entry, c[n][2 * r + 1], d_c[n][2 * r + 1]);
                enters = fmaf(c[n][2 * r], low_value(pair), enters);
                enters = fmaf(c[n][2 * r + 1], high_value(pair), enters);
            }
            enters = sum_of_row(enters) * from_entry;
            if (lane % 4 == 0) sums[half * kStep + i] = enters;
        }
#pragma unroll
        for (int distance = kWarp / 2; distance > 0; distance /= 2)
            through += __shfl_xor_sync(kAllLanes, through, distance);
        if (lane == 0) sums[2 * kStep + warp] = through;
        __syncthreads();
        if (thread < kStep) {
            float enters = sums[thread] + sums[kStep + thread];
            if (thread == kStep - 1) {
                float all = 0;
                for (int w = 0; w < kThreads / kWarp; ++w) all += sums[2 * kStep + w];
                enters += values.carry * all;
            }
            p.enters[(at_head * p.column_tiles + column_tile) * kStep + thread] = enters;
        }
    }

    __syncthreads();
    load_tile<kStep, kStep / 8>(base + L::kM, {p.d_scores + (at_step * p.groups + group) * (kStep * kStep),
                                               kStep, kStep, kStep, true});
    wait_for_tiles();
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
        uint32_t left[4];
        if (k >= row) {
            load_left<true>(left, base + L::kM, kPairsPitch, row, k);
#pragma unroll
            for (int n = 0; n < kTiles / 2; ++n) {
                uint32_t right[4];
                load_right<true>(right, base + L::kC, L::kStatePitch, first + n * 16, k);
                multiply_add_16(d_b[2 * n], d_b[2 * n + 1], left, right);
            }
        }
        if (k <= row) {
            load_left<false>(left, base + L::kM, kPairsPitch, row, k);
#pragma unroll
            for (int n = 0; n < kTiles / 2; ++n) {
                uint32_t right[4];
                load_right<true>(right, base + L::kB, L::kStatePitch, first + n * 16, k);
                multiply_add_16(d_c[2 * n], d_c[2 * n + 1], left, right);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int place = (row + lane / 4 + r * 8) * L::kStatePitch + (first + n * 8 + lane % 4 * 2) * 2;
            *reinterpret_cast<uint32_t*>(shared + L::kB + place) =
                pack_bf16(d_b[n][2 * r], d_b[n][2 * r + 1]);
            *reinterpret_cast<uint32_t*>(shared + L::kC + place) =
                pack_bf16(d_c[n][2 * r], d_c[n][2 * r + 1]);
        }
    __syncthreads();
    uint16_t* out = p.d_xbc + token * p.conv_channels + of_group;
    store_tile<kColumns / 8>(out + p.b_offset, p.conv_channels, shared + L::kB, range.count, p.state - column,
                             p.d_bc_aligned);
    store_tile<kColumns / 8>(out + p.c_offset, p.conv_channels, shared + L::kC, range.count, p.state - column,
                             p.d_bc_aligned);
}

template <int kWidth, int kColumns>
void launch(const Context& context, const Params& p) {
    launch(context, shared_kernel<kWidth, kColumns>, p.batch * p.steps * p.groups * p.column_tiles, kThreads,
           Layout<kWidth, kColumns>::kBytes, p);
}

}  // namespace

void take_shared(const Context& context, const Params& p) {
    if (column_tile(p.state) == 32)
        p.tile_width <= 32 ? launch<32, 32>(context, p) : launch<64, 32>(context, p);
    else
        p.tile_width <= 32 ? launch<32, 64>(context, p) : launch<64, 64>(context, p);
}

}  // namespace minipuzzle::cuda::ssd_backward
