// The scan backward on compute capability 9.0a, per group of heads: dB and dC,
//   dB_j = sum over heads of 2^(s_last - s_j) delta_j dS^T x_j + sum_{i>=j} M_ij C_i
//   dC_i = sum over heads of 2^(s_i) S_in^T dy_i + sum_{j<=i} M_ij B_j
// and U_i = 2^(s_i) dy_i . (S_in C_i). A block takes one chunk of one group, B's side or C's, and up to 128
// columns; each of its two warpgroups 64 tokens, accumulated in registers over all heads.
#pragma once

#include "kernels/cuda/ssd_backward_tiles.cuh"

namespace minipuzzle::cuda::ssd_backward {

template <int kP, int kN>
struct GroupsLayout {
    using X = XTiles<kP>;
    static constexpr int kColumns = kN < 128 ? kN : 128, kBlocks = kColumns / 64;
    static constexpr int kStages = kP > 64 ? 2 : 3;
    static constexpr int kStateBlockBytes = kP * 128;
    static constexpr int kState = X::kBytes, kStageBytes = kState + kBlocks * kStateBlockBytes;
    static constexpr int kStepBytes = 2 * kRowBytes;
    // The same side's columns (C for U), and the other side's for the product with M.
    static constexpr int kSame = 0, kOther = kBlocks * kBlockBytes, kStage0 = 2 * kBlocks * kBlockBytes;
    static constexpr int kSteps = kStage0 + kStages * kStageBytes;
    static constexpr int kBarriers = kSteps + kStages * kStepBytes;
    static constexpr int kCounters = kBarriers + (kStages + 1) * 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448);
};

// The operand of 64 rows of M (or of M^T) and the 16 columns from `column` on, summed over the slices.
// d_cb has a row per j: on B's side rows are j.
template <bool kOfC>
__device__ inline void read_m(const Arguments& args, int64_t block, int row, int column, int lane,
                              uint32_t (&m)[4]) {
    const int64_t slice_stride = args.batch * args.chunks * args.groups * (kChunk * kChunk);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = row + lane / 4 + i % 2 * 8, c = column + lane % 4 * 2 + i / 2 * 8;
        const float* from = args.d_cb + block * (kChunk * kChunk) + (kOfC ? c * kChunk + r : r * kChunk + c);
        float2 sum = {0.f, 0.f};
        for (int slice = 0; slice < args.slices; ++slice, from += slice_stride) {
            const float2 value = kOfC ? float2{from[0], from[kChunk]} : *reinterpret_cast<const float2*>(from);
            sum.x += value.x, sum.y += value.y;
        }
        m[i] = pack_bf16(sum.x, sum.y);
    }
}

template <int kP, int kN, bool kOfC>
__device__ inline void take_group(const Maps& maps, const Arguments& args, unsigned char* memory, int place,
                                  int group, int slice) {
    using L = GroupsLayout<kP, kN>;
    using X = XTiles<kP>;
    constexpr auto kWide = sm90::Swizzle::b128;
    const uint32_t shared = sm90::shared_address(memory);
    const int chunk = place % args.chunks, sequence = place / args.chunks, token = chunk * kChunk;
    const int first_head = group * args.heads_per_group;
    const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32;
    const int own = 64 * warpgroup, row = own + static_cast<int>(threadIdx.x) / 32 % 4 * 16;

    const auto full = [&](int i) { return shared + L::kBarriers + i % L::kStages * 8; };
    const auto load = [&](int i) {
        const uint32_t to = shared + L::kStage0 + i % L::kStages * L::kStageBytes, barrier = full(i);
        const int head = first_head + i;
        sm90::barrier_expect(barrier, L::kStageBytes + (kOfC ? kRowBytes : 2 * kRowBytes));
        X::load(to, kOfC ? maps.d_y : maps.x, kOfC ? maps.d_y_rest : maps.x_rest, barrier, token, head,
                sequence);
        for (int block = 0; block < L::kBlocks; ++block)
            sm90::copy_box_in(to + L::kState + block * L::kStateBlockBytes,
                              kOfC ? maps.states : maps.d_states, barrier, 0, 0, slice * L::kBlocks + block,
                              place * args.heads + head);
        const int64_t of_head = static_cast<int64_t>(sequence) * args.heads + head;
        sm90::copy_in(
            shared + L::kSteps + i % L::kStages * L::kStepBytes,
            args.steps + ((of_head * args.chunks + chunk) * kStepRows + (kOfC ? kEntry : kDelta)) * kChunk,
            kOfC ? kRowBytes : 2 * kRowBytes, barrier);
    };
    const uint32_t bc_barrier = shared + L::kBarriers + L::kStages * 8;
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(full(i), 1);
            asm volatile("st.shared.u32 [%0], 0;" ::"r"(shared + L::kCounters + 4 * i) : "memory");
        }
        sm90::barrier_init(bc_barrier, 1);
        sm90::fence_barrier_init();
        sm90::barrier_expect(bc_barrier, 2 * L::kBlocks * kBlockBytes);
        for (int block = 0; block < L::kBlocks; ++block) {
            const int column = group * (kN / 64) + slice * L::kBlocks + block;
            sm90::copy_box_in(shared + L::kSame + block * kBlockBytes, maps.bc, bc_barrier, 0, token, column,
                              kOfC ? 1 : 0, sequence);
            sm90::copy_box_in(shared + L::kOther + block * kBlockBytes, maps.bc, bc_barrier, 0, token, column,
                              kOfC ? 0 : 1, sequence);
        }
        for (int i = 0; i < L::kStages && i < args.heads_per_group; ++i) load(i);
    }
    __syncthreads();
    sm90::barrier_wait(bc_barrier, 0);

    float sum[L::kColumns / 2];
#pragma unroll
    for (float& value : sum) value = 0;
    for (int i = 0; i < args.heads_per_group; ++i) {
        const uint32_t stage = shared + L::kStage0 + i % L::kStages * L::kStageBytes;
        const auto* steps =
            reinterpret_cast<const float*>(memory + L::kSteps + i % L::kStages * L::kStepBytes);
        sm90::barrier_wait(full(i), i / L::kStages & 1);

        Channels<kP> out;  // S_in C
        if constexpr (kOfC) {
            sm90::wgmma_fence();
            out.template start<L::kColumns>(shared + L::kSame + own * 128, stage + L::kState);
            sm90::wgmma_commit();
        }
        uint32_t x[kP / 16][4], scaled[kP / 16][4];
        X::read(stage, row, lane, x);
        float factors[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int at = row + lane / 4 + 8 * r;
            factors[r] = kOfC ? steps[at] : steps[at] * steps[kChunk + at];
        }
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                scaled[k][j] =
                    pack_bf16(low_value(x[k][j]) * factors[j % 2], high_value(x[k][j]) * factors[j % 2]);
        sm90::pin(sum);
        sm90::wgmma_fence();
        const sm90::Descriptor state = sm90::descriptor<kWide>(stage + L::kState, L::kStateBlockBytes);
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
            sm90::Wgmma<L::kColumns>::template registers_by_shared<true>(sum, scaled[k], state + k * 16 * 128,
                                                                         1);
        sm90::wgmma_commit();
        if constexpr (kOfC) {
            sm90::wgmma_wait<1>();
            out.pin();
            float enters[2] = {0, 0};
#pragma unroll
            for (int k = 0; k < kP / 16; ++k)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float* pair = out.columns(k) + 2 * j;
                    enters[j % 2] = fmaf(low_value(x[k][j]), pair[0],
                                         fmaf(high_value(x[k][j]), pair[1], enters[j % 2]));
                }
            const int64_t of_head =
                (static_cast<int64_t>(slice) * args.batch * args.chunks + place) * args.heads + first_head + i;
            float* to = args.enters + of_head * kChunk + row + lane / 4;
            const float first = sum_of_row(enters[0]) * factors[0],
                        second = sum_of_row(enters[1]) * factors[1];
            if (lane % 4 == 0) to[0] = first, to[8] = second;
        }
        sm90::wgmma_wait<0>();
        sm90::pin(sum);
        keep(scaled);
        __syncwarp();
        if (lane == 0) {
            const uint32_t before = sm90::count_up(shared + L::kCounters + i % L::kStages * 4);
            if (before % 8 == 7 && i + L::kStages < args.heads_per_group) load(i + L::kStages);
        }
        __syncwarp();
    }

    // The product with M: on B's side over the tokens i from this warpgroup's first on, on C's over those j
    // up to its last.
    const int64_t block = static_cast<int64_t>(place) * args.groups + group;
    const sm90::Descriptor other = sm90::descriptor<kWide>(shared + L::kOther, kBlockBytes);
    for (int half = kOfC ? 0 : warpgroup; half <= (kOfC ? warpgroup : 1); ++half) {
        uint32_t m[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) read_m<kOfC>(args, block, row, 64 * half + 16 * k, lane, m[k]);
        sm90::pin(sum);
        sm90::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
            sm90::Wgmma<L::kColumns>::template registers_by_shared<true>(
                sum, m[k], other + (64 * half + 16 * k) * 128, 1);
        sm90::wgmma_commit();
        sm90::wgmma_wait<0>();
        sm90::pin(sum);
        keep(m);
    }

    const int64_t column = (kOfC ? args.groups * kN : 0) + group * kN + slice * L::kColumns + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int64_t t = token + row + lane / 4 + 8 * r;
        if (t >= args.time) continue;
        __nv_bfloat16* to = args.d_bc + (sequence * args.time + t) * args.conv_channels + column;
#pragma unroll
        for (int n = 0; n < L::kColumns / 8; ++n)
            *reinterpret_cast<uint32_t*>(to + 8 * n) =
                pack_bf16(sum[4 * n + 2 * r], sum[4 * n + 2 * r + 1]);
    }
}

// grid B * chunks * groups * column slices * 2, 256 threads.
template <int kP, int kN>
__global__ void __launch_bounds__(256, 1)
    take_groups(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char memory[];
    const int side = blockIdx.x % 2, slice = blockIdx.x / 2 % args.column_slices;
    const int group = blockIdx.x / 2 / args.column_slices % args.groups;
    const int place = blockIdx.x / 2 / args.column_slices / args.groups;  // sequence * chunks + chunk
    if (side == 0)
        take_group<kP, kN, false>(maps, args, memory, place, group, slice);
    else
        take_group<kP, kN, true>(maps, args, memory, place, group, slice);
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
