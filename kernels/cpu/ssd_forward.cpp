// The selective scan, forward. One task is one (sequence, group): it walks the row's segments in order and
// carries the states of the group's heads.
//
// FLOPs per token: 4HPN (state in, state out) + (Q+1)(HP+GN) (the lower triangles of C B^T and of its product
// with x).
#include <algorithm>
#include <cmath>

#include "kernels/cpu/ssd.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {
namespace {

template <class T>
struct ForwardSpace {
    int64_t stride;  // of [Q, Q] rows, a multiple of the alignment
    int64_t wide;    // of [Q, R*P] rows
    Steps<T> steps;
    T* cb;      // [Q, stride]
    T* score;   // [kTile, stride], (C_i . B_j) e^{s_i - s_j}
    T* scaled;  // [Q, wide], delta x, later times the decay to the segment's end
    T* y;       // [Q, wide]
    T* state;   // [R*P, N]

    struct Sizes {
        int64_t heads, channels, state, chunk;
    };
    ForwardSpace(Carver& carver, const Sizes& sizes)
        : stride(padded<T>(sizes.chunk)),
          wide(padded<T>(sizes.channels)),
          steps(carver, sizes.heads, stride),
          cb(carver.take<T>(sizes.chunk * stride)),
          score(carver.take<T>(kTile * stride)),
          scaled(carver.take<T>(sizes.chunk * wide)),
          y(carver.take<T>(sizes.chunk * wide)),
          state(carver.take<T>(sizes.channels * sizes.state)) {}
};

// y_i = e^{s_i} S_in C_i + D x_i for every head, and scaled_j = delta_j x_j.
template <class T>
void start_outputs(const GroupView<T>& view, const Segment& segment, ForwardSpace<T>& space) {
    auto y = scratch_matrix(space.y, segment.count, view.channels(), space.wide);
    const auto state = scratch_matrix(space.state, view.channels(), view.state, view.state);
    y.noalias() = view.rows(view.c, segment, view.state) * state.transpose();
    const int64_t p = view.head_dim;
    for (int64_t i = 0; i < segment.count; ++i) {
        const T* x = view.x + (segment.begin + i) * view.xbc_stride;
        for (int64_t h = 0; h < view.heads; ++h) {
            const T decay = space.steps.from_entry[h * space.stride + i];
            const T delta = space.steps.delta[h * space.stride + i], skip = view.d[h];
            T *out = space.y + i * space.wide + h * p, *scaled = space.scaled + i * space.wide + h * p;
            const T* in = x + h * p;
            for (int64_t k = 0; k < p; ++k) {
                out[k] = decay * out[k] + skip * in[k];
                scaled[k] = delta * in[k];
            }
        }
    }
}

// y_i += sum_{j<=i} (C_i . B_j) e^{s_i - s_j} delta_j x_j for one head, a tile of rows at a time.
template <class T>
void add_within_segment(const GroupView<T>& view, const Segment& segment, ForwardSpace<T>& space,
                        int64_t head) {
    const int64_t p = view.head_dim, wide = space.wide, stride = space.stride;
    for (int64_t i0 = 0; i0 < segment.count; i0 += kTile) {
        const int64_t rows = std::min(kTile, segment.count - i0), columns = i0 + rows;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t i = i0 + r, width = padded<T>(i + 1);
            AlignedVector<T> score(space.score + r * stride, width);
            space.steps.decays_to(head, i, width, score);
            score *= AlignedVector<T>(space.cb + i * stride, width);
            std::fill(space.score + r * stride + i + 1, space.score + r * stride + columns, T(0));
        }
        scratch_matrix(space.y + i0 * wide + head * p, rows, p, wide).noalias() +=
            scratch_matrix(space.score, rows, columns, stride) *
            scratch_matrix(space.scaled + head * p, columns, p, wide);
    }
}

// S_out = e^{s_last} S_in + sum_j e^{s_last - s_j} delta_j x_j (outer) B_j.
template <class T>
void advance_state(const GroupView<T>& view, const Segment& segment, ForwardSpace<T>& space) {
    const int64_t p = view.head_dim;
    for (int64_t j = 0; j < segment.count; ++j) {
        for (int64_t h = 0; h < view.heads; ++h) {
            const T decay = space.steps.to_exit[h * space.stride + j];
            T* scaled = space.scaled + j * space.wide + h * p;
            for (int64_t k = 0; k < p; ++k) scaled[k] *= decay;
        }
    }
    for (int64_t h = 0; h < view.heads; ++h) {
        T* state = space.state + h * p * view.state;
        for (int64_t k = 0; k < p * view.state; ++k) state[k] *= space.steps.carry[h];
    }
    scratch_matrix(space.state, view.channels(), view.state, view.state).noalias() +=
        scratch_matrix(space.scaled, segment.count, view.channels(), space.wide).transpose() *
        view.rows(view.b, segment, view.state);
}

template <class T>
void scan_group(const GroupView<T>& view, const SsdForward& args, int64_t sequence, ForwardSpace<T>& space) {
    const int64_t elements = view.state_elements(), chunks = div_up(view.time, args.chunk);
    if (args.initial_state) {
        std::copy_n(args.initial_state.as<T>() + view.state_offset(sequence), elements, space.state);
    } else {
        std::fill_n(space.state, elements, T(0));
    }
    T* y = args.y.as<T>() + sequence * view.time * view.inner + view.first_head * view.head_dim;
    for (const Segment& segment : cut_row(view.document, view.time, args.chunk)) {
        if (segment.opens_document) std::fill_n(space.state, elements, T(0));
        if (segment.opens_chunk && args.chunk_states)
            std::copy_n(space.state, elements,
                        args.chunk_states.as<T>() + view.state_offset(sequence * chunks + segment.chunk));
        space.steps.load(view, segment);
        multiply_cb(view, segment, space.cb, space.stride);
        start_outputs(view, segment, space);
        for (int64_t h = 0; h < view.heads; ++h) add_within_segment(view, segment, space, h);
        for (int64_t i = 0; i < segment.count; ++i)
            std::copy_n(space.y + i * space.wide, view.channels(), y + (segment.begin + i) * view.inner);
        advance_state(view, segment, space);
    }
    if (args.final_state)
        std::copy_n(space.state, elements, args.final_state.as<T>() + view.state_offset(sequence));
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const SsdForward& args) {
    validate(args);
    const int64_t groups = args.shape.groups;
    pool_.parallel_for(args.xbc.size(0) * groups, [&](int64_t task, int worker) {
        const GroupView<T> view(args, task / groups, task % groups);
        const typename ForwardSpace<T>::Sizes sizes{view.heads, view.channels(), view.state,
                                                    std::min(args.chunk, std::max<int64_t>(view.time, 1))};
        auto space = carve<ForwardSpace<T>>(pool_, worker, sizes);
        scan_group(view, args, task / groups, space);
    });
}

template void CpuBackend<float>::run(const SsdForward&);
template void CpuBackend<double>::run(const SsdForward&);

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
