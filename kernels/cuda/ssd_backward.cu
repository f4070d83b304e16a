// The selective scan, backward: which path, scratch memory, tensor maps, launches.
//
// At the 8B shape (B 1, T 8192, H 128, P 64, G 8, N 128) the least traffic is x|B|C and dy in, dx|dB|dC out:
// 168 + 134 + 168 MB, and the states entering chunks, 268 MB: 0.74 GB. This path moves 1.7 GB: the states'
// gradients are walked back (dy in, dS out as bf16: 0.27 GB), then come a kernel over heads (x, dy, dS in, dx
// and terms of d delta out: 0.59 GB) and two over groups of heads (x and dS for dB, 0.27 GB; dy, states and
// dS for dC, 0.54 GB). The arithmetic with chunks of 128 tokens is T H (2 * 5 P N + 2 * 2 * 96 P) = 106
// GFLOP.
#include <algorithm>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/ssd_backward_c.cuh"
#include "kernels/cuda/ssd_backward_groups.cuh"
#include "kernels/cuda/ssd_backward_heads.cuh"
#include "kernels/cuda/ssd_backward_states.cuh"
#include "kernels/cuda/ssd_plain.h"
#include "kernels/cuda/tensor_map.h"

namespace minipuzzle::cuda {
namespace {

using ssd_backward::Arguments;
using ssd_backward::kChunk;
using ssd_backward::Maps;

// The published heads and states for which there is a fast path.
bool has_fast_shape(const MambaShape& s) {
    const bool state = s.state == 64 || s.state == 128;
    const bool sizes = s.head_dim == 32   ? state
                       : s.head_dim == 64 ? state || s.state == 256
                                          : s.head_dim == 80 && state;
    return sizes && s.conv_channels() % 8 == 0;
}

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0; }

// What shapes say; whether memory is aligned and which device it is are seen at the launch.
bool may_be_fast(const SsdBackward& args) {
    return has_fast_shape(args.shape) && args.chunk == kChunk && args.xbc.size(0) > 0 &&
           args.xbc.size(0) < 65536 && args.xbc.size(1) > 0 && args.xbc.size(1) < (int64_t{1} << 30);
}

// Sizes, cuts and scratch memory. A group's heads are cut so that one sequence fills the chip, if it can with
// three heads a block; never depending on the batch.
struct Plan {
    Arguments args;
    int64_t bytes = 0;

    Plan(const SsdBackward& op, std::byte* base) {
        constexpr int64_t kMultiprocessors = 132, kLeastHeads = 3;
        const MambaShape& s = op.shape;
        args.batch = op.xbc.size(0), args.time = op.xbc.size(1);
        args.projection = s.projection(), args.conv_channels = s.conv_channels();
        args.chunks = narrow<int>(div_up(args.time, kChunk));
        args.heads = narrow<int>(s.heads), args.groups = narrow<int>(s.groups);
        args.heads_per_group = args.heads / args.groups;
        const int64_t blocks = int64_t{args.chunks} * args.groups;
        const int64_t slices = std::min(div_up(kMultiprocessors, blocks),
                                        std::max<int64_t>(1, args.heads_per_group / kLeastHeads));
        args.slice_heads = narrow<int>(div_up(args.heads_per_group, slices));
        args.slices = narrow<int>(div_up(args.heads_per_group, args.slice_heads));
        args.column_slices = narrow<int>(div_up(s.state, 128));
        args.pass_parts = 4 * args.column_slices;  // one a warp that rounds states

        const int64_t places = args.batch * args.chunks, rows = places * args.heads;
        take(base, args.steps, rows * ssd_backward::kStepRows * kChunk);
        take(base, args.marks, op.document ? places * kChunk : 0);
        if (!op.document) args.marks = nullptr;
        take(base, args.sums, rows * ssd_backward::kSumRows * kChunk);
        take(base, args.enters, args.column_slices * rows * kChunk);
        take(base, args.passes, rows * args.pass_parts);
        take(base, args.d_cb, args.slices * places * args.groups * kChunk * kChunk);
        take(base, args.parameters, 3 * rows);
        take(base, args.d_states, rows * s.head_dim * s.state);
    }

  private:
    template <class T>
    void take(std::byte* base, T*& to, int64_t count) {
        to = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
        bytes += div_up(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    }
};

template <class T>
T* optional(const Tensor& tensor) {
    return tensor ? tensor.as<T>() : nullptr;
}

void set_operands(Arguments& args, const SsdBackward& op) {
    const MambaShape& s = op.shape;
    args.dt = reinterpret_cast<const __nv_bfloat16*>(op.zxbcdt.data) + s.projection() - s.heads;
    args.d_dt = reinterpret_cast<__nv_bfloat16*>(op.d_zxbcdt.data) + s.projection() - s.heads;
    args.d_bc = reinterpret_cast<__nv_bfloat16*>(op.d_xbc.data) + s.inner();
    args.dt_bias = op.dt_bias.as<float>();
    args.a_log = op.a_log.as<float>();
    args.skip = op.d.as<float>();
    args.chunk_states = op.chunk_states.as<float>();
    args.d_final = optional<float>(op.d_final_state);
    args.d_initial = optional<float>(op.d_initial_state);
    args.d_dt_bias = op.d_dt_bias.as<float>();
    args.d_a_log = op.d_a_log.as<float>();
    args.d_d = op.d_d.as<float>();
    args.dt_min = static_cast<float>(op.dt_min);
    args.dt_max = static_cast<float>(op.dt_max);
}

Maps make_maps(const SsdBackward& op, const Arguments& args) {
    const MambaShape& s = op.shape;
    const int64_t batch = args.batch, time = args.time, of_groups = s.groups * s.state;
    const int64_t main = std::min<int64_t>(s.head_dim, 64), rest = s.head_dim - main;
    const int64_t row = s.conv_channels() * 2, y_row = s.inner() * 2;
    const Axis tokens{time, row, kChunk}, sequences{batch, time * row, 1};
    const Axis y_tokens{time, y_row, kChunk}, y_sequences{batch, time * y_row, 1};
    const Axis out_tokens{time, row, 64}, heads{s.heads, s.head_dim * 2, 1};
    Maps maps{};
    maps.x = make_map(op.xbc.data, {{main, 2, main}, tokens, heads, sequences});
    maps.d_y = make_map(op.d_y.data, {{main, 2, main}, y_tokens, heads, y_sequences});
    maps.d_x = make_map(op.d_xbc.data, {{s.inner(), 2, main}, out_tokens, sequences});
    if (rest > 0) {
        maps.x_rest = make_map(op.xbc.data + main * 2, {{rest, 2, rest}, tokens, heads, sequences});
        maps.d_y_rest = make_map(op.d_y.data + main * 2, {{rest, 2, rest}, y_tokens, heads, y_sequences});
        maps.d_x_rest = make_map(op.d_xbc.data, {{s.inner(), 2, rest}, out_tokens, sequences});
    }
    maps.bc = make_map(op.xbc.data + s.inner() * 2,
                       {{64, 2, 64}, tokens, {of_groups / 64, 128, 1}, {2, of_groups * 2, 1}, sequences});
    const Axis state_heads{batch * args.chunks * s.heads, s.head_dim * s.state * 2, 1};
    maps.d_states =
        make_map(reinterpret_cast<const std::byte*>(args.d_states),
                 {{64, 2, 64}, {s.head_dim, s.state * 2, s.head_dim}, {s.state / 64, 128, 1}, state_heads});
    // Float32 as pairs of bf16.
    const Axis precise_heads{batch * args.chunks * s.heads, s.head_dim * s.state * 4, 1};
    maps.states =
        make_map(op.chunk_states.data,
                 {{64, 2, 64}, {s.head_dim, s.state * 4, s.head_dim}, {s.state / 32, 128, 1}, precise_heads});
    return maps;
}

template <class Kernel>
void launch(const Context& context, Kernel* kernel, int64_t blocks, int threads, int shared_bytes,
            const Maps& maps, const Arguments& args) {
    MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<narrow<unsigned>(blocks), threads, shared_bytes, context.stream>>>(maps, args);
    MP_CUDA_LAUNCHED();
}

template <int kP, int kN>
void launch_products(const Context& context, const Maps& maps, const Arguments& args) {
    using namespace ssd_backward;
    // Where there is one block a multiprocessor it looks further ahead.
    const int64_t walks = args.batch * args.heads * args.column_slices;
    using Deep = StatesLayout<kP, kN, 4>;
    using Flat = StatesLayout<kP, kN, 2>;
    if (walks <= context.multiprocessors)
        launch(context, walk_states<kP, kN, 4>, walks, Deep::kThreads, Deep::kBytes, maps, args);
    else
        launch(context, walk_states<kP, kN, 2>, walks, Flat::kThreads, Flat::kBytes, maps, args);
    const int64_t groups = args.batch * args.chunks * args.groups;
    launch(context, args.marks ? take_heads<kP, kN, true> : take_heads<kP, kN, false>, groups * args.slices,
           256, HeadsLayout<kP, kN>::kBytes, maps, args);
    launch(context, take_b<kP, kN>, groups * args.column_slices, 256, BLayout<kP, kN>::kBytes, maps, args);
    launch(context, take_c<kP, kN>, groups * args.column_slices, CLayout<kP, kN>::kThreads,
           CLayout<kP, kN>::kBytes, maps, args);
}

void launch_products(const Context& context, const MambaShape& shape, const Maps& maps,
                     const Arguments& args) {
    const bool small = shape.state == 64;
    switch (shape.head_dim) {
        case 32:
            return small ? launch_products<32, 64>(context, maps, args)
                         : launch_products<32, 128>(context, maps, args);
        case 64:
            return small                ? launch_products<64, 64>(context, maps, args)
                   : shape.state == 128 ? launch_products<64, 128>(context, maps, args)
                                        : launch_products<64, 256>(context, maps, args);
        default:
            return small ? launch_products<80, 64>(context, maps, args)
                         : launch_products<80, 128>(context, maps, args);
    }
}

void run_fast(const Context& context, const SsdBackward& op) {
    Plan plan(op, context.scratch);
    MP_ASSERT(plan.bytes <= context.scratch_capacity);
    Arguments& args = plan.args;
    set_operands(args, op);
    const Maps maps = make_maps(op, args);
    const auto chunks = static_cast<unsigned>(args.chunks), batch = static_cast<unsigned>(args.batch);
    const auto head_blocks = static_cast<unsigned>(div_up(args.heads, 32));
    if (args.marks) {
        take_marks<kChunk><<<dim3(chunks, batch), kChunk, 0, context.stream>>>(op.document.as<int32_t>(),
                                                                               args.time, args.marks);
        MP_CUDA_LAUNCHED();
    }
    ssd_backward::take_steps<<<dim3(chunks, head_blocks, batch), 256, 0, context.stream>>>(args);
    MP_CUDA_LAUNCHED();
    launch_products(context, op.shape, maps, args);
    ssd_backward::finish_steps<<<dim3(chunks, head_blocks, batch), 256, 0, context.stream>>>(args);
    MP_CUDA_LAUNCHED();
    ssd_backward::add_parameters<<<dim3(head_blocks, 3), 1024, 0, context.stream>>>(args);
    MP_CUDA_LAUNCHED();
}

}  // namespace

int64_t scratch_bytes(const SsdBackward& args) {
    const int64_t plain = ssd_backward_plain_scratch_bytes(args);
    return may_be_fast(args) ? std::max(plain, Plan(args, nullptr).bytes) : plain;
}

void run(const Context& context, const SsdBackward& args) {
    if (context.hopper_code && may_be_fast(args) && aligned(args.xbc) && aligned(args.d_y) &&
        aligned(args.d_xbc) && aligned(args.chunk_states))
        run_fast(context, args);
    else
        ssd_backward_plain(context, args);
}

}  // namespace minipuzzle::cuda
