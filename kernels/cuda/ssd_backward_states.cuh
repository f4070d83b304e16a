// The gradient of the states, for the scan backward on compute capability 9.0a: from the last chunk to the
// first,
//   dS_{c-1} = e^{s_last} dS_c + sum_i e^{s_i} dy_i (outer) C_i,
// kept as bf16 for every chunk, beside the entering states as bf16 and the parts of e^{s_last} <S_in, dS>.
#pragma once

#include "kernels/cuda/ssd_backward_tiles.cuh"

namespace minipuzzle::cuda::ssd_backward {

template <int kP>
struct StatesLayout {
    using X = XTiles<kP>;
    static constexpr int kStages = 2;
    static constexpr int kC = X::kBytes, kStageBytes = kC + kBlockBytes;
    static constexpr int kSteps = kStages * kStageBytes;
    static constexpr int kBarriers = kSteps + kStages * kRowBytes;
    static constexpr int kBytes = kBarriers + kStages * 8;
};

// One block: one head of one sequence, 64 columns of the state, each warp 16 of them. grid B * H * (N / 64).
template <int kP, int kN>
__global__ void __launch_bounds__(128)
    walk_states(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = StatesLayout<kP>;
    using X = XTiles<kP>;
    constexpr auto kWide = sm90::Swizzle::b128;
    constexpr int kRows = kP / 16;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = sm90::shared_address(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int column_block = blockIdx.x % (kN / 64), head = blockIdx.x / (kN / 64) % args.heads;
    const int sequence = blockIdx.x / (kN / 64) / args.heads;
    const int group = head / args.heads_per_group;

    const auto load = [&](int i) {  // the i-th chunk from the end
        const int chunk = args.chunks - 1 - i, row = chunk * kChunk;
        const uint32_t to = shared + i % L::kStages * L::kStageBytes,
                       barrier = shared + L::kBarriers + i % L::kStages * 8;
        sm90::barrier_expect(barrier, L::kStageBytes + kRowBytes);
        X::load(to, maps.d_y, maps.d_y_rest, barrier, row, head, sequence);
        sm90::copy_box_in(to + L::kC, maps.bc, barrier, 0, row, group * (kN / 64) + column_block, 1,
                          sequence);
        const int64_t of_head = static_cast<int64_t>(sequence) * args.heads + head;
        sm90::copy_in(shared + L::kSteps + i % L::kStages * kRowBytes,
                      args.steps + ((of_head * args.chunks + chunk) * kStepRows + kEntry) * kChunk, kRowBytes,
                      barrier);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::kStages; ++i) sm90::barrier_init(shared + L::kBarriers + i * 8, 1);
        sm90::fence_barrier_init();
        for (int i = 0; i < L::kStages && i < args.chunks; ++i) load(i);
    }
    __syncthreads();

    // Where this lane's first two elements lie in a [P, N] matrix.
    const int at = lane / 4 * kN + column_block * 64 + warp * 16 + lane % 4 * 2;
    const auto offset = [&](int m, int n, int half) { return at + (16 * m + 8 * half) * kN + 8 * n; };
    const auto matrix = [&](int chunk) {
        return ((static_cast<int64_t>(sequence) * args.chunks + chunk) * args.heads + head) * (kP * kN);
    };
    const int64_t of_head = (static_cast<int64_t>(sequence) * args.heads + head) * (kP * kN);

    float sum[kRows][2][4];
    float2 state[kRows][2][2];  // entering the chunk
    const auto read_state = [&](int chunk) {
        const float* from = args.chunk_states + matrix(chunk);
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    state[m][n][half] = __ldcs(reinterpret_cast<const float2*>(from + offset(m, n, half)));
    };
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float2 value = {0.f, 0.f};
                if (args.d_final)
                    value = *reinterpret_cast<const float2*>(args.d_final + of_head + offset(m, n, half));
                sum[m][n][2 * half] = value.x, sum[m][n][2 * half + 1] = value.y;
            }
    read_state(args.chunks - 1);

    for (int i = 0; i < args.chunks; ++i) {
        const int chunk = args.chunks - 1 - i;
        const uint32_t stage = shared + i % L::kStages * L::kStageBytes;
        const auto* entry = reinterpret_cast<const float*>(memory + L::kSteps + i % L::kStages * kRowBytes);
        float pass = 0;
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float2 s = state[m][n][half];
                    const float d0 = sum[m][n][2 * half], d1 = sum[m][n][2 * half + 1];
                    pass = fmaf(s.x, d0, fmaf(s.y, d1, pass));
                    const int64_t to = matrix(chunk) + offset(m, n, half);
                    *reinterpret_cast<uint32_t*>(args.d_states + to) = pack_bf16(d0, d1);
                    *reinterpret_cast<uint32_t*>(args.states + to) = pack_bf16(s.x, s.y);
                }
        if (chunk > 0) read_state(chunk - 1);
        pass = sum_of_warp(pass);

        sm90::barrier_wait(shared + L::kBarriers + i % L::kStages * 8, i / L::kStages & 1);
        const float carry = entry[kChunk - 1];
        if (lane == 0)
            args.passes[((static_cast<int64_t>(sequence) * args.chunks + chunk) * args.heads + head) *
                            args.pass_parts +
                        column_block * 4 + warp] = carry * pass;
#pragma unroll
        for (auto& row : sum)
#pragma unroll
            for (auto& column : row)
#pragma unroll
                for (float& value : column) value *= carry;
        const uint32_t c_at = stage + L::kC + sm90::swizzled<kWide>(lane % 16, 2 * warp + lane / 16);
#pragma unroll
        for (int k = 0; k < kChunk / 16; ++k) {
            uint32_t c[4];
            sm90::load_matrices_transposed(c, c_at + k * 16 * 128);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 e = *reinterpret_cast<const float2*>(entry + 16 * k + 8 * half + lane % 4 * 2);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    uint32_t& pair = c[2 * n + half];
                    pair = pack_bf16(low_value(pair) * e.x, high_value(pair) * e.y);
                }
            }
#pragma unroll
            for (int m = 0; m < kRows; ++m) {
                uint32_t d_y[4];
                const int row = 16 * k + lane % 8 + lane / 16 * 8;
                sm90::load_matrices_transposed(d_y, X::piece(stage, row, 2 * m + lane / 8 % 2));
                multiply_add(sum[m][0], d_y, c[0], c[1]);
                multiply_add(sum[m][1], d_y, c[2], c[3]);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0 && i + L::kStages < args.chunks) load(i + L::kStages);
    }
    if (args.d_initial)
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    *reinterpret_cast<float2*>(args.d_initial + of_head + offset(m, n, half)) = {
                        sum[m][n][2 * half], sum[m][n][2 * half + 1]};
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
