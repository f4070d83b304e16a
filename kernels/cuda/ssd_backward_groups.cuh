// The scan backward on compute capability 9.0a, per group of heads: dB and dC,
//   dB_j = sum over heads of 2^(s_last - s_j) delta_j dS^T x_j + sum_{i>=j} M_ij C_i
//   dC_i = sum over heads of 2^(s_i) S_in^T dy_i + sum_{j<=i} M_ij B_j
// A block takes one chunk of one group and up to 128 columns; each of two warpgroups 64 tokens, accumulated
// in registers over all heads. Here: what both have in common, and the kernel of dB.
#pragma once

#include "kernels/cuda/ssd_backward_tiles.cuh"

namespace minipuzzle::cuda::ssd_backward {

// Which part a block takes. grid B * chunks * groups * column slices.
struct GroupBlock {
    int slice, group, place, chunk, sequence, token, first_head;  // place: sequence * chunks + chunk
    __device__ explicit GroupBlock(const Arguments& args) {
        slice = blockIdx.x % args.column_slices, group = blockIdx.x / args.column_slices % args.groups;
        place = blockIdx.x / args.column_slices / args.groups;
        chunk = place % args.chunks, sequence = place / args.chunks, token = chunk * kChunk;
        first_head = group * args.heads_per_group;
    }
    __device__ int64_t head_row(const Arguments& args, int i) const {
        return static_cast<int64_t>(place) * args.heads + first_head + i;
    }
    __device__ const float* steps(const Arguments& args, int i, StepRow row) const {
        const int64_t of_head = static_cast<int64_t>(sequence) * args.heads + first_head + i;
        return args.steps + ((of_head * args.chunks + chunk) * kStepRows + row) * kChunk;
    }
};

// The sizes of a block's columns.
template <int kN>
struct GroupColumns {
    static constexpr int kColumns = kN < 128 ? kN : 128, kBlocks = kColumns / 64;
    static constexpr int kBytes = kBlocks * kBlockBytes;

    // Starts the copies of the block's columns of B (0) or C (1).
    __device__ static void load(const Maps& maps, const GroupBlock& block, uint32_t to, uint32_t barrier,
                                int which) {
        sm90::barrier_expect(barrier, kBytes);
        for (int i = 0; i < kBlocks; ++i)
            sm90::copy_box_in(to + i * kBlockBytes, maps.bc, barrier, 0, block.token,
                              block.group * (kN / 64) + block.slice * kBlocks + i, which, block.sequence);
    }
};

// The operand of 16 rows of M (or of M^T) and the 16 columns from `column` on, summed over the slices. d_cb
// has a row per j: dB's rows are j, dC's are i.
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
            const float2 value =
                kOfC ? float2{from[0], from[kChunk]} : *reinterpret_cast<const float2*>(from);
            sum.x += value.x, sum.y += value.y;
        }
        m[i] = pack_bf16(sum.x, sum.y);
    }
}

// Brings M to L2 before it is needed: a line of 128 bytes a thread and round.
__device__ inline void prefetch_m(const Arguments& args, const GroupBlock& of) {
    const int64_t slice_stride = args.batch * args.chunks * args.groups * (kChunk * kChunk);
    const float* from =
        args.d_cb + (static_cast<int64_t>(of.place) * args.groups + of.group) * (kChunk * kChunk);
    for (int slice = 0; slice < args.slices; ++slice, from += slice_stride)
        for (int line = threadIdx.x; line < kChunk * kChunk / 32; line += 256)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(from + line * 32));
}

// sum += M times the other side's columns: for dB over the tokens i from the warpgroup's first on, for dC
// over the tokens j up to its last.
template <bool kOfC, int kColumns>
__device__ inline void add_m(float (&sum)[kColumns / 2], const Arguments& args, const GroupBlock& of,
                             uint32_t columns, int row, int lane) {
    const int64_t block = static_cast<int64_t>(of.place) * args.groups + of.group;
    const int warpgroup = row / 64;
    const sm90::Descriptor other = sm90::descriptor<sm90::Swizzle::b128>(columns, kBlockBytes);
    for (int half = kOfC ? 0 : warpgroup; half <= (kOfC ? warpgroup : 1); ++half) {
        uint32_t m[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) read_m<kOfC>(args, block, row, 64 * half + 16 * k, lane, m[k]);
        sm90::pin(sum);
        sm90::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
            sm90::Wgmma<kColumns>::template registers_by_shared<true>(sum, m[k],
                                                                      other + (64 * half + 16 * k) * 128, 1);
        sm90::wgmma_commit();
        sm90::wgmma_wait<0>();
        sm90::pin(sum);
        sm90::pin(m);
    }
}

// Writes a block's columns, the first of which is `column` from B's first on.
template <int kColumns>
__device__ inline void write_group(const float (&sum)[kColumns / 2], const Arguments& args,
                                   const GroupBlock& of, int64_t column, int row, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int64_t t = of.token + row + lane / 4 + 8 * r;
        if (t >= args.time) continue;
        __nv_bfloat16* to =
            args.d_bc + (of.sequence * args.time + t) * args.conv_channels + column + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n)
            *reinterpret_cast<uint32_t*>(to + 8 * n) = pack_bf16(sum[4 * n + 2 * r], sum[4 * n + 2 * r + 1]);
    }
}

// x *= factors by row, in the layout of an operand.
template <int kRows>
__device__ inline void scale_rows(uint32_t (&x)[kRows][4], float first, float second) {
#pragma unroll
    for (auto& pairs : x)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float factor = j % 2 == 0 ? first : second;
            pairs[j] = pack_bf16(low_value(pairs[j]) * factor, high_value(pairs[j]) * factor);
        }
}

template <int kP, int kN>
struct BLayout {
    using X = XTiles<kP>;
    using Columns = GroupColumns<kN>;
    // Two blocks a multiprocessor, where they fit.
    static constexpr int kBlocksAtOnce = kP > 64 ? 1 : 2, kStages = 2;
    static constexpr int kStateBlockBytes = kP * 128;
    static constexpr int kState = X::kBytes, kStageBytes = kState + Columns::kBlocks * kStateBlockBytes;
    static constexpr int kStepBytes = 2 * kRowBytes;  // delta, exit
    static constexpr int kC = 0, kStage0 = Columns::kBytes;
    static constexpr int kSteps = kStage0 + kStages * kStageBytes;
    static constexpr int kBarriers = kSteps + kStages * kStepBytes;
    static constexpr int kCounters = kBarriers + (kStages + 1) * 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448);
};

// 256 threads.
template <int kP, int kN>
__global__ void __launch_bounds__(256, (BLayout<kP, kN>::kBlocksAtOnce))
    take_b(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = BLayout<kP, kN>;
    using X = XTiles<kP>;
    using Columns = GroupColumns<kN>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = sm90::shared_address(memory);
    const GroupBlock of(args);
    const int lane = threadIdx.x % 32, row = static_cast<int>(threadIdx.x) / 32 * 16;

    const auto full = [&](int i) { return shared + L::kBarriers + i % L::kStages * 8; };
    const auto load = [&](int i) {
        const uint32_t to = shared + L::kStage0 + i % L::kStages * L::kStageBytes, barrier = full(i);
        sm90::barrier_expect(barrier, L::kStageBytes + L::kStepBytes);
        X::load(to, maps.x, maps.x_rest, barrier, of.token, of.first_head + i, of.sequence);
        for (int block = 0; block < Columns::kBlocks; ++block)
            sm90::copy_box_in(to + L::kState + block * L::kStateBlockBytes, maps.d_states, barrier, 0, 0,
                              of.slice * Columns::kBlocks + block, static_cast<int>(of.head_row(args, i)));
        sm90::copy_in(shared + L::kSteps + i % L::kStages * L::kStepBytes, of.steps(args, i, kDelta),
                      L::kStepBytes, barrier);
    };
    const uint32_t c_barrier = shared + L::kBarriers + L::kStages * 8;
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(full(i), 1);
            store_shared(shared + L::kCounters + 4 * i, 0u);
        }
        sm90::barrier_init(c_barrier, 1);
        sm90::fence_barrier_init();
        for (int i = 0; i < L::kStages && i < args.heads_per_group; ++i) load(i);
        Columns::load(maps, of, shared + L::kC, c_barrier, 1);
    }
    __syncthreads();

    float sum[Columns::kColumns / 2];
#pragma unroll
    for (float& value : sum) value = 0;
    for (int i = 0; i < args.heads_per_group; ++i) {
        const uint32_t stage = shared + L::kStage0 + i % L::kStages * L::kStageBytes;
        const auto* steps =
            reinterpret_cast<const float*>(memory + L::kSteps + i % L::kStages * L::kStepBytes) + row +
            lane / 4;
        if (i == args.heads_per_group - 1) prefetch_m(args, of);
        sm90::barrier_wait(full(i), i / L::kStages & 1);
        uint32_t x[kP / 16][4];
        X::read(stage, row, lane, x);
        scale_rows(x, steps[0] * steps[kChunk], steps[8] * steps[kChunk + 8]);
        sm90::pin(sum);
        sm90::wgmma_fence();
        const sm90::Descriptor state =
            sm90::descriptor<sm90::Swizzle::b128>(stage + L::kState, L::kStateBlockBytes);
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
            sm90::Wgmma<Columns::kColumns>::template registers_by_shared<true>(sum, x[k],
                                                                               state + k * 16 * 128, 1);
        sm90::wgmma_commit();
        sm90::wgmma_wait<0>();
        sm90::pin(sum);
        sm90::pin(x);
        __syncwarp();
        if (lane == 0) {
            const uint32_t before = sm90::count_up(shared + L::kCounters + i % L::kStages * 4);
            if (before % 8 == 7 && i + L::kStages < args.heads_per_group) load(i + L::kStages);
        }
        __syncwarp();
    }
    sm90::barrier_wait(c_barrier, 0);
    add_m<false, Columns::kColumns>(sum, args, of, shared + L::kC, row, lane);
    write_group<Columns::kColumns>(sum, args, of, of.group * kN + of.slice * Columns::kColumns, row, lane);
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
