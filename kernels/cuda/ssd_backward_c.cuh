// The scan backward on compute capability 9.0a: the kernel of dC (see ssd_backward_groups.cuh), and of what
// else needs the states entering chunks,
//   U_i = 2^(s_i) dy_i . (S_in C_i),   e^{s_last} <S_in, dS>.
// The states come as float32. A third warpgroup rounds them to bf16, as operands of the other two's products,
// and multiplies them with dS on the way.
#pragma once

#include "kernels/cuda/ssd_backward_groups.cuh"

namespace minipuzzle::cuda::ssd_backward {

template <int kP, int kN>
struct CLayout {
    using X = XTiles<kP>;
    using Columns = GroupColumns<kN>;
    static constexpr int kThreads = 384, kStages = 2;
    static constexpr int kRounded = kP > 64 ? 1 : 2;  // rounded states at a time
    static constexpr int kStateBlockBytes = kP * 128, kStateBytes = Columns::kBlocks * kStateBlockBytes;
    // One stage: dy, the state in blocks of 32 columns of float32, dS in blocks of 64 of bf16; 2^s.
    static constexpr int kState = X::kBytes, kDState = kState + 2 * kStateBytes;
    static constexpr int kStageBytes = kDState + kStateBytes;
    static constexpr int kC = 0, kStage0 = Columns::kBytes;
    static constexpr int kRounded0 = kStage0 + kStages * kStageBytes;
    static constexpr int kSteps = kRounded0 + kRounded * kStateBytes;
    // Barriers: stages filled, rounded states there, rounded states read, C there, B there.
    static constexpr int kFull = kSteps + kStages * kRowBytes, kReady = kFull + kStages * 8;
    static constexpr int kFree = kReady + kRounded * 8, kCFull = kFree + kRounded * 8, kBFull = kCFull + 8;
    static constexpr int kCounters = kBFull + 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448 && Columns::kBytes <= kStageBytes);
};

template <int kP, int kN>
struct CBlock {
    using L = CLayout<kP, kN>;
    using X = XTiles<kP>;
    using Columns = GroupColumns<kN>;
    const Maps& maps;
    const Arguments& args;
    unsigned char* memory;
    uint32_t shared;
    GroupBlock of;

    __device__ CBlock(const Maps& of_maps, const Arguments& of_args, unsigned char* of_memory)
        : maps(of_maps),
          args(of_args),
          memory(of_memory),
          shared(sm90::shared_address(of_memory)),
          of(of_args) {}

    __device__ uint32_t stage(int i) const { return shared + L::kStage0 + i % L::kStages * L::kStageBytes; }
    __device__ uint32_t rounded(int i) const {
        return shared + L::kRounded0 + i % L::kRounded * L::kStateBytes;
    }
    __device__ const float* entry(int i) const {
        return reinterpret_cast<const float*>(memory + L::kSteps + i % L::kStages * kRowBytes);
    }
    __device__ void wait_full(int i) const {
        sm90::barrier_wait(shared + L::kFull + i % L::kStages * 8, i / L::kStages & 1);
    }
    __device__ uint32_t ready(int i) const { return shared + L::kReady + i % L::kRounded * 8; }
    __device__ uint32_t free(int i) const { return shared + L::kFree + i % L::kRounded * 8; }

    __device__ void load(int i) const {
        const uint32_t to = stage(i), barrier = shared + L::kFull + i % L::kStages * 8;
        const int row = static_cast<int>(of.head_row(args, i));
        sm90::barrier_expect(barrier, L::kStageBytes + kRowBytes);
        X::load(to, maps.d_y, maps.d_y_rest, barrier, of.token, of.first_head + i, of.sequence);
        for (int block = 0; block < 2 * Columns::kBlocks; ++block)
            sm90::copy_box_in(to + L::kState + block * L::kStateBlockBytes, maps.states, barrier, 0, 0,
                              of.slice * 2 * Columns::kBlocks + block, row);
        for (int block = 0; block < Columns::kBlocks; ++block)
            sm90::copy_box_in(to + L::kDState + block * L::kStateBlockBytes, maps.d_states, barrier, 0, 0,
                              of.slice * Columns::kBlocks + block, row);
        sm90::copy_in(shared + L::kSteps + i % L::kStages * kRowBytes, of.steps(args, i, kEntry), kRowBytes,
                      barrier);
    }
    // One lane of every warp, when its warp no longer reads the i-th head's stage.
    __device__ void release(int i) const {
        const uint32_t before = sm90::count_up(shared + L::kCounters + i % L::kStages * 4);
        if (before % (L::kThreads / 32) != L::kThreads / 32 - 1) return;
        if (i + L::kStages < args.heads_per_group)
            load(i + L::kStages);
        else if (i + L::kStages == args.heads_per_group)
            load_b();
    }
    // B comes to the first stage that is not needed any more.
    __device__ uint32_t b_place() const { return stage(args.heads_per_group); }
    __device__ void load_b() const { Columns::load(maps, of, b_place(), shared + L::kBFull, 0); }
    __device__ void set_up() const {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(shared + L::kFull + i * 8, 1);
            store_shared(shared + L::kCounters + 4 * i, 0u);
        }
        for (int i = 0; i < L::kRounded; ++i) {
            sm90::barrier_init(ready(i), 4);
            sm90::barrier_init(free(i), 8);
        }
        sm90::barrier_init(shared + L::kCFull, 1);
        sm90::barrier_init(shared + L::kBFull, 1);
        sm90::fence_barrier_init();
        for (int i = 0; i < L::kStages && i < args.heads_per_group; ++i) load(i);
        Columns::load(maps, of, shared + L::kC, shared + L::kCFull, 1);
        if (args.heads_per_group < L::kStages) load_b();
    }

    // Rounds a state and returns this thread's part of its product with dS. Eight lanes take a row's 32
    // columns; the rows of a half warp are four apart, so that they lie in different banks.
    __device__ float round_state(int i, int warp, int lane) const {
        constexpr auto kWide = sm90::Swizzle::b128;
        const uint32_t from = stage(i) + L::kState, d_from = stage(i) + L::kDState, to = rounded(i);
        const int piece = lane % 8;
        constexpr int kUnits = 2 * Columns::kBlocks * (kP / 4) / 4;  // of four rows, a warp
        constexpr int kBatch = kUnits % 4 == 0 ? 4 : 2;
        float pass = 0;
#pragma unroll 1
        for (int batch = 0; batch < kUnits; batch += kBatch) {
            uint4 bits[kBatch];
            uint2 d[kBatch];
            uint32_t at[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; ++k) {
                const int unit = (batch + k) * 4 + warp, block = unit / (kP / 4), rows = unit % (kP / 4);
                const int row = rows / 2 * 8 + rows % 2 * 2 + lane / 16 + lane / 8 % 2 * 4;
                at[k] = block / 2 * L::kStateBlockBytes +
                        sm90::swizzled<kWide>(row, block % 2 * 4 + piece / 2) + piece % 2 * 8;
                bits[k] =
                    load_shared_16(from + block * L::kStateBlockBytes + sm90::swizzled<kWide>(row, piece));
                asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                             : "=r"(d[k].x), "=r"(d[k].y)
                             : "r"(d_from + at[k])
                             : "memory");
            }
#pragma unroll
            for (int k = 0; k < kBatch; ++k) {
                const float s0 = __uint_as_float(bits[k].x), s1 = __uint_as_float(bits[k].y),
                            s2 = __uint_as_float(bits[k].z), s3 = __uint_as_float(bits[k].w);
                pass = fmaf(s0, low_value(d[k].x),
                            fmaf(s1, high_value(d[k].x),
                                 fmaf(s2, low_value(d[k].y), fmaf(s3, high_value(d[k].y), pass))));
                asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + at[k]), "r"(pack_bf16(s0, s1)),
                             "r"(pack_bf16(s2, s3))
                             : "memory");
            }
        }
        return pass;
    }
    // The third warpgroup's work.
    __device__ void round_states() const {
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        for (int i = 0; i < args.heads_per_group; ++i) {
            wait_full(i);
            if (i >= L::kRounded) sm90::barrier_wait(free(i), (i / L::kRounded - 1) & 1);
            const float pass = sum_of_warp(round_state(i, warp, lane));
            const float carry = entry(i)[kChunk - 1];
            sm90::fence_async_shared();
            __syncwarp();
            if (lane == 0) {
                sm90::barrier_expect(ready(i), 0);
                release(i);
                args.passes[of.head_row(args, i) * args.pass_parts + of.slice * 4 + warp] = carry * pass;
            }
            __syncwarp();
        }
    }

    // The other two's: 64 tokens each.
    __device__ void accumulate() const {
        constexpr int kColumns = Columns::kColumns;
        const int lane = threadIdx.x % 32, row = static_cast<int>(threadIdx.x) / 32 * 16;
        float sum[kColumns / 2];
#pragma unroll
        for (float& value : sum) value = 0;
        sm90::barrier_wait(shared + L::kCFull, 0);
        for (int i = 0; i < args.heads_per_group; ++i) {
            if (i == args.heads_per_group - 1) prefetch_m(args, of);
            wait_full(i);
            uint32_t x[kP / 16][4];
            X::read(stage(i), row, lane, x);
            const float first = entry(i)[row + lane / 4], second = entry(i)[row + lane / 4 + 8];
            scale_rows(x, first, second);
            sm90::barrier_wait(ready(i), i / L::kRounded & 1);
            Channels<kP> out;  // S_in C
            sm90::pin(sum);
            sm90::wgmma_fence();
            out.template start<kColumns>(shared + L::kC + row / 64 * 64 * 128, rounded(i));
            sm90::wgmma_commit();
            const sm90::Descriptor state =
                sm90::descriptor<sm90::Swizzle::b128>(rounded(i), L::kStateBlockBytes);
#pragma unroll
            for (int k = 0; k < kP / 16; ++k)
                sm90::Wgmma<kColumns>::template registers_by_shared<true>(sum, x[k], state + k * 16 * 128, 1);
            sm90::wgmma_commit();
            sm90::wgmma_wait<1>();
            out.pin();
            uint32_t d_y[kP / 16][4];
            X::read(stage(i), row, lane, d_y);
            float enters[2];
            dot(out, d_y, enters);
            __syncwarp();
            if (lane == 0) release(i);
            float* to = args.enters +
                        (static_cast<int64_t>(of.slice) * args.batch * args.chunks * args.heads +
                         of.head_row(args, i)) *
                            kChunk +
                        row + lane / 4;
            enters[0] = sum_of_row(enters[0]) * first, enters[1] = sum_of_row(enters[1]) * second;
            if (lane % 4 == 0) to[0] = enters[0], to[8] = enters[1];
            sm90::wgmma_wait<0>();
            sm90::pin(sum);
            sm90::pin(x);
            __syncwarp();
            if (lane == 0) sm90::barrier_expect(free(i), 0);
        }
        sm90::barrier_wait(shared + L::kBFull, 0);
        add_m<true, kColumns>(sum, args, of, b_place(), row, lane);
        write_group<kColumns>(sum, args, of, (args.groups + of.group) * kN + of.slice * kColumns, row, lane);
    }
};

// 384 threads.
template <int kP, int kN>
__global__ void __launch_bounds__(384, 1)
    take_c(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char memory[];
    const CBlock<kP, kN> block(maps, args, memory);
    if (threadIdx.x == 0) block.set_up();
    __syncthreads();
    if (__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0) == 2)
        block.round_states();
    else
        block.accumulate();
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
