// The selective scan, forward: which path, scratch memory, tensor maps, launches.
//
// At the 8B shape (B 1, T 8192, H 128, P 64, G 8, N 128) the least traffic is x|B|C in, y out and dt in: 168
// + 134 + 2 MB = 0.30 GB, and the least arithmetic with chunks of 64 tokens T H (2 (N + P) 64 + 4 N P) = 60
// GFLOP.
#include <algorithm>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/ssd_plain.h"
#include "kernels/cuda/ssd_scan.cuh"
#include "kernels/cuda/tensor_map.h"

namespace minipuzzle::cuda {
namespace {

using ssd::Cut;
using ssd::kChunk;

// The published heads and states for which there is a fast path.
bool has_fast_shape(const MambaShape& s) {
    const bool sizes = s.head_dim == 32   ? s.state == 64 || s.state == 128
                       : s.head_dim == 64 ? s.state == 64 || s.state == 128 || s.state == 256
                                          : s.head_dim == 80 && (s.state == 64 || s.state == 128);
    return sizes && s.heads / s.groups % 2 == 0 && s.conv_channels() % 8 == 0;
}

// What shapes say; whether memory is aligned and which device it is are seen at the launch.
bool may_be_fast(const SsdForward& args) {
    return has_fast_shape(args.shape) && (!args.chunk_states || args.chunk % kChunk == 0) &&
           args.xbc.size(0) > 0 && args.xbc.size(0) < 65536 && args.xbc.size(1) > 0 &&
           args.xbc.size(1) < (int64_t{1} << 30);
}

// Blocks of one sequence fill the chip at batch 1 where the sequence is long enough for several segments of
// at least 1024 tokens; the number counts on the 132 multiprocessors that these devices have, never on the
// batch.
Cut make_cut(const MambaShape& shape, int64_t time) {
    constexpr int64_t kMultiprocessors = 132, kLeastTokens = 1024;
    const int64_t pairs = shape.heads / 2;
    Cut cut;
    cut.chunks = narrow<int>(div_up(time, kChunk));
    cut.segments =
        narrow<int>(std::clamp<int64_t>(std::min(kMultiprocessors / pairs, time / kLeastTokens), 1, 16));
    // Local states are needed of all segments but the last; they too should fill the chip.
    if (cut.segments > 1)
        cut.parts_per_segment =
            narrow<int>(std::clamp<int64_t>(kMultiprocessors / (pairs * (cut.segments - 1)), 1, 4));
    cut.part_chunks = narrow<int>(div_up(cut.chunks, int64_t{cut.segments} * cut.parts_per_segment));
    cut.segment_chunks = cut.part_chunks * cut.parts_per_segment;
    // Rounding up may leave the last segment nothing.
    cut.segments = narrow<int>(div_up(cut.chunks, cut.segment_chunks));
    return cut;
}

struct Scratch {
    float *steps = nullptr, *part_states = nullptr, *part_decays = nullptr;
    int32_t* marks = nullptr;
    int64_t bytes = 0;

    Scratch(const SsdForward& args, const Cut& cut, std::byte* base) {
        const int64_t batch = args.xbc.size(0), heads = args.shape.heads;
        steps = take<float>(base, batch * heads / 2 * cut.chunks * ssd::kStepFloats);
        marks = take<int32_t>(base, args.document ? batch * cut.chunks * kChunk : 0);
        part_states = take<float>(base, batch * cut.parts() * heads * args.shape.head_dim * args.shape.state);
        part_decays = take<float>(base, batch * cut.parts() * heads);
    }

  private:
    template <class T>
    T* take(std::byte* base, int64_t count) {
        std::byte* place = base ? base + bytes : nullptr;
        bytes += div_up(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
        return reinterpret_cast<T*>(place);
    }
};

ssd::ScanMaps make_maps(const SsdForward& args) {
    const MambaShape& s = args.shape;
    const int64_t batch = args.xbc.size(0), time = args.xbc.size(1), of_groups = s.groups * s.state;
    const int64_t main = std::min<int64_t>(s.head_dim, 64), rest = s.head_dim - main;
    const Axis tokens{time, s.conv_channels() * 2, kChunk}, sequences{batch, time * s.conv_channels() * 2, 1};
    const Axis heads{s.heads, s.head_dim * 2, 2}, blocks{of_groups / 64, 128, s.state / 64};
    const Axis y_tokens{time, s.inner() * 2, 16}, y_sequences{batch, time * s.inner() * 2, 1};
    std::byte* bc = args.xbc.data + s.inner() * 2;
    ssd::ScanMaps maps{};
    maps.x = make_map(args.xbc.data, {{main, 2, main}, tokens, heads, sequences});
    maps.bc = make_map(bc, {{64, 2, 64}, tokens, blocks, {2, of_groups * 2, 2}, sequences});
    maps.b = make_map(bc, {{64, 2, 64}, tokens, blocks, sequences});
    maps.y = make_map(args.y.data, {{s.inner(), 2, main}, y_tokens, y_sequences});
    if (rest > 0) {
        maps.x_rest = make_map(args.xbc.data + main * 2, {{rest, 2, rest}, tokens, heads, sequences});
        maps.y_rest = make_map(args.y.data, {{s.inner(), 2, rest}, y_tokens, y_sequences});
    }
    return maps;
}

void launch_steps(const Context& context, const SsdForward& args, const Cut& cut, const Scratch& scratch) {
    const int64_t batch = args.xbc.size(0), time = args.xbc.size(1), projection = args.shape.projection();
    ssd::StepArgs steps{};
    steps.dt = reinterpret_cast<const __nv_bfloat16*>(args.zxbcdt.data) + projection - args.shape.heads;
    steps.dt_bias = args.dt_bias.as<float>();
    steps.a_log = args.a_log.as<float>();
    steps.steps = scratch.steps;
    steps.time = time;
    steps.projection = projection;
    steps.heads = narrow<int>(args.shape.heads);
    steps.chunks = cut.chunks;
    steps.dt_min = static_cast<float>(args.dt_min);
    steps.dt_max = static_cast<float>(args.dt_max);
    const dim3 grid(cut.chunks, static_cast<unsigned>(div_up(args.shape.heads, 32)),
                    static_cast<unsigned>(batch));
    ssd::take_steps<<<grid, 256, 0, context.stream>>>(steps);
    MP_CUDA_LAUNCHED();
    if (args.document) {
        take_marks<kChunk><<<dim3(cut.chunks, static_cast<unsigned>(batch)), kChunk, 0, context.stream>>>(
            args.document.as<int32_t>(), time, scratch.marks);
        MP_CUDA_LAUNCHED();
    }
}

template <class Kernel>
void launch(const Context& context, Kernel* kernel, int64_t blocks, int shared_bytes,
            const ssd::ScanMaps& maps, const ssd::ScanArgs& args) {
    MP_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    // The kernel begins while the one before ends, and waits for its results itself.
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context.stream;
    config.attrs = &early;
    config.numAttrs = 1;
    MP_CUDA(cudaLaunchKernelEx(&config, kernel, maps, args));
}

template <int kP, int kN, bool kDocuments>
void launch_scan(const Context& context, int64_t batch, const ssd::ScanMaps& maps,
                 const ssd::ScanArgs& args) {
    const int64_t pairs = args.heads / 2;
    if (args.cut.parts() > 0)
        launch(context, ssd::sum_parts<kP, kN, kDocuments>, pairs * args.cut.parts() * batch,
               ssd::Layout<kP, kN, true>::kBytes, maps, args);
    launch(context, ssd::scan<kP, kN, kDocuments>, pairs * args.cut.segments * batch,
           ssd::Layout<kP, kN, false>::kBytes, maps, args);
}

template <int kP, int kN>
void launch_scan(const Context& context, bool documents, int64_t batch, const ssd::ScanMaps& maps,
                 const ssd::ScanArgs& args) {
    documents ? launch_scan<kP, kN, true>(context, batch, maps, args)
              : launch_scan<kP, kN, false>(context, batch, maps, args);
}

ssd::ScanArgs make_scan_args(const SsdForward& args, const Cut& cut, const Scratch& scratch) {
    const MambaShape& shape = args.shape;
    ssd::ScanArgs scan;
    scan.cut = cut;
    scan.heads = narrow<int>(shape.heads);
    scan.heads_per_group = narrow<int>(shape.heads / shape.groups);
    scan.steps = scratch.steps;
    scan.marks = scratch.marks;
    scan.skip = args.d.as<float>();
    if (args.initial_state) scan.initial = args.initial_state.as<float>();
    if (args.final_state) scan.final_state = args.final_state.as<float>();
    if (args.chunk_states) {
        scan.chunk_states = args.chunk_states.as<float>();
        scan.state_every = narrow<int>(args.chunk / kChunk);
        scan.state_chunks = narrow<int>(div_up(args.xbc.size(1), args.chunk));
    }
    scan.part_states = scratch.part_states;
    scan.part_decays = scratch.part_decays;
    return scan;
}

void run_fast(const Context& context, const SsdForward& args) {
    const Cut cut = make_cut(args.shape, args.xbc.size(1));
    const Scratch scratch(args, cut, context.scratch);
    MP_ASSERT(scratch.bytes <= context.scratch_capacity);
    launch_steps(context, args, cut, scratch);
    const ssd::ScanArgs scan = make_scan_args(args, cut, scratch);
    const ssd::ScanMaps maps = make_maps(args);
    const int64_t batch = args.xbc.size(0), state = args.shape.state;
    const bool documents = bool(args.document);
    switch (args.shape.head_dim) {
        case 32:
            return state == 64 ? launch_scan<32, 64>(context, documents, batch, maps, scan)
                               : launch_scan<32, 128>(context, documents, batch, maps, scan);
        case 64:
            return state == 64    ? launch_scan<64, 64>(context, documents, batch, maps, scan)
                   : state == 128 ? launch_scan<64, 128>(context, documents, batch, maps, scan)
                                  : launch_scan<64, 256>(context, documents, batch, maps, scan);
        default:
            return state == 64 ? launch_scan<80, 64>(context, documents, batch, maps, scan)
                               : launch_scan<80, 128>(context, documents, batch, maps, scan);
    }
}

}  // namespace

int64_t scratch_bytes(const SsdForward& args) {
    const int64_t plain = ssd_plain_scratch_bytes(args);
    if (!may_be_fast(args)) return plain;
    return std::max(plain, Scratch(args, make_cut(args.shape, args.xbc.size(1)), nullptr).bytes);
}

void run(const Context& context, const SsdForward& args) {
    if (context.hopper_code && may_be_fast(args) && on_16_bytes(args.xbc.data) && on_16_bytes(args.y.data))
        run_fast(context, args);
    else
        ssd_forward_plain(context, args);
}

}  // namespace minipuzzle::cuda
