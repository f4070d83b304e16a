// The gradient of the states, for the scan backward on compute capability 9.0a: from the last chunk to the
// first,
//   dS_{c-1} = e^{s_last} dS_c + sum_i e^{s_i} dy_i (outer) C_i,
// kept as bf16 for every chunk.
#pragma once

#include "kernels/cuda/ssd_backward_tiles.cuh"

namespace minipuzzle::cuda::ssd_backward {

// A block takes up to 128 columns of the state, a warp 16 of them and half the rows.
template <int kP, int kN, int kHowMany>
struct StatesLayout {
    using X = XTiles<kP>;
    static constexpr int kColumns = kN < 128 ? kN : 128, kBlocks = kColumns / 64;
    static constexpr int kColumnWarps = kColumns / 16, kWarps = 2 * kColumnWarps, kThreads = kWarps * 32;
    static constexpr int kTiles = (kP / 16 + 1) / 2;  // of 16 rows a warp has at most
    static constexpr int kStages = kHowMany;
    static constexpr int kC = X::kBytes, kStageBytes = kC + kBlocks * kBlockBytes;
    static constexpr int kSteps = kStages * kStageBytes;
    static constexpr int kBarriers = kSteps + kStages * kRowBytes;
    static constexpr int kCounters = kBarriers + kStages * 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448);
};

template <int kP, int kN, int kHowMany>
struct StatesWarp {
    using L = StatesLayout<kP, kN, kHowMany>;
    using X = XTiles<kP>;
    const Maps& maps;
    const Arguments& args;
    unsigned char* memory;
    uint32_t shared;
    int sequence, head, slice, warp_column, first_tile, tiles, lane;

    __device__ StatesWarp(const Maps& of_maps, const Arguments& of_args, unsigned char* of_memory)
        : maps(of_maps), args(of_args), memory(of_memory), shared(sm90::shared_address(of_memory)) {
        slice = blockIdx.x % args.column_slices, head = blockIdx.x / args.column_slices % args.heads;
        sequence = blockIdx.x / args.column_slices / args.heads;
        const int warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        warp_column = warp % L::kColumnWarps * 16;
        first_tile = warp / L::kColumnWarps * L::kTiles;
        tiles = first_tile == 0 ? L::kTiles : kP / 16 - L::kTiles;
    }
    // Blocks of 16 rows, in each two rows a lane: f(tile, half).
    template <class F>
    __device__ void each(const F& f) const {
#pragma unroll
        for (int m = 0; m < L::kTiles; ++m)
            if (m < tiles) f(m, 0), f(m, 1);
    }
    // Where four neighbours of a lane lie in a [P, N] matrix: of its accumulators a lane keeps one tile of 8
    // columns and gives the other to its neighbour, so that each holds four in a row.
    __device__ int offset(int m, int half) const {
        const int row = (first_tile + m) * 16 + lane / 4 + 8 * half;
        return row * kN + slice * L::kColumns + warp_column + lane % 2 * 8 + lane % 4 / 2 * 4;
    }
    __device__ float4 exchange(const float (&sum)[2][4], int half) const {
        const bool odd = lane % 2;
        const float a0 = sum[0][2 * half], a1 = sum[0][2 * half + 1];
        const float b0 = sum[1][2 * half], b1 = sum[1][2 * half + 1];
        const float other0 = __shfl_xor_sync(~0u, odd ? a0 : b0, 1);
        const float other1 = __shfl_xor_sync(~0u, odd ? a1 : b1, 1);
        return odd ? float4{other0, other1, b0, b1} : float4{a0, a1, other0, other1};
    }
    __device__ void exchange_back(float4 value, float (&sum)[2][4], int half) const {
        const bool odd = lane % 2;
        const float other0 = __shfl_xor_sync(~0u, odd ? value.x : value.z, 1);
        const float other1 = __shfl_xor_sync(~0u, odd ? value.y : value.w, 1);
        sum[0][2 * half] = odd ? other0 : value.x, sum[0][2 * half + 1] = odd ? other1 : value.y;
        sum[1][2 * half] = odd ? value.z : other0, sum[1][2 * half + 1] = odd ? value.w : other1;
    }
    __device__ int64_t row_of(int chunk) const {
        return (static_cast<int64_t>(sequence) * args.chunks + chunk) * args.heads + head;
    }
    __device__ int64_t of_head() const {
        return (static_cast<int64_t>(sequence) * args.heads + head) * (kP * kN);
    }

    __device__ uint32_t full(int i) const { return shared + L::kBarriers + i % L::kStages * 8; }
    __device__ uint32_t stage(int i) const { return shared + i % L::kStages * L::kStageBytes; }
    // Starts the copies of the i-th chunk from the end.
    __device__ void load(int i) const {
        const int chunk = args.chunks - 1 - i, row = chunk * kChunk, group = head / args.heads_per_group;
        sm90::barrier_expect(full(i), L::kStageBytes + kRowBytes);
        X::load(stage(i), maps.d_y, maps.d_y_rest, full(i), row, head, sequence);
        for (int block = 0; block < L::kBlocks; ++block)
            sm90::copy_box_in(stage(i) + L::kC + block * kBlockBytes, maps.bc, full(i), 0, row,
                              group * (kN / 64) + slice * L::kBlocks + block, 1, sequence);
        const int64_t steps = (static_cast<int64_t>(sequence) * args.heads + head) * args.chunks + chunk;
        sm90::copy_in(shared + L::kSteps + i % L::kStages * kRowBytes,
                      args.steps + (steps * kStepRows + kEntry) * kChunk, kRowBytes, full(i));
    }

    // Writes dS leaving a chunk.
    __device__ void write_state(const float (&sum)[L::kTiles][2][4], int chunk) const {
        __nv_bfloat16* d_states = args.d_states + row_of(chunk) * (kP * kN);
        each([&](int m, int half) {
            const float4 d = exchange(sum[m], half);
            *reinterpret_cast<uint2*>(d_states + offset(m, half)) =
                make_uint2(pack_bf16(d.x, d.y), pack_bf16(d.z, d.w));
        });
    }
    // sum += sum_i dy_i (outer) e^{s_i} C_i
    __device__ void add_chunk(float (&sum)[L::kTiles][2][4], uint32_t place, const float* entry) const {
        const uint32_t c_at =
            place + L::kC + warp_column / 64 * kBlockBytes +
            sm90::swizzled<sm90::Swizzle::b128>(lane % 16, warp_column % 64 / 8 + lane / 16);
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
            const int row = 16 * k + lane % 8 + lane / 16 * 8;
#pragma unroll
            for (int m = 0; m < L::kTiles; ++m) {
                if (m >= tiles) continue;
                uint32_t d_y[4];
                sm90::load_matrices_transposed(d_y,
                                               X::piece(place, row, 2 * (first_tile + m) + lane / 8 % 2));
                multiply_add(sum[m][0], d_y, c[0], c[1]);
                multiply_add(sum[m][1], d_y, c[2], c[3]);
            }
        }
    }
    // The i-th chunk from the end.
    __device__ void step(int i, float (&sum)[L::kTiles][2][4]) const {
        write_state(sum, args.chunks - 1 - i);
        sm90::barrier_wait(full(i), i / L::kStages & 1);
        const auto* entry = reinterpret_cast<const float*>(memory + L::kSteps + i % L::kStages * kRowBytes);
        const float carry = entry[kChunk - 1];
#pragma unroll
        for (auto& tile : sum)
#pragma unroll
            for (auto& columns : tile)
#pragma unroll
                for (float& value : columns) value *= carry;
        add_chunk(sum, stage(i), entry);
        // The warp that is last to have read a stage refills it.
        __syncwarp();
        if (lane == 0) {
            const uint32_t before = sm90::count_up(shared + L::kCounters + i % L::kStages * 4);
            if (before % L::kWarps == L::kWarps - 1 && i + L::kStages < args.chunks) load(i + L::kStages);
        }
        __syncwarp();
    }
};

// grid B * H * column slices.
template <int kP, int kN, int kHowMany>
__global__ void __launch_bounds__((StatesLayout<kP, kN, kHowMany>::kThreads), 1)
    walk_states(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = StatesLayout<kP, kN, kHowMany>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const StatesWarp<kP, kN, kHowMany> w(maps, args, memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(w.full(i), 1);
            store_shared(w.shared + L::kCounters + 4 * i, 0u);
        }
        sm90::fence_barrier_init();
        for (int i = 0; i < L::kStages && i < args.chunks; ++i) w.load(i);
    }
    float sum[L::kTiles][2][4] = {};
    if (args.d_final)
        w.each([&](int m, int half) {
            w.exchange_back(*reinterpret_cast<const float4*>(args.d_final + w.of_head() + w.offset(m, half)),
                            sum[m], half);
        });
    __syncthreads();
    for (int i = 0; i < args.chunks; ++i) w.step(i, sum);
    if (args.d_initial)
        w.each([&](int m, int half) {
            *reinterpret_cast<float4*>(args.d_initial + w.of_head() + w.offset(m, half)) =
                w.exchange(sum[m], half);
        });
#endif
}

}  // namespace minipuzzle::cuda::ssd_backward
