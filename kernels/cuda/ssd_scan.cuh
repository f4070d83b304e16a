// The selective scan on tensor cores of compute capability 9.0a. A block takes two heads of one group, which
// share B and C in shared memory; a warpgroup carries one head's state S^T [P, N] in registers along the
// sequence, chunks of 64 tokens at a time. With s and u of ssd_steps.cuh, per chunk and head,
//   scores = C B^T                                         [64, 64]
//   M_ij   = scores_ij 2^(s_i - u_j) for j <= i, else 0    rounded to bf16, in registers
//   y_i    = 2^(s_i) (C S)_i + (M X)_i + D x_i
//   S^T    = 2^(s_last) S^T + X'^T B,   X'_j = 2^(s_last - u_j) x_j rounded to bf16, in registers
// all four products on wgmma, accumulating in float32. S goes to shared memory as bf16 for C S only. Where P
// is 80, the state's last 16 rows are computed by mma.sync, each warp taking a quarter of the columns.
//
// Warpgroups wait for one another only where a stage is refilled: each warp counts itself out of a stage when
// it no longer reads it, and the one that is last starts the copies of the chunk that comes there next.
#pragma once

#include "kernels/cuda/ssd_steps.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace minipuzzle::cuda::ssd {

// How a sequence is cut, from its length and the model's sizes alone: `segments` blocks walk a sequence at
// the same time. The state that enters a segment is summed from `parts` local states, each of `part_chunks`
// chunks.
struct Cut {
    int chunks = 0, segments = 1, segment_chunks = 0, parts_per_segment = 1, part_chunks = 0;
    int parts() const { return (segments - 1) * parts_per_segment; }
};

struct ScanArgs {
    Cut cut;
    int heads = 0, heads_per_group = 0;
    const float* steps = nullptr;           // [B, H / 2, chunks, kStepFloats]
    const int32_t* marks = nullptr;         // [B, chunks, kChunk], where there are documents
    const float* skip = nullptr;            // D, [H]
    const float* initial = nullptr;         // [B, H, P, N] or null
    float* final_state = nullptr;           // [B, H, P, N] or null
    float* chunk_states = nullptr;          // [B, state_chunks * H, P, N] or null
    int state_every = 1, state_chunks = 0;  // one state kept every so many chunks of ours; how many in all
    float* part_states = nullptr;           // [B, parts, H, P, N]
    float* part_decays = nullptr;           // [B, parts, H]
};

struct ScanMaps {
    CUtensorMap x,
        x_rest;  // boxes of 64 tokens of two heads; of the first 64 columns, and of the rest where P is 80
    CUtensorMap bc, b;      // boxes of 64 tokens of one group's B and C, and of its B
    CUtensorMap y, y_rest;  // boxes of 16 tokens
};

// Sizes and places in shared memory.
template <int kP, int kN, bool kPartial>
struct Layout {
    static constexpr int kMain = kP < 64 ? kP : 64,
                         kRest = kP - kMain;  // x's columns, in two tiles where P is 80
    static constexpr sm90::Swizzle kSwizzle = kMain == 64 ? sm90::Swizzle::b128 : sm90::Swizzle::b64;
    static constexpr int kStateBlocks = kN / 64;  // of 64 state columns: 128 bytes, one swizzled row
    static constexpr int kMainBytes = kChunk * kMain * 2, kXBytes = kChunk * kP * 2;
    static constexpr int kBlockBytes = kChunk * 128, kBcBytes = kStateBlocks * kBlockBytes;
    // Room for a third stage, and for y apart from x.
    static constexpr bool kRoomy = kN <= 128;
    // C is an operand twice: where registers allow, it is read from shared memory once.
    static constexpr bool kKeepC = kRoomy && kP <= 64;
    static constexpr int kStages = kPartial ? 4 : kRoomy ? 3 : 2;

    static constexpr int kB = 2 * kXBytes, kC = kB + kBcBytes;
    static constexpr int kStageBytes = kPartial ? kC : kC + kBcBytes;
    static constexpr int kStateBlockBytes = kP * 128, kStateBytes = kStateBlocks * kStateBlockBytes;
    static constexpr int kStates = kStages * kStageBytes;
    static constexpr int kY = kStates + (kPartial ? 0 : 2 * kStateBytes);
    static constexpr int kSteps = kY + (!kPartial && kRoomy ? 2 * kXBytes : 0);
    static constexpr int kMarks = kSteps + kStages * kStepBytes;
    static constexpr int kBarriers = kMarks + kStages * kMarkBytes;
    static constexpr int kCounters = kBarriers + kStages * 8;
    static constexpr int kBytes = kCounters + kStages * 4;
    static_assert(kBytes <= 232448);
    static_assert(kXBytes % 1024 == 0 && kStateBlockBytes % 1024 == 0);
};

__device__ inline float power_of_two(float exponent) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
    return value;
}
__device__ inline uint32_t pack(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ inline float low_half(uint32_t both) { return __uint_as_float(both << 16); }
__device__ inline float high_half(uint32_t both) { return __uint_as_float(both & 0xffff0000u); }
__device__ inline float2 load_pair(const float* pointer) { return *reinterpret_cast<const float2*>(pointer); }

// One head's exponents of a chunk, in shared memory.
struct Steps {
    const float* s;
    __device__ Steps(const unsigned char* memory, int place, int stage, int head)
        : s(reinterpret_cast<const float*>(memory + place + stage * kStepBytes) + head * 2 * kChunk) {}
    __device__ float last() const { return s[kChunk - 1]; }
    // u of a token and its right neighbour.
    __device__ float2 u(int token) const { return load_pair(s + kChunk + token); }
};
// The chunk's documents, likewise.
struct Marks {
    const int* marks;
    __device__ Marks(const unsigned char* memory, int place, int stage)
        : marks(reinterpret_cast<const int*>(memory + place + stage * kMarkBytes)) {}
    __device__ int first(int token) const { return marks[token] & (kReached - 1); }
    __device__ bool reached(int token) const { return marks[token] >= kReached; }
};

// Which part of the work a block does, and its copies into the ring of stages.
template <int kP, int kN, bool kDocuments, bool kPartial>
struct Feed {
    using L = Layout<kP, kN, kPartial>;
    const ScanMaps& maps;
    const ScanArgs& args;
    const uint32_t shared;
    const int sequence, pair, first_chunk, chunks;

    __device__ uint32_t stage(int i) const { return shared + i % L::kStages * L::kStageBytes; }
    __device__ uint32_t full(int i) const { return shared + L::kBarriers + i % L::kStages * 8; }
    __device__ uint32_t parity(int i) const { return i / L::kStages & 1; }

    __device__ void set_up() const {
        for (int i = 0; i < L::kStages; ++i) {
            sm90::barrier_init(full(i), 1);
            asm volatile("st.shared.u32 [%0], 0;" ::"r"(shared + L::kCounters + 4 * i) : "memory");
        }
        sm90::fence_barrier_init();
    }

    // A partial sum goes from its last chunk to its first.
    __device__ int chunk(int i) const { return kPartial ? first_chunk + chunks - 1 - i : first_chunk + i; }
    // Starts the copies of the block's i-th chunk.
    __device__ void load(int i) const {
        constexpr uint32_t kBytes = L::kStageBytes + kStepBytes + (kDocuments ? kMarkBytes : 0);
        const uint32_t to = stage(i), barrier = full(i);
        const int row = chunk(i) * kChunk;
        const int group = 2 * pair / args.heads_per_group;
        sm90::barrier_expect(barrier, kBytes);
        sm90::copy_box_in(to, maps.x, barrier, 0, row, 2 * pair, sequence);
        if constexpr (L::kRest > 0)
            sm90::copy_box_in(to + 2 * L::kMainBytes, maps.x_rest, barrier, 0, row, 2 * pair, sequence);
        if constexpr (kPartial)
            sm90::copy_box_in(to + L::kB, maps.b, barrier, 0, row, group * L::kStateBlocks, sequence);
        else
            sm90::copy_box_in(to + L::kB, maps.bc, barrier, 0, row, group * L::kStateBlocks, 0, sequence);
        const int64_t of_pair = static_cast<int64_t>(sequence) * (args.heads / 2) + pair;
        sm90::copy_in(shared + L::kSteps + i % L::kStages * kStepBytes,
                      args.steps + (of_pair * args.cut.chunks + chunk(i)) * kStepFloats, kStepBytes, barrier);
        if constexpr (kDocuments)
            sm90::copy_in(shared + L::kMarks + i % L::kStages * kMarkBytes,
                          args.marks + (static_cast<int64_t>(sequence) * args.cut.chunks + chunk(i)) * kChunk,
                          kMarkBytes, barrier);
    }
    // One lane of every warp, when its warp no longer reads the i-th chunk's stage.
    __device__ void release(int i) const {
        constexpr uint32_t kWarps = 8;
        const uint32_t before = sm90::count_up(shared + L::kCounters + i % L::kStages * 4);
        if (before % kWarps == kWarps - 1 && i + L::kStages < chunks) load(i + L::kStages);
    }
};

// One warpgroup's state S^T in the layout of an accumulator: rows are channels, columns the state's.
template <int kP, int kN>
struct State {
    static constexpr int kMain = kP < 64 ? kP : 64, kRest = kP - kMain;
    static constexpr int kRestPairs = kN / 64;  // pairs of 8 columns that a warp has of the rest's rows
    float main[kN / 2];
    float rest[kRest > 0 ? kRestPairs : 1][8];

    __device__ void clear() {
#pragma unroll
        for (float& value : main) value = 0;
        if constexpr (kRest > 0)
#pragma unroll
            for (auto& pair : rest)
#pragma unroll
                for (float& value : pair) value = 0;
    }
    __device__ void scale(float factor) {
#pragma unroll
        for (float& value : main) value *= factor;
        if constexpr (kRest > 0)
#pragma unroll
            for (auto& pair : rest)
#pragma unroll
                for (float& value : pair) value *= factor;
    }
    // f(a, b, offset) for each two neighbours, offset into [P, N].
    template <class F>
    __device__ void each(int warp, int lane, const F& f) {
        if (16 * warp < kMain) {
            const int at = (16 * warp + lane / 4) * kN + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < kN / 8; ++j) {
                f(main[4 * j], main[4 * j + 1], at + 8 * j);
                f(main[4 * j + 2], main[4 * j + 3], at + 8 * j + 8 * kN);
            }
        }
        if constexpr (kRest > 0) {
            const int at = (kMain + lane / 4) * kN + warp * (kN / 4) + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 2 * kRestPairs; ++j) {
                float* values = rest[j / 2] + j % 2 * 4;
                f(values[0], values[1], at + 8 * j);
                f(values[2], values[3], at + 8 * j + 8 * kN);
            }
        }
    }
    __device__ void read(const float* from, int warp, int lane) {
        each(warp, lane, [&](float& a, float& b, int offset) {
            const float2 value = load_pair(from + offset);
            a = value.x, b = value.y;
        });
    }
    // this = factor * this + from
    __device__ void scale_and_add(float factor, const float* from, int warp, int lane) {
        each(warp, lane, [&](float& a, float& b, int offset) {
            const float2 value = load_pair(from + offset);
            a = fmaf(factor, a, value.x), b = fmaf(factor, b, value.y);
        });
    }
    __device__ void write(float* to, float factor, int warp, int lane) {
        each(warp, lane, [&](float& a, float& b, int offset) {
            *reinterpret_cast<float2*>(to + offset) = float2{factor * a, factor * b};
        });
    }
    // As bf16 to shared memory: [P] rows of 64 columns a block, swizzled; the operand of C S.
    __device__ void to_shared(uint32_t to, int warp, int lane) const {
        constexpr auto kSwizzle = sm90::Swizzle::b128;
        const int row = lane % 16, high = lane / 16;
        if (16 * warp < kMain) {
            const uint32_t at = to + sm90::swizzled<kSwizzle>(16 * warp + row, high);
#pragma unroll
            for (int j = 0; j < kN / 16; ++j) {
                const float* v = main + 8 * j;
                sm90::store_matrices((at ^ (j % 4 << 5)) + j / 4 * (kP * 128), pack(v[0], v[1]),
                                     pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
            }
        }
        if constexpr (kRest > 0) {
#pragma unroll
            for (int j = 0; j < kRestPairs; ++j) {
                const int piece = warp * 2 * kRestPairs + 2 * j + high;
                const float* v = rest[j];
                sm90::store_matrices(
                    to + piece / 8 * (kP * 128) + sm90::swizzled<kSwizzle>(kMain + row, piece % 8),
                    pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
            }
        }
    }
};

// y of a chunk as accumulators, in two parts like x's tiles.
template <int kP>
struct Output {
    float main[kP < 64 ? kP / 2 : 32];
    float rest[8];
    __device__ void pin() {
        sm90::pin(main);
        if constexpr (kP > 64) sm90::pin(rest);
    }
};

// The steps of one warpgroup (one head) within a chunk. Pointers and addresses are those of the current
// stage.
template <int kP, int kN, bool kDocuments, bool kPartial>
struct Head {
    using L = Layout<kP, kN, kPartial>;
    using Output = ssd::Output<kP>;
    static constexpr auto kWide = sm90::Swizzle::b128;
    static constexpr auto kNarrow = sm90::Swizzle::b32;
    int group, warp, lane;

    // Where this head's x (or y) lies in a stage: its first 64 columns, and the rest.
    __device__ uint32_t main_tile(uint32_t tiles) const { return tiles + group * L::kMainBytes; }
    __device__ uint32_t rest_tile(uint32_t tiles) const {
        return tiles + 2 * L::kMainBytes + group * (L::kXBytes - L::kMainBytes);
    }

    // X'^T, with X'_j = 2^(from_start - u_j) x_j, in A's layout, 16 tokens a row of the result: rows are
    // channels 16 warp ... of the tile.
    template <sm90::Swizzle kSwizzle>
    __device__ void scaled_x(uint32_t tile, int first_piece, const Steps& steps, float from_start,
                             int first_token, uint32_t (&x)[4][4]) const {
        const uint32_t at =
            tile + sm90::swizzled<kSwizzle>(lane % 8 + lane / 16 * 8, first_piece + lane / 8 % 2);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            sm90::load_matrices_transposed(x[k], at + k * 16 * static_cast<int>(kSwizzle));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int token = 16 * k + 8 * half + lane % 4 * 2;
                const float2 of = steps.u(token);
                float w0 = power_of_two(from_start - of.x), w1 = power_of_two(from_start - of.y);
                if constexpr (kDocuments) {
                    if (token < first_token) w0 = 0;
                    if (token + 1 < first_token) w1 = 0;
                }
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    uint32_t& v = x[k][2 * half + row];
                    v = pack(low_half(v) * w0, high_half(v) * w1);
                }
            }
        }
    }
    __device__ void main_x(uint32_t x_tiles, const Steps& steps, float from_start, int first_token,
                           uint32_t (&x)[4][4]) const {
        if (16 * warp < L::kMain) {
            scaled_x<L::kSwizzle>(main_tile(x_tiles), 2 * warp, steps, from_start, first_token, x);
        } else {
            sm90::set_zero(x);
        }
    }

    __device__ void rest_x(uint32_t x_tiles, const Steps& steps, float from_start, int first_token,
                           uint32_t (&x)[4][4]) const {
        scaled_x<kNarrow>(rest_tile(x_tiles), 0, steps, from_start, first_token, x);
    }

    // S^T += X'^T B, the first 64 rows; asynchronous.
    __device__ void add_to_state(float (&state)[kN / 2], const uint32_t (&x)[4][4], uint32_t b) const {
        const sm90::Descriptor of_b = sm90::descriptor<kWide>(b, L::kBlockBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            sm90::Wgmma<kN>::template registers_by_shared<true>(state, x[k], of_b + k * 16 * 128, 1);
    }
    // The last 16 rows.
    __device__ void add_to_rest(State<kP, kN>& state, const uint32_t (&x)[4][4], uint32_t b) const {
        constexpr int kPairs = State<kP, kN>::kRestPairs;
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
            const int piece = warp * 2 * kPairs + 2 * j + lane / 16;
            const uint32_t at = b + piece / 8 * L::kBlockBytes + sm90::swizzled<kWide>(lane % 16, piece % 8);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                uint32_t of_b[4];
                sm90::load_matrices_transposed(of_b, at + k * 16 * 128);
                multiply_16_by_8(state.rest[j], x[k], of_b[0], of_b[1]);
                multiply_16_by_8(state.rest[j] + 4, x[k], of_b[2], of_b[3]);
            }
        }
    }
    static __device__ void multiply_16_by_8(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }

    // C as an operand: in registers (kKeepC), or where it lies in shared memory.
    struct OperandC {
        uint32_t place;
        uint32_t parts[L::kKeepC ? kN / 16 : 1][4];
    };
    __device__ void read_c(OperandC& c) const {
        if constexpr (L::kKeepC) {
            const uint32_t at = c.place + sm90::swizzled<kWide>(16 * warp + lane % 16, lane / 16);
#pragma unroll
            for (int k = 0; k < kN / 16; ++k)
                sm90::load_matrices(c.parts[k], (at ^ (k % 4 << 5)) + k / 4 * L::kBlockBytes);
        }
    }
    // scores = C B^T, asynchronous.
    __device__ void start_scores(float (&scores)[32], const OperandC& c, uint32_t b) const {
        multiply_c<64>(scores, c, b, L::kBlockBytes);
    }
    // y = C S, asynchronous.
    __device__ void start_y(Output& y, const OperandC& c, uint32_t state) const {
        multiply_c<L::kMain>(y.main, c, state, L::kStateBlockBytes);
        if constexpr (L::kRest > 0)
            multiply_c<L::kRest>(y.rest, c, state + L::kMain * 128, L::kStateBlockBytes);
    }
    // C times kColumns rows of an operand whose blocks of 64 state columns lie so many bytes apart.
    template <int kColumns>
    static __device__ void multiply_c(float* d, const OperandC& c, uint32_t operand, uint32_t block_bytes) {
        const sm90::Descriptor of_c = sm90::descriptor<kWide>(c.place, 0);
        const sm90::Descriptor of_operand = sm90::descriptor<kWide>(operand, 0);
#pragma unroll
        for (int k = 0; k < kN / 16; ++k) {
            const sm90::Descriptor part = of_operand + (k / 4 * block_bytes + k % 4 * 32);
            if constexpr (L::kKeepC)
                sm90::Wgmma<kColumns>::template registers_by_shared<false>(d, c.parts[k], part, k > 0);
            else
                sm90::Wgmma<kColumns>::shared(d, of_c + (k / 4 * L::kBlockBytes + k % 4 * 32), part, k > 0);
        }
    }
    // y += M X, asynchronous.
    __device__ void add_scores_x(Output& y, const uint32_t (&m)[4][4], uint32_t x_tiles) const {
        const sm90::Descriptor of_x = sm90::descriptor<L::kSwizzle>(main_tile(x_tiles), 0);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            sm90::Wgmma<L::kMain>::template registers_by_shared<true>(y.main, m[k],
                                                                      of_x + k * 16 * 2 * L::kMain, 1);
        if constexpr (L::kRest > 0) {
            const sm90::Descriptor of_rest = sm90::descriptor<kNarrow>(rest_tile(x_tiles), 0);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                sm90::Wgmma<L::kRest>::template registers_by_shared<true>(y.rest, m[k],
                                                                          of_rest + k * 16 * 2 * L::kRest, 1);
        }
    }

    // 2^(s_i - u_j) at the places of the scores; above the diagonal it means nothing. All warps take whole
    // rows: the last one needs them, and nobody waits for the others.
    __device__ void take_weights(const Steps& steps, float (&weights)[32]) const {
        const float s0 = steps.s[16 * warp + lane / 4], s1 = steps.s[16 * warp + lane / 4 + 8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float2 u = steps.u(8 * j + lane % 4 * 2);
            weights[4 * j] = power_of_two(s0 - u.x), weights[4 * j + 1] = power_of_two(s0 - u.y);
            weights[4 * j + 2] = power_of_two(s1 - u.x), weights[4 * j + 3] = power_of_two(s1 - u.y);
        }
    }
    // M in A's layout.
    __device__ void weigh(const float (&scores)[32], const float (&weights)[32], const Marks& marks,
                          uint32_t (&m)[4][4]) const {
        switch (warp) {
            case 0:
                return weigh_rows<0>(scores, weights, marks, m);
            case 1:
                return weigh_rows<1>(scores, weights, marks, m);
            case 2:
                return weigh_rows<2>(scores, weights, marks, m);
            default:
                return weigh_rows<3>(scores, weights, marks, m);
        }
    }
    // The rows of one warp; blocks of 16 tokens above the diagonal are zero.
    template <int kWarp>
    __device__ void weigh_rows(const float (&scores)[32], const float (&weights)[32], const Marks& marks,
                               uint32_t (&m)[4][4]) const {
        const int row0 = 16 * kWarp + lane / 4, row1 = row0 + 8;
        int first0 = 0, first1 = 0;
        if constexpr (kDocuments) first0 = marks.first(row0), first1 = marks.first(row1);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float v[4];
            const int column = 8 * j + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                v[i] = scores[4 * j + i] * weights[4 * j + i];
                const int row = i < 2 ? row0 : row1, first = i < 2 ? first0 : first1;
                if (j / 2 > kWarp || (j / 2 == kWarp && column + i % 2 > row)) v[i] = 0;
                if (kDocuments && column + i % 2 < first) v[i] = 0;
            }
            m[j / 2][j % 2 * 2] = pack(v[0], v[1]);
            m[j / 2][j % 2 * 2 + 1] = pack(v[2], v[3]);
        }
    }
    // y_i *= 2^(s_i), or 0 where the entering state is another document's.
    __device__ void decay_y(Output& y, const Steps& steps, const Marks& marks) const {
        const int row = 16 * warp + lane / 4;
        float f0 = power_of_two(steps.s[row]), f1 = power_of_two(steps.s[row + 8]);
        if constexpr (kDocuments) {
            if (!marks.reached(row)) f0 = 0;
            if (!marks.reached(row + 8)) f1 = 0;
        }
        const auto scale = [&](float* values) {
            values[0] *= f0, values[1] *= f0;
            values[2] *= f1, values[3] *= f1;
        };
#pragma unroll
        for (int j = 0; j < L::kMain / 8; ++j) scale(y.main + 4 * j);
        if constexpr (L::kRest > 0) scale(y.rest), scale(y.rest + 4);
    }
    // The warp's own 16 tokens of x, at the places of y's accumulators.
    __device__ void read_x(uint32_t x_tiles, uint32_t (&x)[kP / 16][4]) const {
        const int row = 16 * warp + lane % 16, high = lane / 16;
        const uint32_t at = main_tile(x_tiles) + sm90::swizzled<L::kSwizzle>(row, high);
#pragma unroll
        for (int j = 0; j < L::kMain / 16; ++j) sm90::load_matrices(x[j], at ^ (j << 5));
        if constexpr (L::kRest > 0)
            sm90::load_matrices(x[L::kMain / 16], rest_tile(x_tiles) + sm90::swizzled<kNarrow>(row, high));
    }
    // y + D x, rounded, to tiles laid out as x's; each warp its own 16 tokens.
    __device__ void finish_y(const Output& y, float skip, uint32_t (&x)[kP / 16][4], uint32_t y_tiles) const {
        const int row = 16 * warp + lane % 16, high = lane / 16;
        const uint32_t at = main_tile(y_tiles) + sm90::swizzled<L::kSwizzle>(row, high);
#pragma unroll
        for (int j = 0; j < kP / 16; ++j) {
            const float* of_y = j < L::kMain / 16 ? y.main + 8 * j : y.rest;
#pragma unroll
            for (int i = 0; i < 4; ++i)
                x[j][i] = pack(fmaf(skip, low_half(x[j][i]), of_y[2 * i]),
                               fmaf(skip, high_half(x[j][i]), of_y[2 * i + 1]));
        }
#pragma unroll
        for (int j = 0; j < L::kMain / 16; ++j)
            sm90::store_matrices(at ^ (j << 5), x[j][0], x[j][1], x[j][2], x[j][3]);
        if constexpr (L::kRest > 0) {
            const uint32_t(&r)[4] = x[L::kMain / 16];
            sm90::store_matrices(rest_tile(y_tiles) + sm90::swizzled<kNarrow>(row, high), r[0], r[1], r[2],
                                 r[3]);
        }
    }
    // Starts the copy of the warp's 16 tokens of y; one lane. Columns are those of [T, inner].
    __device__ void store_y(const ScanMaps& maps, uint32_t y_tiles, int column, int token,
                            int sequence) const {
        sm90::copy_box_out(maps.y, main_tile(y_tiles) + 16 * warp * 2 * L::kMain, column, token, sequence);
        if constexpr (L::kRest > 0)
            sm90::copy_box_out(maps.y_rest, rest_tile(y_tiles) + 16 * warp * 2 * L::kRest, column + L::kMain,
                               token, sequence);
        sm90::copies_out_commit();
    }
};

// Local states of the parts: what a part's tokens leave behind when it starts from zero, and by how much it
// makes an entering state decay. From the last chunk to the first, so that each token's decay to the part's
// end is known when it is read, and the sum itself needs none. grid (H / 2) * parts * B, 256 threads.
template <int kP, int kN, bool kDocuments>
__global__ void __launch_bounds__(256, 1)
    sum_parts(const __grid_constant__ ScanMaps maps, const __grid_constant__ ScanArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = Layout<kP, kN, true>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const int pairs = args.heads / 2, parts = (args.cut.segments - 1) * args.cut.parts_per_segment;
    const int pair = blockIdx.x % pairs, part = blockIdx.x / pairs % parts,
              sequence = blockIdx.x / pairs / parts;
    const int first = part * args.cut.part_chunks;
    const int count = min(args.cut.part_chunks, args.cut.chunks - first);
    const Feed<kP, kN, kDocuments, true> feed{maps,  args, sm90::shared_address(memory), sequence, pair,
                                              first, count};
    if (threadIdx.x == 0) feed.set_up();
    sm90::let_next_kernel_start();
    sm90::wait_for_kernel_before();
    if (threadIdx.x == 0) {
        for (int i = 0; i < min(count, L::kStages); ++i) feed.load(i);
    }
    __syncthreads();

    const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0), lane = threadIdx.x % 32;
    const Head<kP, kN, kDocuments, true> head{
        group, __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0), lane};
    State<kP, kN> state;
    state.clear();
    uint32_t x[4][4], next[4][4], rest[4][4];
    // The exponent of the decay from the end of the chunk last fetched to the part's end; and whether a state
    // lives that long.
    float to_end = 0;
    bool lives = true;
    // The operands of the i-th chunk, which are computed while the chunk before is still multiplied.
    const auto fetch = [&](int i) {
        sm90::barrier_wait(feed.full(i), feed.parity(i));
        const Steps steps(memory, L::kSteps, i % L::kStages, group);
        const Marks marks(memory, L::kMarks, i % L::kStages);
        const uint32_t x_tiles = feed.stage(i);

        const int first_token = kDocuments ? marks.first(kChunk - 1) : 0;
        to_end += steps.last();
        const float from_start = lives ? to_end : -INFINITY;
        head.main_x(x_tiles, steps, from_start, first_token, next);
        if constexpr (L::kRest > 0) head.rest_x(x_tiles, steps, from_start, first_token, rest);
        if constexpr (kDocuments) lives = lives && marks.reached(kChunk - 1);
    };
    sm90::set_zero(x);
    fetch(0);
    for (int i = 0; i < count; ++i) {
        const uint32_t b = feed.stage(i) + L::kB;
        // x is read until the product is done, but the compiler would give its registers to `next` before:
        // the choice, which it cannot see through, keeps both.
        const bool keep = args.heads < 0;
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int r = 0; r < 4; ++r) x[k][r] = keep ? x[k][r] : next[k][r];
        sm90::pin(state.main);
        sm90::wgmma_fence();
        head.add_to_state(state.main, x, b);
        sm90::wgmma_commit();
        if constexpr (L::kRest > 0) head.add_to_rest(state, rest, b);
        if (i + 1 < count) fetch(i + 1);
        sm90::wgmma_wait<0>();
        sm90::pin(state.main);
        __syncwarp();
        if (lane == 0) feed.release(i);
    }

    const int64_t row = (static_cast<int64_t>(sequence) * parts + part) * args.heads + 2 * pair + group;
    state.write(args.part_states + row * kP * kN, 1.f, head.warp, lane);
    if (threadIdx.x % 128 == 0) args.part_decays[row] = lives ? power_of_two(to_end) : 0.f;
#endif
}

// The state that enters a segment: the initial state, then the local states of the parts before, in order.
template <int kP, int kN>
__device__ void enter_segment(State<kP, kN>& state, const ScanArgs& args, int sequence, int segment, int head,
                              int warp, int lane) {
    constexpr int kElements = kP * kN;
    const int64_t parts = (args.cut.segments - 1) * args.cut.parts_per_segment;
    if (args.initial)
        state.read(args.initial + (static_cast<int64_t>(sequence) * args.heads + head) * kElements, warp,
                   lane);
    else
        state.clear();
    for (int part = 0; part < segment * args.cut.parts_per_segment; ++part) {
        const int64_t row = (sequence * parts + part) * args.heads + head;
        state.scale_and_add(args.part_decays[row], args.part_states + row * kElements, warp, lane);
    }
}

// The scan. grid (H / 2) * segments * B, 256 threads.
template <int kP, int kN, bool kDocuments>
__global__ void __launch_bounds__(256, 1)
    scan(const __grid_constant__ ScanMaps maps, const __grid_constant__ ScanArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using L = Layout<kP, kN, false>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const int pairs = args.heads / 2;
    const int pair = blockIdx.x % pairs, segment = blockIdx.x / pairs % args.cut.segments;
    const int sequence = blockIdx.x / pairs / args.cut.segments;
    const int first = segment * args.cut.segment_chunks;
    const int count = min(args.cut.segment_chunks, args.cut.chunks - first);
    const uint32_t shared = sm90::shared_address(memory);
    const Feed<kP, kN, kDocuments, false> feed{maps, args, shared, sequence, pair, first, count};
    if (threadIdx.x == 0) feed.set_up();
    sm90::let_next_kernel_start();
    sm90::wait_for_kernel_before();
    if (threadIdx.x == 0) {
        for (int i = 0; i < min(count, L::kStages); ++i) feed.load(i);
    }
    __syncthreads();

    const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0), lane = threadIdx.x % 32;
    const Head<kP, kN, kDocuments, false> head{
        group, __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0), lane};
    const int warp = head.warp, head_index = 2 * pair + group;
    constexpr int kElements = kP * kN;
    const float skip = args.skip[head_index];
    const uint32_t s_shared = shared + L::kStates + group * L::kStateBytes;
    const auto warpgroup_barrier = [&] { sm90::named_barrier(1 + group, 128); };

    State<kP, kN> state;
    enter_segment(state, args, sequence, segment, head_index, warp, lane);
    state.to_shared(s_shared, warp, lane);
    sm90::fence_async_shared();
    warpgroup_barrier();

    for (int i = 0; i < count; ++i) {
        const uint32_t stage = feed.stage(i);
        const Steps steps(memory, L::kSteps, i % L::kStages, group);
        const Marks marks(memory, L::kMarks, i % L::kStages);
        sm90::barrier_wait(feed.full(i), feed.parity(i));
        const int first_token = kDocuments ? marks.first(kChunk - 1) : 0;
        if (args.chunk_states && (first + i) % args.state_every == 0) {
            const int64_t row =
                (static_cast<int64_t>(sequence) * args.state_chunks + (first + i) / args.state_every) *
                args.heads;
            const float entering = kDocuments && !marks.reached(0) ? 0.f : 1.f;
            state.write(args.chunk_states + (row + head_index) * kElements, entering, warp, lane);
        }
        // Before any product is under way: the accumulators are then free to be used.
        const float decay = power_of_two(steps.last());
        state.scale(kDocuments && !marks.reached(kChunk - 1) ? 0.f : decay);

        float scores[32];
        Output<kP> y;
        uint32_t x[4][4], m[4][4];
        typename Head<kP, kN, kDocuments, false>::OperandC c{stage + L::kC, {}};
        head.read_c(c);
        head.main_x(stage, steps, steps.last(), first_token, x);

        sm90::pin(state.main);
        sm90::wgmma_fence();
        head.start_scores(scores, c, stage + L::kB);
        sm90::wgmma_commit();
        if constexpr (L::kRoomy) {
            head.start_y(y, c, s_shared);
            sm90::wgmma_commit();
        }
        head.add_to_state(state.main, x, stage + L::kB);
        sm90::wgmma_commit();

        if constexpr (L::kRest > 0) {
            uint32_t rest[4][4];
            head.rest_x(stage, steps, steps.last(), first_token, rest);
            head.add_to_rest(state, rest, stage + L::kB);
        }
        if constexpr (!L::kRoomy) {
            if (i > 0 && lane == 0) {
                sm90::copies_out_wait_read();
                feed.release(i - 1);
            }
            __syncwarp();
        }

        float weights[32];
        head.take_weights(steps, weights);
        sm90::wgmma_wait<L::kRoomy ? 2 : 1>();
        sm90::pin(scores);
        head.weigh(scores, weights, marks, m);
        if constexpr (L::kRoomy) {
            sm90::wgmma_wait<1>();
        } else {
            sm90::wgmma_fence();
            head.start_y(y, c, s_shared);
            sm90::wgmma_commit();

            sm90::wgmma_wait<0>();
        }
        y.pin();
        head.decay_y(y, steps, marks);
        y.pin();
        sm90::wgmma_fence();
        head.add_scores_x(y, m, stage);
        sm90::wgmma_commit();

        sm90::wgmma_wait<1>();
        sm90::pin(state.main);
        warpgroup_barrier();  // every warp has done with S
        state.to_shared(s_shared, warp, lane);
        uint32_t own_x[kP / 16][4];
        head.read_x(stage, own_x);
        if (L::kRoomy && lane == 0) sm90::copies_out_wait_read();
        __syncwarp();
        sm90::wgmma_wait<0>();
        y.pin();
        if constexpr (!L::kRoomy) warpgroup_barrier();  // every warp has done with x
        const uint32_t y_tiles = L::kRoomy ? shared + L::kY : stage;
        head.finish_y(y, skip, own_x, y_tiles);
        sm90::fence_async_shared();
        __syncwarp();
        if (lane == 0)
            head.store_y(maps, y_tiles, head_index * kP, (first + i) * kChunk + 16 * warp, sequence);
        warpgroup_barrier();  // the next S is written
        if (L::kRoomy && lane == 0) feed.release(i);
    }
    if (lane == 0) sm90::copies_out_wait_read();  // before the block's shared memory goes
    if (args.final_state && segment == args.cut.segments - 1)
        state.write(args.final_state + (static_cast<int64_t>(sequence) * args.heads + head_index) * kElements,
                    1.f, warp, lane);
#endif
}

}  // namespace minipuzzle::cuda::ssd
