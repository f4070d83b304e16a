// Tiles in shared memory and their copies, as the kernels of the scan backward share them.
#pragma once

#include "kernels/cuda/ssd_backward_steps.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace minipuzzle::cuda::ssd_backward {

// Tensor maps; boxes of 128 tokens (64 where stored).
struct Maps {
    CUtensorMap x, x_rest, d_y, d_y_rest;  // one head: its first 64 columns, and the rest where P is 80
    CUtensorMap d_x, d_x_rest;
    CUtensorMap bc;        // 64 columns of B or of C
    CUtensorMap d_states;  // P rows of 64 columns
    CUtensorMap states;    // P rows of 32 columns of float32
};

// 64 columns of 128 tokens of B or C.
inline constexpr int kBlockBytes = kChunk * 128;

// 128 tokens of one head's x or dy: a tile of up to 64 columns and one of the 16 beyond them.
template <int kP>
struct XTiles {
    static constexpr int kMain = kP < 64 ? kP : 64, kRest = kP - kMain;
    static constexpr sm90::Swizzle kSwizzle = kMain == 64 ? sm90::Swizzle::b128 : sm90::Swizzle::b64;
    static constexpr int kMainBytes = kChunk * kMain * 2, kBytes = kChunk * kP * 2;
    static_assert(kBytes % 1024 == 0 && (kRest == 0 || kRest == 16));

    // Where eight columns of a row lie.
    __device__ static uint32_t piece(uint32_t tiles, int row, int piece) {
        if (kRest > 0 && piece >= kMain / 8)
            return tiles + kMainBytes + sm90::swizzled<sm90::Swizzle::b32>(row, piece - kMain / 8);
        return tiles + sm90::swizzled<kSwizzle>(row, piece);
    }
    __device__ static void load(uint32_t to, const CUtensorMap& main, const CUtensorMap& rest,
                                uint32_t barrier, int token, int head, int sequence) {
        sm90::copy_box_in(to, main, barrier, 0, token, head, sequence);
        if constexpr (kRest > 0) sm90::copy_box_in(to + kMainBytes, rest, barrier, 0, token, head, sequence);
    }
    // The rows from `row` on as an operand contiguous along the channels: K major, K step k of 16 channels.
    __device__ static sm90::Descriptor along_channels(uint32_t tiles, int row, int k) {
        if (kRest > 0 && k == kMain / 16)
            return sm90::descriptor<sm90::Swizzle::b32>(tiles + kMainBytes + row * 32, 0);
        return sm90::descriptor<kSwizzle>(tiles + row * 2 * kMain, 0) + k * 32;
    }
    // 16 rows from `row` on as an operand whose K are the rows; its first columns, and the rest.
    __device__ static sm90::Descriptor main_rows(uint32_t tiles, int row) {
        return sm90::descriptor<kSwizzle>(tiles, 0) + row * 2 * kMain;
    }
    __device__ static sm90::Descriptor rest_rows(uint32_t tiles, int row) {
        return sm90::descriptor<sm90::Swizzle::b32>(tiles + kMainBytes, 0) + row * 32;
    }
    // The warp's 16 rows from `row` on in the layout of A, which is that of an accumulator's 16 columns.
    __device__ static void read(uint32_t tiles, int row, int lane, uint32_t (&x)[kP / 16][4]) {
        const uint32_t at = tiles + sm90::swizzled<kSwizzle>(row + lane % 16, lane / 16);
#pragma unroll
        for (int k = 0; k < kMain / 16; ++k) sm90::load_matrices(x[k], at ^ (k << 5));
        if constexpr (kRest > 0)
            sm90::load_matrices(x[kMain / 16], piece(tiles, row + lane % 16, kMain / 8 + lane / 16));
    }
    __device__ static void write(uint32_t tiles, int row, int lane, const uint32_t (&x)[kP / 16][4]) {
#pragma unroll
        for (int k = 0; k < kP / 16; ++k)
            sm90::store_matrices(piece(tiles, row + lane % 16, 2 * k + lane / 16), x[k][0], x[k][1], x[k][2],
                                 x[k][3]);
    }
};

// The product of 64 tokens with channels, as accumulators: [64, P] in two parts like x's tiles.
template <int kP>
struct Channels {
    static constexpr int kMain = XTiles<kP>::kMain, kRest = kP - kMain;
    float main[kMain / 2];
    float rest[8];

    __device__ void pin() {
        sm90::pin(main);
        if constexpr (kRest > 0) sm90::pin(rest);
    }
    // The eight values of 16 columns: row g's pair, row g + 8's, and the same eight columns on.
    __device__ float* columns(int k) { return kRest > 0 && k == kMain / 16 ? rest : main + 8 * k; }

    // this = tokens matrix^T for `tokens`, 64 rows of blocks of 64 columns that lie kBlockBytes apart, and a
    // matrix [P, kColumns] in blocks of 64 columns. Asynchronous.
    template <int kColumns>
    __device__ void start(uint32_t tokens, uint32_t matrix) {
        constexpr auto kWide = sm90::Swizzle::b128;
        const sm90::Descriptor a = sm90::descriptor<kWide>(tokens, 0), b = sm90::descriptor<kWide>(matrix, 0);
#pragma unroll
        for (int k = 0; k < kColumns / 16; ++k) {
            const sm90::Descriptor of_a = a + (k / 4 * kBlockBytes + k % 4 * 32),
                                   of_b = b + (k / 4 * (kP * 128) + k % 4 * 32);
            sm90::Wgmma<kMain>::shared(main, of_a, of_b, k > 0);
            if constexpr (kRest > 0) sm90::Wgmma<kRest>::shared(rest, of_a, of_b + kMain * 128, k > 0);
        }
    }
    // this += weights x for 16 kSteps rows of x from `row` on. Asynchronous.
    template <int kSteps>
    __device__ void add(const uint32_t (&weights)[kSteps][4], uint32_t x_tiles, int row) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
            sm90::Wgmma<kMain>::template registers_by_shared<true>(
                main, weights[k], XTiles<kP>::main_rows(x_tiles, row + 16 * k), 1);
            if constexpr (kRest > 0)
                sm90::Wgmma<kRest>::template registers_by_shared<true>(
                    rest, weights[k], XTiles<kP>::rest_rows(x_tiles, row + 16 * k), 1);
        }
    }
};

// x . u by row: of rows g and g + 8, this lane's part.
template <int kP>
__device__ inline void dot(Channels<kP>& u, const uint32_t (&x)[kP / 16][4], float (&sums)[2]) {
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int k = 0; k < kP / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* pair = u.columns(k) + 2 * i;
            float& sum = sums[i % 2];
            sum = fmaf(low_value(x[k][i]), pair[0], fmaf(high_value(x[k][i]), pair[1], sum));
        }
}

// The sum over the four lanes that hold one row of an accumulator.
__device__ inline float sum_of_row(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

}  // namespace minipuzzle::cuda::ssd_backward
