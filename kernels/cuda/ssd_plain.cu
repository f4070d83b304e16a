// The chunked algorithm of Dao & Gu 2024 ("Transformers are SSMs", section 6), one block per (sequence, head,
// slice of its channels), walking steps of up to 64 tokens. With s_i the running sum of delta A inside a
// step, up to and with token i,
//   y_i = e^{s_i} S C_i + sum_{j<=i} M_ij x_j + D x_i,   M_ij = (C_i . B_j) e^{s_i - s_j} delta_j
//   S  <- e^{s_last} S + sum_j (e^{s_last - s_j} delta_j x_j) (outer) B_j.
// A warp owns 16 channels: its part of S [16, N] lives in float32 registers from the first token to the last,
// in the layout of a product's result. y is formed transposed (channels by tokens), so that S, rounded to
// bf16, is the left operand as it lies, and so is x^T, read transposed from shared memory. M is formed by all
// warps together and goes through shared memory. Rounded to bf16 as operands only: M, e^{..} delta x, and S.
//
// Exponents of differences are at most 0: the running sums are kept as high + low, so that a small difference
// of large sums keeps its digits, and clamped. Above the diagonal, and between documents, M is set to zero.
//
// Ideal work at the 8B shape (H 128, P 64, N 128, G 8) per token: bytes 2 * (2 * 8192 + 2 * 1024 + 128) = 37
// KB; FLOPs 4HPN + 2 * 64 * H (P + N) / 2 (M is formed per head; its upper triangle is skipped) = 5.8 M.
//
// A state of more than 256 is cut into parts of 256: y is linear in C_i . B_j, hence a sum over parts, which
// are scanned one after another into a float32 sum.
#include <algorithm>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ssd_plain.h"

namespace minipuzzle::cuda {
namespace {

constexpr int kStep = 64;                 // tokens of a step
constexpr int kLargestState = 256;        // of one part
constexpr int kMPitch = 2 * (kStep + 8);  // bytes of a row of M in shared memory

struct ScanParams {
    const uint16_t *xbc, *zxbcdt;
    const float *dt_bias, *a_log, *d;
    const int32_t* document;     // null: none
    const float* initial_state;  // null: zero
    uint16_t* y;
    float *final_state, *chunk_states;  // null: not wanted
    float* partial_y;                   // [B, T, inner], the sum over parts of the state; null: one part
    int time, heads, head_dim, state, heads_per_group;
    int64_t head_state;                                            // elements of one head's state
    int64_t conv_channels, projection, inner, b_offset, c_offset;  // b and c within a row of xbc
    int chunk, chunks;                                             // of chunk_states, else unused
    float dt_min, dt_max;
    int slices, width;  // of a head's channels; the width is a multiple of 16
    int part_begin, part_size;
    bool first_part, last_part;
    bool x_aligned, bc_aligned, y_aligned;  // rows begin on 16 bytes
};

struct alignas(16) TokenValues {
    float high, low;  // s_i log2(e) = high + low
    float delta;      // 0 beyond the end
    int32_t document;
};

// Step sizes and decays of one step's tokens.
struct StepValues {
    TokenValues tokens[kStep];
    alignas(16) float from_entry[kStep];  // e^{s_i}; 0 where the entering state is another document's
    alignas(
        16) float to_exit[kStep];  // e^{s_last - s_j} delta_j; 0 for a document other than the last token's
    float carry;                   // of the state across the step; 0 where the document changes
    bool opens;                    // the step's first token opens a document
    bool mixed;                    // the step's tokens are of several documents
};

// Rows of B and C are padded by 16 bytes, so that ldmatrix meets eight different banks. A block takes up to
// kWidest channels, 16 a warp. kRegisters a thread let as many blocks onto a multiprocessor as shared memory
// does: of 32 channels eight or (state 64) six, of 64 two. Of 80 channels and a state of 128 only one fits: a
// quarter of the multiprocessor holds two warps of 200 registers.
template <int kState>
struct Layout {
    static constexpr int kWidest = kState <= 64 ? 128 : kState <= 128 ? 96 : 64;
    static constexpr int kRegisters = kState <= 32 ? 128 : kState <= 64 ? 168 : kState <= 128 ? 200 : 255;
    static constexpr int kPitch = 2 * (kState + 8);
    static constexpr int kRowsBytes = kStep * kPitch;  // of B, and of C
};

__host__ __device__ constexpr int x_pitch(int width) { return 2 * (width + 8); }

template <int kState>
__host__ __device__ constexpr int stage_bytes(int width) {
    return 2 * Layout<kState>::kRowsBytes + kStep * x_pitch(width);
}
template <int kState>
constexpr int shared_bytes(int width, int stages) {
    return stages * stage_bytes<kState>(width) + kStep * kMPitch + 2 * static_cast<int>(sizeof(StepValues));
}

// A source of rows of bf16 values: `rows` of them with `columns` values exist, what lies beyond is taken as
// zero.
struct Rows {
    const uint16_t* from;
    int64_t pitch;
    int rows, columns;
    bool aligned;  // rows begin on 16 bytes
};

// kStep rows of `pieces` pieces (16 bytes) to shared memory. `pieces` divides the number of threads: a thread
// keeps its piece and goes down the rows.
__device__ __forceinline__ void load_rows(uint32_t to, int to_pitch, const Rows& source, int pieces) {
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int first_row = thread / pieces, piece = thread % pieces, rows_apart = threads / pieces;
    const int count = source.columns - piece * 8;
    const uint16_t* from = source.from + first_row * source.pitch + piece * 8;
    const int64_t from_step = rows_apart * source.pitch;
    to += first_row * to_pitch + piece * 16;
    if (source.aligned) {
#pragma unroll 2
        for (int row = first_row; row < kStep;
             row += rows_apart, from += from_step, to += rows_apart * to_pitch)
            copy_async(to, from, row < source.rows && count > 0);
    } else {
#pragma unroll 1
        for (int row = first_row; row < kStep;
             row += rows_apart, from += from_step, to += rows_apart * to_pitch)
            store_shared(to, gather_16(from, row < source.rows ? count : 0));
    }
}

// What the first warp holds of a step's tokens before they are turned into StepValues: two tokens per lane.
struct RawSteps {
    uint32_t dt;  // two bf16
    int32_t document[2];
};

// The block's place: which sequence, head and channels.
struct Place {
    int64_t sequence;
    int head, first_channel, channels;  // channels: those that exist, at most p.width
    __device__ explicit Place(const ScanParams& p) {
        const int slice = blockIdx.x % p.slices, rest = blockIdx.x / p.slices;
        head = rest % p.heads;
        sequence = rest / p.heads;
        first_channel = slice * p.width;
        channels = min(p.width, p.head_dim - first_channel);
    }
    __device__ int64_t first_row(const ScanParams& p) const { return sequence * p.time; }
};

__device__ __forceinline__ RawSteps load_raw_steps(const ScanParams& p, const Place& place, int begin,
                                                   int count) {
    RawSteps raw{};
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        // Tokens beyond the end repeat the last one's document.
        const int64_t token = place.first_row(p) + begin + min(2 * lane + e, count - 1);
        raw.dt |= static_cast<uint32_t>(p.zxbcdt[(token + 1) * p.projection - p.heads + place.head])
                  << (16 * e);
        raw.document[e] = p.document ? p.document[token] : 0;
    }
    return raw;
}

// One warp: step sizes, running sums and decays. `before` is null for the row's first step, whose document
// the initial state belongs to.
__device__ void write_step_values(StepValues& to, const StepValues* before, const ScanParams& p, int head,
                                  const RawSteps& raw, int count) {
    const int lane = threadIdx.x % kWarp;
    const float bias = p.dt_bias[head], a = -expf(p.a_log[head]);
    float delta[2];
    double sum[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const float v = (e == 0 ? low_value(raw.dt) : high_value(raw.dt)) + bias;
        const float softplus = v > 20.0f ? v : log1pf(expf(v));
        delta[e] = 2 * lane + e < count ? fminf(fmaxf(softplus, p.dt_min), p.dt_max) : 0.0f;
        // Beyond -1e6 a decay is 0 whatever follows; the bound keeps differences finite.
        sum[e] = fmax(static_cast<double>(delta[e]) * static_cast<double>(a) * 1.4426950408889634, -1e6);
    }
    sum[1] += sum[0];
    double so_far = sum[1];
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const double other = __shfl_up_sync(kAllLanes, so_far, distance);
        if (lane >= distance) so_far += other;
    }
    const double last = __shfl_sync(kAllLanes, so_far, kWarp - 1);
    const int32_t first_document = __shfl_sync(kAllLanes, raw.document[0], 0);
    const int32_t last_document = __shfl_sync(kAllLanes, raw.document[1], kWarp - 1);
    const int32_t entry_document = before ? before->tokens[kStep - 1].document : first_document;
    so_far -= sum[1];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const int i = 2 * lane + e;
        const double s = so_far + sum[e];
        const float high = static_cast<float>(s);
        to.tokens[i] = {high, static_cast<float>(s - static_cast<double>(high)), delta[e], raw.document[e]};
        const float entry = exp2_fast(fminf(high, 0.0f));
        const float exit = exp2_fast(fminf(static_cast<float>(last - s), 0.0f)) * delta[e];
        to.from_entry[i] = raw.document[e] == entry_document ? entry : 0.0f;
        to.to_exit[i] = raw.document[e] == last_document ? exit : 0.0f;
    }
    if (lane == 0) {
        to.carry = last_document == entry_document ? exp2_fast(fminf(static_cast<float>(last), 0.0f)) : 0.0f;
        to.opens = first_document != entry_document;
        to.mixed = first_document != last_document;
    }
}

// The 16 x 16 blocks of M on and below the diagonal, row by row: which block is the n-th.
constexpr int kBlocksOfM = (kStep / 16) * (kStep / 16 + 1) / 2;
struct BlockOfM {
    int row, column;
    __device__ explicit BlockOfM(int n)
        : row(n < 1   ? 0
              : n < 3 ? 1
              : n < 6 ? 2
                      : 3),
          column(n - row * (row + 1) / 2) {}
};

// One block of M, rounded to bf16, to shared memory. Odd and even steps along the state are summed apart:
// four products are under way at a time.
template <int kState>
__device__ __forceinline__ void form_block_of_m(uint32_t m, uint32_t b, uint32_t c, const StepValues& steps,
                                                BlockOfM block) {
    constexpr int kPitch = Layout<kState>::kPitch;
    const int lane = threadIdx.x % kWarp;
    const LaneBlock c_lane = lane_block_by_rows(lane), b_lane = lane_block_by_columns(lane);
    const uint32_t c_row = c + (block.row * 16 + c_lane.row) * kPitch + c_lane.piece * 16;
    const uint32_t b_row = b + (block.column * 16 + b_lane.row) * kPitch + b_lane.piece * 16;
    float cb[2][2][4] = {};
#pragma unroll
    for (int k = 0; k < kState / 16; ++k) {
        uint32_t left[4], right[4];
        load_matrices(left, c_row + k * 32);
        load_matrices(right, b_row + k * 32);
        multiply_add(cb[k % 2][0], left, right[0], right[1]);
        multiply_add(cb[k % 2][1], left, right[2], right[3]);
    }
    const bool diagonal = block.row == block.column, masked = diagonal || steps.mixed;
    const int first_i = block.row * 16 + lane / 4;
    const TokenValues rows[2] = {steps.tokens[first_i], steps.tokens[first_i + 8]};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const int first_j = block.column * 16 + n * 8 + lane % 4 * 2;
        const TokenValues columns[2] = {steps.tokens[first_j], steps.tokens[first_j + 1]};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int i = first_i + half * 8;
            float value[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const TokenValues &row = rows[half], &column = columns[e];
                const float difference = (row.high - column.high) + (row.low - column.low);
                const float weight = exp2_fast(fminf(difference, 0.0f)) * column.delta;
                value[e] = (cb[0][n][2 * half + e] + cb[1][n][2 * half + e]) * weight;
                if (masked && (first_j + e > i || row.document != column.document)) value[e] = 0.0f;
            }
            store_shared(m + i * kMPitch + first_j * 2, pack_bf16(value[0], value[1]));
        }
    }
}

// A warp's part of the state: channels g and g + 8 by all N, as results of products lie.
template <int kState>
using State = float[kState / 8][4];

// Calls use(state element, its offset inside the head's [P, N]) for every element that exists. Channels count
// from the warp's first, `channel`.
template <int kState, class Use>
__device__ __forceinline__ void for_each_element(State<kState>& state, const ScanParams& p, int channel,
                                                 Use use) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = channel + lane / 4 + 8 * half;
        if (row >= p.head_dim) continue;
        const int64_t row_offset = static_cast<int64_t>(row) * p.state + p.part_begin;
#pragma unroll
        for (int n = 0; n < kState / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int column = n * 8 + lane % 4 * 2 + e;
                if (column < p.part_size) use(state[n][2 * half + e], row_offset + column);
            }
    }
}

// y^T = S C^T, scaled per token by from_entry.
template <int kState>
__device__ __forceinline__ void start_y(float (&y)[kStep / 8][4], const State<kState>& state, uint32_t c,
                                        const StepValues& steps) {
    constexpr int kPitch = Layout<kState>::kPitch;
    const int lane = threadIdx.x % kWarp;
    const LaneBlock c_lane = lane_block_by_columns(lane);
    const uint32_t c_row = c + c_lane.row * kPitch + c_lane.piece * 16;
#pragma unroll
    for (int k = 0; k < kState / 16; ++k) {
        const uint32_t left[4] = {pack_bf16(state[2 * k][0], state[2 * k][1]),
                                  pack_bf16(state[2 * k][2], state[2 * k][3]),
                                  pack_bf16(state[2 * k + 1][0], state[2 * k + 1][1]),
                                  pack_bf16(state[2 * k + 1][2], state[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < kStep / 16; ++n) {
            uint32_t right[4];
            load_matrices(right, c_row + n * 16 * kPitch + k * 32);
            multiply_add(y[2 * n], left, right[0], right[1]);
            multiply_add(y[2 * n + 1], left, right[2], right[3]);
        }
    }
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
        const float2 decay = *reinterpret_cast<const float2*>(&steps.from_entry[n * 8 + lane % 4 * 2]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            y[n][2 * half] = decay.x == 0.0f ? 0.0f : y[n][2 * half] * decay.x;
            y[n][2 * half + 1] = decay.y == 0.0f ? 0.0f : y[n][2 * half + 1] * decay.y;
        }
    }
}

// y^T += x^T M^T; block (k, n) of M^T is above the diagonal for k > n.
__device__ __forceinline__ void add_within_step(float (&y)[kStep / 8][4], const uint32_t (&x)[kStep / 16][4],
                                                uint32_t m) {
    const LaneBlock lane = lane_block_by_columns(threadIdx.x % kWarp);
    const uint32_t row = m + lane.row * kMPitch + lane.piece * 16;
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k)
#pragma unroll
        for (int n = k; n < kStep / 16; ++n) {
            uint32_t right[4];
            load_matrices(right, row + n * 16 * kMPitch + k * 32);
            multiply_add(y[2 * n], x[k], right[0], right[1]);
            multiply_add(y[2 * n + 1], x[k], right[2], right[3]);
        }
}

// S <- carry S + x'^T B with x' = to_exit x.
template <int kState>
__device__ __forceinline__ void advance_state(State<kState>& state, const uint32_t (&x)[kStep / 16][4],
                                              uint32_t b, const StepValues& steps) {
    constexpr int kPitch = Layout<kState>::kPitch;
    const int lane = threadIdx.x % kWarp;
    const LaneBlock b_lane = lane_block_by_rows(lane);
    const uint32_t b_row = b + b_lane.row * kPitch + b_lane.piece * 16;
    const float carry = steps.carry;
#pragma unroll
    for (int n = 0; n < kState / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) state[n][e] = carry == 0.0f ? 0.0f : state[n][e] * carry;
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
        uint32_t left[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int j = k * 16 + lane % 4 * 2 + r / 2 * 8;
            const float2 weight = *reinterpret_cast<const float2*>(&steps.to_exit[j]);
            left[r] = pack_bf16(low_value(x[k][r]) * weight.x, high_value(x[k][r]) * weight.y);
        }
#pragma unroll
        for (int n = 0; n < kState / 16; ++n) {
            uint32_t right[4];
            load_matrices_transposed(right, b_row + k * 16 * kPitch + n * 32);
            multiply_add(state[2 * n], left, right[0], right[1]);
            multiply_add(state[2 * n + 1], left, right[2], right[3]);
        }
    }
}

// y^T += D x^T: the operand x holds just what the lane's results need.
__device__ __forceinline__ void add_skip(float (&y)[kStep / 8][4], const uint32_t (&x)[kStep / 16][4],
                                         float skip) {
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float* pair = &y[2 * k + r / 2][r % 2 * 2];
            pair[0] = fmaf(skip, low_value(x[k][r]), pair[0]);
            pair[1] = fmaf(skip, high_value(x[k][r]), pair[1]);
        }
}

// Rounds and writes the rows out by way of shared memory, where x, now in registers, was (the warp's own
// columns, from `x` on). `y_out` is the warp's first channel of the step's first token.
__device__ __forceinline__ void store_y(const float (&y)[kStep / 8][4], unsigned char* x, int pitch,
                                        uint16_t* y_out, int64_t out_pitch, int count, int channels,
                                        bool aligned) {
    const int lane = threadIdx.x % kWarp;
    unsigned char* place = x + lane % 4 * 2 * pitch + lane / 4 * 2;
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n, place += 8 * pitch)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t pair = pack_bf16(y[n][2 * half], y[n][2 * half + 1]);
            *reinterpret_cast<uint16_t*>(place + half * 16) = static_cast<uint16_t>(pair);
            *reinterpret_cast<uint16_t*>(place + half * 16 + pitch) = static_cast<uint16_t>(pair >> 16);
        }
    __syncwarp();
    if (aligned) {
        const int piece = lane % 2;
        if (piece * 8 >= channels) return;
        const unsigned char* from = x + lane / 2 * pitch + piece * 16;
        uint16_t* to = y_out + lane / 2 * out_pitch + piece * 8;
#pragma unroll
        for (int i = lane / 2, n = 0; n < 4; ++n, i += 16, from += 16 * pitch, to += 16 * out_pitch)
            if (i < count) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
        const int channel = lane % 16;
        if (channel >= channels) return;
#pragma unroll 1
        for (int i = lane / 16; i < count; i += 2)
            y_out[i * out_pitch + channel] = reinterpret_cast<const uint16_t*>(x + i * pitch)[channel];
    }
}

// One part of the state of several: the sum so far is taken up, and left again unless this part is the last.
__device__ void sum_parts(float (&y)[kStep / 8][4], const ScanParams& p, float* sum, int count,
                          int channels) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int i = n * 8 + lane % 4 * 2 + e % 2, channel = lane / 4 + e / 2 * 8;
            if (i >= count || channel >= channels) continue;
            float& place = sum[i * p.inner + channel];
            if (!p.first_part) y[n][e] += place;
            if (!p.last_part) place = y[n][e];
        }
}

// kParts: the state is cut into several parts, this is one. kStages: with two, the next step is loaded beside
// this one.
template <int kState, bool kParts, int kStages>
__global__ void __maxnreg__(Layout<kState>::kRegisters) scan_kernel(const ScanParams p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const Place place(p);
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int pitch = x_pitch(p.width), stage_size = stage_bytes<kState>(p.width);
    unsigned char* m = shared + kStages * stage_size;
    StepValues* step_values = reinterpret_cast<StepValues*>(m + kStep * kMPitch);
    const int group = place.head / p.heads_per_group;
    const int first_of_head = place.head * p.head_dim, first_of_slice = first_of_head + place.first_channel;
    const int channel = place.first_channel + warp * 16;  // the warp's first
    const int channels = p.head_dim - channel;            // from there on; may be <= 0

    const uint16_t* rows = p.xbc + place.first_row(p) * p.conv_channels;
    // A step ends after kStep tokens, at the end, or where a chunk of chunk_states does.
    int chunk = 0, chunk_end = p.chunk_states ? p.chunk : p.time;
    const auto step_count = [&](int begin) {
        return min(kStep, min(p.time, begin < chunk_end ? chunk_end : chunk_end + p.chunk) - begin);
    };
    const auto load_step = [&](int index, int begin, int count) {
        const uint32_t b = shared_address(shared) + index % kStages * stage_size;
        const uint32_t c = b + Layout<kState>::kRowsBytes, x = c + Layout<kState>::kRowsBytes;
        const uint16_t* from = rows + begin * p.conv_channels;
        const int64_t part = static_cast<int64_t>(group) * p.state + p.part_begin;
        load_rows(b, Layout<kState>::kPitch,
                  {from + p.b_offset + part, p.conv_channels, count, p.part_size, p.bc_aligned}, kState / 8);
        load_rows(c, Layout<kState>::kPitch,
                  {from + p.c_offset + part, p.conv_channels, count, p.part_size, p.bc_aligned}, kState / 8);
        load_rows(x, pitch, {from + first_of_slice, p.conv_channels, count, place.channels, p.x_aligned},
                  p.width / 8);
        commit_copies();
    };

    State<kState> state = {};
    if (p.initial_state) {
        const float* from = p.initial_state + (place.sequence * p.heads + place.head) * p.head_state;
        for_each_element<kState>(state, p, channel, [&](float& value, int64_t at) { value = from[at]; });
    }
    int count = p.time > 0 ? step_count(0) : 0;
    if (p.time > 0) load_step(0, 0, count);
    RawSteps raw = {};
    if (warp == 0 && p.time > 0) raw = load_raw_steps(p, place, 0, count);

    for (int begin = 0, index = 0; begin < p.time; ++index) {
        const int next = begin + count, next_count = next < p.time ? step_count(next) : 0;
        unsigned char* stage = shared + index % kStages * stage_size;
        const uint32_t b = shared_address(stage), c = b + Layout<kState>::kRowsBytes;
        unsigned char* x_columns = stage + 2 * Layout<kState>::kRowsBytes + warp * 32;
        StepValues& steps = step_values[index % 2];
        if (warp == 0)
            write_step_values(steps, index > 0 ? &step_values[(index + 1) % 2] : nullptr, p, place.head, raw,
                              count);
        wait_for_copies<0>();
        __syncthreads();  // this step's values have come, and everyone is done with the step before it
        if (kStages == 2 && next_count > 0) load_step(index + 1, next, next_count);
        if (warp == 0 && next_count > 0) raw = load_raw_steps(p, place, next, next_count);

        if (p.chunk_states && begin == chunk_end - p.chunk) {
            float* to =
                p.chunk_states + ((place.sequence * p.chunks + chunk) * p.heads + place.head) * p.head_state;
            for_each_element<kState>(state, p, channel,
                                     [&](float& value, int64_t at) { to[at] = steps.opens ? 0.0f : value; });
        }
        for (int n = warp; n < kBlocksOfM; n += warps)
            form_block_of_m<kState>(shared_address(m), b, c, steps, BlockOfM(n));
        __syncthreads();

        uint32_t x[kStep / 16][4];
        const LaneBlock x_lane = lane_block_by_columns(threadIdx.x % kWarp);
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k)
            load_matrices_transposed(
                x[k], shared_address(x_columns) + (k * 16 + x_lane.row) * pitch + x_lane.piece * 16);
        float y[kStep / 8][4] = {};
        start_y<kState>(y, state, c, steps);
        add_within_step(y, x, shared_address(m));
        const int64_t out_offset = (place.first_row(p) + begin) * p.inner + first_of_head + channel;
        if (kParts) sum_parts(y, p, p.partial_y + out_offset, count, channels);
        if (!kParts || p.last_part) {
            add_skip(y, x, p.d[place.head]);
            __syncwarp();  // x has been read by all lanes
            store_y(y, x_columns, pitch, p.y + out_offset, p.inner, count, channels, p.y_aligned);
        }
        advance_state<kState>(state, x, b, steps);
        if (kStages == 1 && next_count > 0) {
            __syncthreads();
            load_step(index + 1, next, next_count);
        }
        begin = next;
        count = next_count;
        if (begin == chunk_end) {
            ++chunk;
            chunk_end += p.chunk;
        }
    }
    if (p.final_state) {
        float* to = p.final_state + (place.sequence * p.heads + place.head) * p.head_state;
        for_each_element<kState>(state, p, channel, [&](float& value, int64_t at) { to[at] = value; });
    }
}

template <int kState, bool kParts = false, int kStages = 1>
void launch(const Context& context, ScanParams p, int64_t batch) {
    p.slices = narrow<int>(div_up(p.head_dim, Layout<kState>::kWidest));
    p.width = narrow<int>(div_up(div_up(p.head_dim, p.slices), 16) * 16);
    const int bytes = shared_bytes<kState>(p.width, kStages);
    MP_ASSERT(bytes <= context.shared_memory_per_block);
    const int64_t blocks = batch * p.heads * p.slices;
    MP_ASSERT(blocks <= INT32_MAX);
    MP_CUDA(cudaFuncSetAttribute(scan_kernel<kState, kParts, kStages>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    scan_kernel<kState, kParts, kStages>
        <<<static_cast<unsigned>(blocks), p.width / 16 * kWarp, bytes, context.stream>>>(p);
    MP_CUDA_LAUNCHED();
}

ScanParams scan_params(const SsdForward& args) {
    const MambaShape& s = args.shape;
    ScanParams p{};
    p.xbc = reinterpret_cast<const uint16_t*>(args.xbc.data);
    p.zxbcdt = reinterpret_cast<const uint16_t*>(args.zxbcdt.data);
    p.dt_bias = args.dt_bias.as<float>();
    p.a_log = args.a_log.as<float>();
    p.d = args.d.as<float>();
    p.document = args.document ? args.document.as<int32_t>() : nullptr;
    p.initial_state = args.initial_state ? args.initial_state.as<float>() : nullptr;
    p.y = reinterpret_cast<uint16_t*>(args.y.data);
    p.final_state = args.final_state ? args.final_state.as<float>() : nullptr;
    p.chunk_states = args.chunk_states ? args.chunk_states.as<float>() : nullptr;
    p.time = narrow<int>(args.xbc.size(1));
    p.heads = narrow<int>(s.heads);
    p.head_dim = narrow<int>(s.head_dim);
    p.state = p.part_size = narrow<int>(s.state);
    p.heads_per_group = narrow<int>(div_exact(s.heads, s.groups));
    p.head_state = s.head_dim * s.state;
    p.conv_channels = s.conv_channels();
    p.projection = s.projection();
    p.inner = s.inner();
    p.b_offset = s.inner();
    p.c_offset = s.inner() + s.groups * s.state;
    p.chunk = static_cast<int>(std::min<int64_t>(args.chunk, std::max(p.time, 1)));
    p.chunks = narrow<int>(div_up(p.time, p.chunk));
    p.dt_min = static_cast<float>(args.dt_min);
    p.dt_max = static_cast<float>(args.dt_max);
    const bool rows_aligned = on_16_bytes(p.xbc) && p.conv_channels % 8 == 0;
    p.x_aligned = rows_aligned && s.head_dim % 8 == 0;
    p.bc_aligned = rows_aligned && p.inner % 8 == 0 && s.state % 8 == 0;
    p.y_aligned = on_16_bytes(p.y) && s.head_dim % 8 == 0;
    return p;
}

}  // namespace

int64_t ssd_plain_scratch_bytes(const SsdForward& args) {
    return args.shape.state > kLargestState ? args.y.elements() * static_cast<int64_t>(sizeof(float)) : 0;
}

void ssd_forward_plain(const Context& context, const SsdForward& args) {
    const int64_t batch = args.xbc.size(0);
    if (batch == 0) return;
    ScanParams p = scan_params(args);
    // A second stage or more blocks at a time? Measured on an H100: 32 channels with a state of 64 take 1.11
    // ms with two stages and 0.87 with one, the 8B shape 1.50 and 2.01; at 256 two stages leave room for one
    // block only.
    if (p.state <= 32) return launch<32>(context, p, batch);
    if (p.state <= 64) return launch<64>(context, p, batch);
    if (p.state <= 128) {
        if (shared_bytes<128>(Layout<128>::kWidest, 2) <= context.shared_memory_per_block)
            return launch<128, false, 2>(context, p, batch);
        return launch<128>(context, p, batch);
    }
    if (p.state <= kLargestState) return launch<kLargestState>(context, p, batch);
    MP_ASSERT(context.scratch_capacity >= ssd_plain_scratch_bytes(args));
    p.partial_y = reinterpret_cast<float*>(context.scratch);
    for (int begin = 0; begin < p.state; begin += kLargestState) {
        p.part_begin = begin;
        p.part_size = std::min(kLargestState, p.state - begin);
        p.first_part = begin == 0;
        p.last_part = begin + p.part_size == p.state;
        launch<kLargestState, true>(context, p, batch);
    }
}

}  // namespace minipuzzle::cuda
