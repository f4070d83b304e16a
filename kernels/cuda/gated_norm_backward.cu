// The gradient of the gated group RMS norm of the Mamba-2 mixer. With q = y * silu(z), r = rsqrt(mean(q^2) +
// eps) over the group and g = weight * d_out:
//   dq = r * (g - q * r^2 * mean(g * q));  d_y = dq * silu(z);  d_z = dq * y * silu'(z);
//   d_weight += sum over tokens of d_out * q * r
// float32 throughout, one rounding when stored. The sums over tokens go from a thread's rows to its block,
// from there to scratch memory, and from there, in double, to the gradient: always in the same order.
#include "kernels/cuda/copies.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/vectors.cuh"

namespace minipuzzle::cuda {
namespace {

constexpr int kLongGroupThreads = 512;
// Of groups of more than a warp: the most threads, each of one vector, and the tokens of a block that are
// under way or at work at once.
constexpr int kAheadThreads = 256, kStages = 3;

struct GatedRows {
    const bf16 *y, *z;
    const float* weight;
    const bf16* d_out;
    bf16 *d_y, *d_z;
    float* partials;                             // [blocks along rows, inner]
    int64_t count, inner, pitch, groups, width;  // pitch of z and d_z; width of a group
    float eps;
    int rows_per_slot;  // that one thread goes through
    int group_slots;    // groups that a block works on at once; its other slots are further rows of them
};

struct Sums {
    float square, change;  // of q^2 and of g * q
};

// What dq needs of a group: dq = scale * g - shift * q.
struct Factors {
    float scale, shift;
};

__device__ Factors factors_of(const GatedRows& rows, Sums sums) {
    const float width = static_cast<float>(rows.width);
    const float scale = rsqrtf(sums.square / width + rows.eps);
    return {scale, scale * scale * scale * (sums.change / width)};
}

__device__ Sums warp_sums(Sums sums) { return {warp_sum(sums.square), warp_sum(sums.change)}; }

// As row_sum, of both.
__device__ Sums row_sums(Sums sums, Sums* partials) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    Sums* row = partials + threadIdx.y * warps;
    sums = warp_sums(sums);
    if (threadIdx.x % kWarp == 0) row[threadIdx.x / kWarp] = sums;
    __syncthreads();
    sums = row[0];
    for (int warp = 1; warp < warps; ++warp) {
        sums.square += row[warp].square;
        sums.change += row[warp].change;
    }
    return sums;
}

// One element's share of the sums.
__device__ void add(Sums& sums, float y, float z, float change) {
    const float q = y * silu(z);
    sums.square = fmaf(q, q, sums.square);
    sums.change = fmaf(change, q, sums.change);
}

struct Gradients {
    float y, z, weight;
};

__device__ Gradients gradients_of(float y, float z, float weight, float d_out, const Factors& f) {
    const float s = sigmoid(z), gate = z * s, q = y * gate;
    const float dq = fmaf(f.scale * weight, d_out, -f.shift * q);
    const float slope = fmaf(gate, 1.0f - s, s);
    return {.y = dq * gate, .z = dq * y * slope, .weight = d_out * (q * f.scale)};
}

// The compiler is to read these values again, not to keep what it made of them.
template <int W>
__device__ void read_again(Packed<W>& v) {
#pragma unroll
    for (uint32_t& pair : v.pairs) asm volatile("" : "+r"(pair));
}

// blockDim.y groups of one token or of several, each held in the registers of blockDim.x threads from its
// one read on: d_y may be d_out. Thread x holds vectors x, x + blockDim.x, ... kBlocks blocks fit a
// multiprocessor.
template <int kHeld, bool kOneWarp, int kBlocks, Reuse kReuse>
__global__ void __launch_bounds__(kOneWarp ? RowLayout::kBlockThreads : RowLayout::kMostThreads, kBlocks)
    normalise_back_held(const GatedRows rows) {
    __shared__ Sums partials[2][kWarp];
    extern __shared__ float4
        slot_sums[];  // [blockDim.y, kHeld, 2, blockDim.x], where groups have several slots
    const int slot = static_cast<int>(threadIdx.y),
              row_slots = static_cast<int>(blockDim.y) / rows.group_slots;
    const int64_t group = int64_t{blockIdx.y} * rows.group_slots + slot % rows.group_slots;
    const int first = static_cast<int>(threadIdx.x) * 8, step = static_cast<int>(blockDim.x) * 8;
    const int64_t first_row = int64_t{blockIdx.x} * rows.rows_per_slot * row_slots + slot / rows.group_slots;
    const float* weight = rows.weight + group * rows.width + first;
    float d_weight[kHeld][8] = {};
    int turn = 0;
    for (int i = 0; i < rows.rows_per_slot; ++i) {
        const int64_t row = first_row + int64_t{i} * row_slots;
        const int width = group < rows.groups && row < rows.count ? static_cast<int>(rows.width) : 0;
        const int64_t at = row * rows.inner + group * rows.width + first;
        const int64_t at_z = row * rows.pitch + group * rows.width + first;
        Packed<8> y[kHeld] = {}, z[kHeld] = {}, d_out[kHeld] = {};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            y[h] = load<8>(rows.y + at + h * step);
            z[h] = load<8>(rows.z + at_z + h * step);
            d_out[h] = load<8>(rows.d_out + at + h * step);
        }
        Sums sums{0, 0};
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            float a[8], b[8], c[8], w[8];
            unpack(y[h], a);
            unpack(z[h], b);
            unpack(d_out[h], c);
            load_weights(weight + h * step, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) add(sums, a[j], b[j], w[j] * c[j]);
        }
        const Factors factors =
            factors_of(rows, kOneWarp ? warp_sums(sums) : row_sums(sums, partials[turn ^= 1]));
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            if (first + h * step >= width) continue;
            if (kHeld > 1) {
                read_again(y[h]);
                read_again(z[h]);
                read_again(d_out[h]);
            }
            float a[8], b[8], c[8], w[8];
            unpack(y[h], a);
            unpack(z[h], b);
            unpack(d_out[h], c);
            load_weights(weight + h * step, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const Gradients d = gradients_of(a[j], b[j], w[j], c[j], factors);
                a[j] = d.y;
                b[j] = d.z;
                d_weight[h][j] += d.weight;
            }
            store(rows.d_y + at + h * step, pack(a), kReuse);
            store(rows.d_z + at_z + h * step, pack(b), kReuse);
        }
    }
    const int slots = static_cast<int>(blockDim.y), threads = static_cast<int>(blockDim.x);
    const auto sums_of = [&](int of, int h, int half) -> float4& {
        return slot_sums[((of * kHeld + h) * 2 + half) * threads + static_cast<int>(threadIdx.x)];
    };
    if (row_slots > 1) {
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            sums_of(slot, h, 0) = make_float4(d_weight[h][0], d_weight[h][1], d_weight[h][2], d_weight[h][3]);
            sums_of(slot, h, 1) = make_float4(d_weight[h][4], d_weight[h][5], d_weight[h][6], d_weight[h][7]);
        }
        __syncthreads();
    }
    if (slot >= rows.group_slots || group >= rows.groups) return;
    float* to = rows.partials + blockIdx.x * rows.inner + group * rows.width + first;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
        if (first + h * step >= rows.width) continue;
        for (int other = slot + rows.group_slots; other < slots; other += rows.group_slots) {
            const float4 a = sums_of(other, h, 0), b = sums_of(other, h, 1);
            d_weight[h][0] += a.x, d_weight[h][1] += a.y, d_weight[h][2] += a.z, d_weight[h][3] += a.w;
            d_weight[h][4] += b.x, d_weight[h][5] += b.y, d_weight[h][6] += b.z, d_weight[h][7] += b.w;
        }
        float4* four = reinterpret_cast<float4*>(to + h * step);
        four[0] = make_float4(d_weight[h][0], d_weight[h][1], d_weight[h][2], d_weight[h][3]);
        four[1] = make_float4(d_weight[h][4], d_weight[h][5], d_weight[h][6], d_weight[h][7]);
    }
}

// A group of a token at a time and one vector of it per thread. Each thread copies its vectors of the next
// tokens to shared memory while it works on one, so that the block's barrier between a token's sums and its
// gradients leaves the memory busy. Blocks take the tokens in turn, and the groups of a token lie side by
// side: whatever is under way lies close together. d_y may be d_out.
template <Reuse kReuse>
__global__ void __launch_bounds__(kAheadThreads, 4) normalise_back_ahead(const GatedRows rows) {
    __shared__ Sums partials[2][kWarp];
    __shared__ Copied<8> stages[kStages][3][kAheadThreads];
    const int thread = static_cast<int>(threadIdx.x);
    const bool live = thread * 8 < rows.width;
    const int64_t chunk = blockIdx.x / rows.groups, chunks = gridDim.x / rows.groups;
    const int64_t column = blockIdx.x % rows.groups * rows.width + thread * 8;
    const int count = static_cast<int>((rows.count - chunk + chunks - 1) / chunks);
    const int64_t step = chunks * rows.inner, step_z = chunks * rows.pitch;
    int64_t next = chunk * rows.inner + column,
            next_z = chunk * rows.pitch + column;  // of the token to fetch
    const auto fetch = [&](int stage, int i) {
        if (live && i < count) {
            copy(stages[stage][0][thread], rows.y + next);
            copy(stages[stage][1][thread], rows.z + next_z);
            copy(stages[stage][2][thread], rows.d_out + next);
        }
        end_copies();
        next += step, next_z += step_z;
    };
#pragma unroll
    for (int i = 0; i + 1 < kStages; ++i) fetch(i, i);
    float d_weight[8] = {};
    int stage = kStages - 1, turn = 0;
    for (int i = 0; i < count; ++i) {
        fetch(stage, i + kStages - 1);  // in place of the last token
        stage = stage + 1 == kStages ? 0 : stage + 1;
        wait_for_copies<kStages - 1>();
        float a[8], b[8], c[8], weight[8];
        Sums sums{0, 0};
        if (live) {
            unpack(read(stages[stage][0][thread]), a);
            unpack(read(stages[stage][1][thread]), b);
            unpack(read(stages[stage][2][thread]), c);
            load_weights(rows.weight + column, weight);
#pragma unroll
            for (int j = 0; j < 8; ++j) add(sums, a[j], b[j], weight[j] * c[j]);
        }
        const Factors factors = factors_of(rows, row_sums(sums, partials[turn ^= 1]));
        if (live) {
            unpack(read(stages[stage][0][thread]), a);
            unpack(read(stages[stage][1][thread]), b);
            unpack(read(stages[stage][2][thread]), c);
            load_weights(rows.weight + column, weight);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const Gradients d = gradients_of(a[j], b[j], weight[j], c[j], factors);
                a[j] = d.y;
                b[j] = d.z;
                d_weight[j] += d.weight;
            }
            store(rows.d_y + (next - kStages * step), pack(a), kReuse);
            store(rows.d_z + (next_z - kStages * step_z), pack(b), kReuse);
        }
    }
    if (!live) return;
    float4* to = reinterpret_cast<float4*>(rows.partials + chunk * rows.inner + column);
    to[0] = make_float4(d_weight[0], d_weight[1], d_weight[2], d_weight[3]);
    to[1] = make_float4(d_weight[4], d_weight[5], d_weight[6], d_weight[7]);
}

// One group over rows_per_slot tokens per block, each read twice: groups too long to be held, and sizes that
// vectors do not fit.
__global__ void __launch_bounds__(kLongGroupThreads) normalise_back_long(const GatedRows rows) {
    __shared__ Sums partials[2][kWarp];
    int turn = 0;
    const int64_t chunk = blockIdx.x / rows.groups, first = blockIdx.x % rows.groups * rows.width;
    const float* weight = rows.weight + first;
    float* d_weight = rows.partials + chunk * rows.inner + first;
    for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) d_weight[i] = 0;
    const int64_t begin = chunk * rows.rows_per_slot, end = min(begin + rows.rows_per_slot, rows.count);
    for (int64_t row = begin; row < end; ++row) {
        const bf16 *y = rows.y + row * rows.inner + first, *z = rows.z + row * rows.pitch + first;
        const bf16* d_out = rows.d_out + row * rows.inner + first;
        bf16 *d_y = rows.d_y + row * rows.inner + first, *d_z = rows.d_z + row * rows.pitch + first;
        Sums sums{0, 0};
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x)
            add(sums, __bfloat162float(y[i]), __bfloat162float(z[i]), weight[i] * __bfloat162float(d_out[i]));
        const Factors factors = factors_of(rows, row_sums(sums, partials[turn ^= 1]));
        for (int64_t i = threadIdx.x; i < rows.width; i += blockDim.x) {
            const Gradients d = gradients_of(__bfloat162float(y[i]), __bfloat162float(z[i]), weight[i],
                                             __bfloat162float(d_out[i]), factors);
            d_y[i] = __float2bfloat16_rn(d.y);
            d_z[i] = __float2bfloat16_rn(d.z);
            d_weight[i] += d.weight;
        }
    }
}

__global__ void __launch_bounds__(kWarp* PartialSums::kSlices)
    add_to_gradient(const PartialSums sums, float* d_weight) {
    int64_t column;
    float sum;
    if (sum_column(sums, column, sum)) d_weight[column] += sum;
}

// How the rows are spread: from shapes alone, so that scratch memory is known before.
struct Plan {
    RowLayout layout;
    int slots = 1, group_slots = 1, rows_per_slot = 1;
    bool ahead = false;

    int64_t rows_per_block() const { return int64_t{rows_per_slot} * (slots / group_slots); }
    int64_t blocks(int64_t count) const { return div_up(count, rows_per_block()); }
    int64_t shared_bytes() const {
        return slots > group_slots
                   ? int64_t{slots} * layout.held * layout.threads * 8 * int64_t{sizeof(float)}
                   : 0;
    }
};

// Of a group of one row on `threads` threads: few rows per thread where there are few, so that blocks fill
// the device.
int rows_per_slot(int64_t tasks, int64_t threads) {
    constexpr int64_t kEnoughWarps = 8192;
    for (const int rows : {64, 32, 16, 8, 4}) {
        if (tasks * (threads / kWarp) / rows >= kEnoughWarps) return rows;
    }
    return 2;
}

Plan held_plan(int64_t count, int64_t groups, int64_t width) {
    const int64_t vectors = div_up(width, int64_t{8});
    Plan plan{.layout = row_layout(vectors)};
    if (!plan.layout.fits()) return plan;
    plan.ahead = !plan.layout.one_warp() && vectors <= kAheadThreads;
    if (plan.ahead)
        plan.layout = {.held = 1, .threads = static_cast<int>(div_up(vectors, int64_t{kWarp})) * kWarp};
    else
        plan.slots = plan.layout.together();
    plan.rows_per_slot = rows_per_slot(count * groups, plan.layout.threads);
    return plan;
}

Plan long_plan(int64_t count, int64_t groups) {
    return {.layout = {}, .rows_per_slot = rows_per_slot(count * groups, kLongGroupThreads)};
}

using Kernel = void (*)(GatedRows);

template <Reuse kReuse>
Kernel held_kernel(const RowLayout& layout) {
    constexpr Kernel kWarpKernels[] = {
        normalise_back_held<1, true, 3, kReuse>, normalise_back_held<2, true, 2, kReuse>,
        normalise_back_held<3, true, 2, kReuse>, normalise_back_held<4, true, 2, kReuse>};
    if (layout.one_warp()) return kWarpKernels[layout.held - 1];
    return layout.held == 2 ? Kernel(normalise_back_held<2, false, 1, kReuse>)
                            : Kernel(normalise_back_held<4, false, 1, kReuse>);
}

bool vectors_fit(const GatedRows& rows) {
    return cuda::vectors_fit(rows.y, rows.width) && cuda::vectors_fit(rows.z, rows.pitch) &&
           cuda::vectors_fit(rows.d_out, rows.width) && cuda::vectors_fit(rows.d_y, rows.width) &&
           cuda::vectors_fit(rows.d_z, rows.pitch) && cuda::vectors_fit(rows.weight, rows.width);
}

int64_t partial_rows(const Plan& held, int64_t count, int64_t groups) {
    return std::max(held.blocks(count), long_plan(count, groups).blocks(count));
}

}  // namespace

int64_t scratch_bytes(const GatedNormBackward& args) {
    const int64_t inner = args.shape.inner(), groups = args.shape.groups, count = args.y.rows();
    const Plan held = held_plan(count, groups, div_exact(inner, groups));
    return partial_rows(held, count, groups) * inner * int64_t{sizeof(float)};
}

// 8B: 6 * inner read and 4 * inner written per token (80 KiB at inner 8192; the weight stays in the caches,
// the partials of 256 tokens take 4 * inner written and read); 22 FLOPs, two exponentials and two reciprocals
// per element.
void run(const Context& context, const GatedNormBackward& args) {
    const MambaShape& s = args.shape;
    GatedRows rows{.y = bf16_data(args.y),
                   .z = bf16_data(args.zxbcdt),
                   .weight = args.weight.as<float>(),
                   .d_out = bf16_data(args.d_out),
                   .d_y = bf16_data(args.d_y),
                   .d_z = bf16_data(args.d_zxbcdt),
                   .partials = reinterpret_cast<float*>(context.scratch),
                   .count = args.y.rows(),
                   .inner = s.inner(),
                   .pitch = s.projection(),
                   .groups = s.groups,
                   .width = div_exact(s.inner(), s.groups),
                   .eps = static_cast<float>(args.eps),
                   .rows_per_slot = 1,
                   .group_slots = 1};
    if (rows.count == 0) return;
    constexpr int64_t kMostGridRows = 65535;
    Plan plan = held_plan(rows.count, rows.groups, rows.width);
    const int64_t group_blocks = div_up(rows.groups, int64_t{plan.group_slots});
    const bool held = plan.layout.fits() && vectors_fit(rows) && group_blocks <= kMostGridRows;
    if (!held) plan = long_plan(rows.count, rows.groups);
    rows.rows_per_slot = plan.rows_per_slot;
    rows.group_slots = plan.group_slots;
    const int64_t blocks = plan.blocks(rows.count);
    const bool once = reuse_of(args.d_y.bytes()) == Reuse::once;
    if (held && plan.ahead) {
        const auto kernel = once ? normalise_back_ahead<Reuse::once> : normalise_back_ahead<Reuse::again>;
        kernel<<<narrow<unsigned>(blocks * rows.groups), plan.layout.threads, 0, context.stream>>>(rows);
    } else if (held) {
        const auto kernel =
            once ? held_kernel<Reuse::once>(plan.layout) : held_kernel<Reuse::again>(plan.layout);
        const dim3 grid(narrow<unsigned>(blocks), static_cast<unsigned>(group_blocks));
        kernel<<<grid, dim3(plan.layout.threads, plan.slots), plan.shared_bytes(), context.stream>>>(rows);
    } else {
        const int64_t threads =
            std::min<int64_t>(kLongGroupThreads, div_up(rows.width, int64_t{kWarp}) * kWarp);
        normalise_back_long<<<narrow<unsigned>(blocks * rows.groups), static_cast<unsigned>(threads), 0,
                              context.stream>>>(rows);
    }
    MP_CUDA_LAUNCHED();
    const PartialSums sums{.partials = rows.partials, .rows = blocks, .columns = rows.inner};
    add_to_gradient<<<sums.grid(), PartialSums::block(), 0, context.stream>>>(sums,
                                                                              args.d_weight.as<float>());
    MP_CUDA_LAUNCHED();
}

}  // namespace minipuzzle::cuda
