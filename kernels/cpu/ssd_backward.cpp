// The selective scan, backward. One task is one (sequence, group), which walks the row's segments from the
// last to the first and carries dS, the gradient of the state leaving a segment.
//
// With E_ij = e^{s_i - s_j} for i >= j, and sums inside the segment:
//   u_j  = e^{s_last - s_j} dS B_j + sum_{i>=j} (C_i . B_j) E_ij dy_i
//   dx_j = delta_j u_j + D dy_j,   d delta_j (direct) = u_j . x_j,   dD = sum dy . x
//   M_ij = sum over heads of (dy_i . x_j) delta_j E_ij
//   dB_j = sum over heads of e^{s_last - s_j} delta_j dS^T x_j + sum_{i>=j} M_ij C_i
//   dC_i = sum over heads of e^{s_i} S_in^T dy_i + sum_{j<=i} M_ij B_j
//   dS_in = e^{s_last} dS + sum_i e^{s_i} dy_i (outer) C_i
// The gradient of (delta A)_k is the sum over all paths that decay through token k:
//   sum_{i>=k} sum_{j<k} W_ij + sum_{j<k} V_j + sum_{i>=k} U_i + e^{s_last} <S_in, dS>
// with W_ij = (dy_i . x_j) delta_j E_ij (C_i . B_j), V_j = e^{s_last - s_j} delta_j x_j . (dS B_j),
// U_i = e^{s_i} dy_i . (S_in C_i). It is added up path by path: the shorter y . dy - delta d delta
// cancels.
//
// FLOPs per token: 10HPN + (Q+1)(2HP + 3GN).
#include <algorithm>
#include <cmath>

#include "kernels/cpu/ssd.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {
namespace {

template <class T>
struct BackwardSpace {
    int64_t stride, wide, narrow;  // of [Q, Q], [Q, R*P] and [Q, N] rows
    Steps<T> steps;
    T *cb, *d_cb;                       // [Q, stride]; d_cb is M
    T *score, *gram;                    // [kTile, stride]: (C_i . B_j) E_ij; dy_i . x_j, then W_ij
    T* paths;                           // [stride], sum of W_ij over the rows i from the current one on
    T *u, *weighted;                    // [Q, wide]: u; a scratch operand of the products over the state
    T *d_b, *d_c;                       // [Q, narrow]
    T* d_state;                         // [R*P, N]
    T* d_decay;                         // [R, stride], the gradient of delta A
    T *enters, *leaves;                 // [R, stride]: U, V
    double *d_dt_bias, *d_a_log, *d_d;  // [R], sums over the sequence

    struct Sizes {
        int64_t heads, channels, state, chunk;
    };
    BackwardSpace(Carver& carver, const Sizes& sizes)
        : stride(padded<T>(sizes.chunk)),
          wide(padded<T>(sizes.channels)),
          narrow(padded<T>(sizes.state)),
          steps(carver, sizes.heads, stride),
          cb(carver.take<T>(sizes.chunk * stride)),
          d_cb(carver.take<T>(sizes.chunk * stride)),
          score(carver.take<T>(kTile * stride)),
          gram(carver.take<T>(kTile * stride)),
          paths(carver.take<T>(stride)),
          u(carver.take<T>(sizes.chunk * wide)),
          weighted(carver.take<T>(sizes.chunk * wide)),
          d_b(carver.take<T>(sizes.chunk * narrow)),
          d_c(carver.take<T>(sizes.chunk * narrow)),
          d_state(carver.take<T>(sizes.channels * sizes.state)),
          d_decay(carver.take<T>(sizes.heads * stride)),
          enters(carver.take<T>(sizes.heads * stride)),
          leaves(carver.take<T>(sizes.heads * stride)),
          d_dt_bias(carver.take<double>(sizes.heads)),
          d_a_log(carver.take<double>(sizes.heads)),
          d_d(carver.take<double>(sizes.heads)) {}
};

// One (sequence, group) at one segment.
template <class T>
class SegmentBackward {
  public:
    SegmentBackward(const GroupView<T>& view, const Segment& segment, const T* d_y, const T* state_in,
                    BackwardSpace<T>& space)
        : view_(view), segment_(segment), q_(segment.count), d_y_(d_y), state_in_(state_in), s_(space) {}

    void run() {
        s_.steps.load(view_, segment_);
        multiply_cb(view_, segment_, s_.cb, s_.stride);
        for (int64_t i = 0; i < q_; ++i) std::fill_n(s_.d_cb + i * s_.stride, q_, T(0));
        through_the_end();
        through_the_start();
        for (int64_t h = 0; h < view_.heads; ++h) within_segment(h);
        add_d_cb();
        add_end_and_start_paths();
    }

    // Writes the segment's rows of d_xbc and of d_zxbcdt's dt part.
    void write(T* d_x, T* d_b, T* d_c, T* d_dt);

  private:
    T* row(T* matrix, int64_t i, int64_t head) const { return matrix + i * s_.wide + head * view_.head_dim; }
    const T* x(int64_t i, int64_t head) const {
        return view_.x + (segment_.begin + i) * view_.xbc_stride + head * view_.head_dim;
    }
    const T* d_y(int64_t i, int64_t head) const { return d_y_ + i * view_.inner + head * view_.head_dim; }
    MatrixMap<T> wide(T* data) const { return scratch_matrix(data, q_, view_.channels(), s_.wide); }
    MatrixMap<T> narrow(T* data) const { return scratch_matrix(data, q_, view_.state, s_.narrow); }
    ConstMatrixMap<T> state_matrix(const T* data) const {
        return {data, view_.channels(), view_.state, Eigen::OuterStride<>(view_.state)};
    }
    ConstMatrixMap<T> b() const { return view_.rows(view_.b, segment_, view_.state); }
    ConstMatrixMap<T> c() const { return view_.rows(view_.c, segment_, view_.state); }

    void through_the_end();
    void through_the_start();
    void within_segment(int64_t head);
    void tile_row(int64_t head, int64_t i, int64_t r, int64_t columns);
    void add_d_cb();
    void add_end_and_start_paths();

    const GroupView<T>& view_;
    const Segment& segment_;
    int64_t q_;
    const T* d_y_;       // row of the segment's first token, at the group's first channel
    const T* state_in_;  // null where it is zero and nobody's gradient depends on it
    BackwardSpace<T>& s_;
};

// The terms with dS, before it is moved past the segment: first part of u, V, first part of dB.
template <class T>
void SegmentBackward<T>::through_the_end() {
    wide(s_.u).noalias() = b() * state_matrix(s_.d_state).transpose();
    const int64_t p = view_.head_dim;
    for (int64_t j = 0; j < q_; ++j) {
        for (int64_t h = 0; h < view_.heads; ++h) {
            const int64_t at = h * s_.stride + j;
            const T decay = s_.steps.to_exit[at], weight = decay * s_.steps.delta[at];
            T *u = row(s_.u, j, h), *weighted = row(s_.weighted, j, h);
            s_.leaves[at] = weight * dot(x(j, h), u, p);
            for (int64_t k = 0; k < p; ++k) {
                u[k] *= decay;
                weighted[k] = weight * x(j, h)[k];
            }
        }
    }
    narrow(s_.d_b).noalias() = wide(s_.weighted) * state_matrix(s_.d_state);
}

// The terms with S_in: U, first part of dC, and dS moved to the segment's start.
template <class T>
void SegmentBackward<T>::through_the_start() {
    const int64_t p = view_.head_dim, elements = p * view_.state;
    if (!state_in_) {
        std::fill_n(s_.d_state, view_.state_elements(), T(0));
        std::fill_n(s_.enters, view_.heads * s_.stride, T(0));
        narrow(s_.d_c).setZero();
        return;
    }
    wide(s_.weighted).noalias() = c() * state_matrix(state_in_).transpose();
    for (int64_t i = 0; i < q_; ++i) {
        for (int64_t h = 0; h < view_.heads; ++h) {
            const int64_t at = h * s_.stride + i;
            T* weighted = row(s_.weighted, i, h);
            s_.enters[at] = s_.steps.from_entry[at] * dot(d_y(i, h), weighted, p);
            for (int64_t k = 0; k < p; ++k) weighted[k] = s_.steps.from_entry[at] * d_y(i, h)[k];
        }
    }
    narrow(s_.d_c).noalias() = wide(s_.weighted) * state_matrix(state_in_);
    for (int64_t h = 0; h < view_.heads; ++h) {
        T* d_state = s_.d_state + h * elements;
        s_.enters[h * s_.stride + q_ - 1] +=
            s_.steps.carry[h] * dot(state_in_ + h * elements, d_state, elements);
        for (int64_t k = 0; k < elements; ++k) d_state[k] *= s_.steps.carry[h];
    }
    scratch_matrix(s_.d_state, view_.channels(), view_.state, view_.state).noalias() +=
        wide(s_.weighted).transpose() * c();
}

// Row i of one head's triangle, row r of its tile: score, M, and W added to the paths from i on.
template <class T>
void SegmentBackward<T>::tile_row(int64_t head, int64_t i, int64_t r, int64_t columns) {
    const int64_t width = padded<T>(i + 1);
    AlignedVector<T> score(s_.score + r * s_.stride, width), gram(s_.gram + r * s_.stride, width);
    const AlignedVector<T> cb(s_.cb + i * s_.stride, width);
    const AlignedVector<T> delta(s_.steps.delta + head * s_.stride, width);
    s_.steps.decays_to(head, i, width, score);
    gram *= score * delta;
    score *= cb;
    std::fill(score.data() + i + 1, score.data() + std::max(columns, width), T(0));
    AlignedVector<T>(s_.d_cb + i * s_.stride, i + 1) += gram.head(i + 1);
    AlignedVector<T>(s_.paths, i + 1) += gram.head(i + 1) * cb.head(i + 1);
}

// Pairs of tokens of the segment for one head, tiles and rows from the last to the first.
template <class T>
void SegmentBackward<T>::within_segment(int64_t head) {
    const int64_t p = view_.head_dim, at = head * s_.stride;
    std::fill_n(s_.paths, s_.stride, T(0));
    for (int64_t i0 = (q_ - 1) / kTile * kTile; i0 >= 0; i0 -= kTile) {
        const int64_t rows = std::min(kTile, q_ - i0), columns = i0 + rows;
        const ConstMatrixMap<T> d_y_tile(d_y(i0, head), rows, p, Eigen::OuterStride<>(view_.inner));
        const ConstMatrixMap<T> x_rows(x(0, head), columns, p, Eigen::OuterStride<>(view_.xbc_stride));
        scratch_matrix(s_.gram, rows, columns, s_.stride).noalias() = d_y_tile * x_rows.transpose();
        for (int64_t i = i0 + rows - 1; i >= i0; --i) {
            tile_row(head, i, i - i0, columns);
            s_.d_decay[at + i] = AlignedVector<T>(s_.paths, i).sum();
        }
        scratch_matrix(row(s_.u, 0, head), columns, p, s_.wide).noalias() +=
            scratch_matrix(s_.score, rows, columns, s_.stride).transpose() * d_y_tile;
    }
}

// dB += M^T C and dC += M B, tile by tile of the triangle.
template <class T>
void SegmentBackward<T>::add_d_cb() {
    for (int64_t i0 = 0; i0 < q_; i0 += kTile) {
        const int64_t rows = std::min(kTile, q_ - i0), columns = i0 + rows;
        const auto tile = scratch_matrix(s_.d_cb + i0 * s_.stride, rows, columns, s_.stride);
        narrow(s_.d_b).topRows(columns).noalias() += tile.transpose() * c().middleRows(i0, rows);
        narrow(s_.d_c).middleRows(i0, rows).noalias() += tile * b().topRows(columns);
    }
}

// V of the tokens before k and U of those from k on.
template <class T>
void SegmentBackward<T>::add_end_and_start_paths() {
    for (int64_t h = 0; h < view_.heads; ++h) {
        const int64_t at = h * s_.stride;
        T before = 0, after = 0;
        for (int64_t k = 0; k < q_; ++k) {
            s_.d_decay[at + k] += before;
            before += s_.leaves[at + k];
        }
        for (int64_t k = q_ - 1; k >= 0; --k) {
            after += s_.enters[at + k];
            s_.d_decay[at + k] += after;
        }
    }
}

template <class T>
void SegmentBackward<T>::write(T* d_x, T* d_b, T* d_c, T* d_dt) {
    const int64_t p = view_.head_dim;
    for (int64_t t = 0; t < q_; ++t) {
        for (int64_t h = 0; h < view_.heads; ++h) {
            const int64_t at = h * s_.stride + t;
            const T delta = s_.steps.delta[at], a = view_.a(h), skip = view_.d[h];
            const T *in = x(t, h), *d_out = d_y(t, h), *u = row(s_.u, t, h);
            T* d_in = d_x + t * view_.xbc_stride + h * p;
            for (int64_t k = 0; k < p; ++k) d_in[k] = delta * u[k] + skip * d_out[k];
            const T d_raw = (a * s_.d_decay[at] + dot(u, in, p)) * s_.steps.slope[at];
            d_dt[t * view_.projection + h] = d_raw;
            s_.d_dt_bias[h] += static_cast<double>(d_raw);
            s_.d_a_log[h] += static_cast<double>(a * s_.d_decay[at] * delta);
            s_.d_d[h] += static_cast<double>(dot(d_out, in, p));
        }
        std::copy_n(s_.d_b + t * s_.narrow, view_.state, d_b + t * view_.xbc_stride);
        std::copy_n(s_.d_c + t * s_.narrow, view_.state, d_c + t * view_.xbc_stride);
    }
}

template <class T>
void scan_group_backward(const GroupView<T>& view, const SsdBackward& args, int64_t sequence,
                         BackwardSpace<T>& space) {
    const int64_t elements = view.state_elements(), chunks = div_up(view.time, args.chunk);
    const int64_t first_row = sequence * view.time;
    if (args.d_final_state) {
        std::copy_n(args.d_final_state.as<T>() + view.state_offset(sequence), elements, space.d_state);
    } else {
        std::fill_n(space.d_state, elements, T(0));
    }
    for (double* sums : {space.d_dt_bias, space.d_a_log, space.d_d}) std::fill_n(sums, view.heads, 0.0);
    const auto segments = cut_row(view.document, view.time, args.chunk);
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        const int64_t token = first_row + segment->begin;
        const T* chunk_state =
            args.chunk_states.as<T>() + view.state_offset(sequence * chunks + segment->chunk);
        SegmentBackward<T> step(view, *segment,
                                args.d_y.as<T>() + token * view.inner + view.first_head * view.head_dim,
                                segment->opens_document ? nullptr : chunk_state, space);
        step.run();
        T* d_row = args.d_xbc.as<T>() + token * view.xbc_stride;
        const T* row = args.xbc.as<T>() + first_row * view.xbc_stride;
        step.write(d_row + (view.x - row), d_row + (view.b - row), d_row + (view.c - row),
                   args.d_zxbcdt.as<T>() + (token + 1) * view.projection - view.all_heads + view.first_head);
    }
    if (args.d_initial_state)
        std::copy_n(space.d_state, elements, args.d_initial_state.as<T>() + view.state_offset(sequence));
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const SsdBackward& args) {
    validate(args);
    const int64_t groups = args.shape.groups, heads = args.shape.heads, batch = args.xbc.size(0);
    const int64_t bytes = batch * heads * int64_t{sizeof(double)} + kScratchAlignment;
    Carver shared(pool_.shared_scratch(3 * bytes));
    double* d_dt_bias = shared.take<double>(batch * heads);  // one row per sequence
    double* d_a_log = shared.take<double>(batch * heads);
    double* d_d = shared.take<double>(batch * heads);
    pool_.parallel_for(batch * groups, [&](int64_t task, int worker) {
        const GroupView<T> view(args, task / groups, task % groups);
        const typename BackwardSpace<T>::Sizes sizes{view.heads, view.channels(), view.state,
                                                     std::min(args.chunk, std::max<int64_t>(view.time, 1))};
        auto space = carve<BackwardSpace<T>>(pool_, worker, sizes);
        scan_group_backward(view, args, task / groups, space);
        const int64_t at = task / groups * heads + view.first_head;
        std::copy_n(space.d_dt_bias, view.heads, d_dt_bias + at);
        std::copy_n(space.d_a_log, view.heads, d_a_log + at);
        std::copy_n(space.d_d, view.heads, d_d + at);
    });
    add_partials(d_dt_bias, batch, heads, args.d_dt_bias.as<T>());
    add_partials(d_a_log, batch, heads, args.d_a_log.as<T>());
    add_partials(d_d, batch, heads, args.d_d.as<T>());
}

template void CpuBackend<float>::run(const SsdBackward&);
template void CpuBackend<double>::run(const SsdBackward&);

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
