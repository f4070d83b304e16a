// What the forward and the backward selective scan share: how a row is cut into segments, the view of one
// group of heads, step sizes and decays. The algorithm is the chunked state space duality of Dao & Gu 2024,
// section 6. Inside a segment of q tokens, with s_i the running sum of delta A up to and with token i,
//   y_i = e^{s_i} S_in C_i + sum_{j<=i} (C_i . B_j) e^{s_i - s_j} delta_j x_j + D x_i
//   S_out = e^{s_last} S_in + sum_j e^{s_last - s_j} delta_j x_j (outer) B_j
// so nearly all work is matrix products. All heads of a group share B and C: products over the state take the
// group's heads as one matrix of R*P columns (R heads of P channels).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/scratch.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

// Tokens [begin, begin + count) of a row, all of one chunk and one document. Chunks are cut at document
// boundaries, so tokens of different documents never meet in a product and need no mask.
struct Segment {
    int64_t begin = 0, count = 0;
    int64_t chunk = 0;
    bool opens_chunk = false;     // the first segment of its chunk
    bool opens_document = false;  // of a document that is not the row's first: the state entering is zero
};

inline std::vector<Segment> cut_row(const int32_t* document, int64_t time, int64_t chunk) {
    std::vector<Segment> segments;
    for (int64_t t = 0; t < time; ++t) {
        const bool opens_chunk = t % chunk == 0;
        const bool opens_document = document && t > 0 && document[t] != document[t - 1];
        if (opens_chunk || opens_document) segments.push_back({t, 0, t / chunk, opens_chunk, opens_document});
        ++segments.back().count;
    }
    return segments;
}

// One group of heads of one sequence. Row strides are in elements.
template <class T>
struct GroupView {
    int64_t time, heads, head_dim, state;  // heads: of the group
    int64_t first_head, all_heads;
    int64_t xbc_stride, projection, inner;
    const int32_t* document;
    const T *x, *b, *c, *dt;       // of token 0
    const T *dt_bias, *a_log, *d;  // of the first head
    T dt_min, dt_max;

    template <class Args>
    GroupView(const Args& args, int64_t sequence, int64_t group);

    int64_t channels() const { return heads * head_dim; }
    int64_t state_elements() const { return channels() * state; }
    // Where the group's state lies in a [.., all_heads, P, N] tensor whose first axes are folded into `row`.
    int64_t state_offset(int64_t row) const { return (row * all_heads + first_head) * head_dim * state; }
    T a(int64_t head) const { return -std::exp(a_log[head]); }
    // A segment's rows of x, b or c.
    ConstMatrixMap<T> rows(const T* token0, const Segment& segment, int64_t width) const {
        return {token0 + segment.begin * xbc_stride, segment.count, width, Eigen::OuterStride<>(xbc_stride)};
    }
};

template <class T>
template <class Args>
GroupView<T>::GroupView(const Args& args, int64_t sequence, int64_t group)
    : time(args.xbc.size(1)),
      heads(args.shape.heads / args.shape.groups),
      head_dim(args.shape.head_dim),
      state(args.shape.state),
      first_head(group * heads),
      all_heads(args.shape.heads),
      xbc_stride(args.shape.conv_channels()),
      projection(args.shape.projection()),
      inner(args.shape.inner()),
      document(args.document ? args.document.template as<int32_t>() + sequence * time : nullptr),
      dt_bias(args.dt_bias.template as<T>() + first_head),
      a_log(args.a_log.template as<T>() + first_head),
      d(args.d.template as<T>() + first_head),
      dt_min(static_cast<T>(args.dt_min)),
      dt_max(static_cast<T>(args.dt_max)) {
    const T* row = args.xbc.template as<T>() + sequence * time * xbc_stride;
    x = row + first_head * head_dim;
    b = row + inner + group * state;
    c = b + args.shape.groups * state;
    dt = args.zxbcdt.template as<T>() + (sequence * time + 1) * projection - all_heads + first_head;
}

// A decay below e^kFaintest is taken as e^kFaintest: it vanishes beside the 1 of the diagonal, and the
// products stay clear of denormals, which are slow.
template <class T>
inline constexpr T kFaintest = sizeof(T) == 4 ? T(-60) : T(-600);

// Step sizes and decays of a segment, per head; every row is `stride` long and 64-byte aligned.
template <class T>
struct Steps {
    int64_t stride;
    T *delta, *slope;         // clamp(softplus(v)) with v = dt + dt_bias; its derivative by v
    T *high, *low;            // s_i = high + low: twice the digits, as only differences of it matter
    T *from_entry, *to_exit;  // e^{s_i}, e^{s_last - s_i}
    T* carry;                 // [heads], e^{s_last}

    Steps(Carver& carver, int64_t heads, int64_t row_stride)
        : stride(row_stride),
          delta(carver.take<T>(heads * stride)),
          slope(carver.take<T>(heads * stride)),
          high(carver.take<T>(heads * stride)),
          low(carver.take<T>(heads * stride)),
          from_entry(carver.take<T>(heads * stride)),
          to_exit(carver.take<T>(heads * stride)),
          carry(carver.take<T>(heads)) {}

    void load(const GroupView<T>& view, const Segment& segment) {
        for (int64_t h = 0; h < view.heads; ++h) load_head(view, segment, h);
    }

    // e^{s_i - s_j} for j in [0, width) into `out`; the entries beyond i are at most 1 and mean nothing.
    void decays_to(int64_t head, int64_t i, int64_t width, AlignedVector<T>& out) const {
        const AlignedVector<T> highs(high + head * stride, width), lows(low + head * stride, width);
        const T high_i = high[head * stride + i], low_i = low[head * stride + i];
        out = ((high_i - highs) + (low_i - lows)).min(T(0)).max(kFaintest<T>).exp();
    }

  private:
    void load_head(const GroupView<T>& view, const Segment& segment, int64_t h);
};

template <class T>
void Steps<T>::load_head(const GroupView<T>& view, const Segment& segment, int64_t h) {
    const int64_t q = segment.count, at = h * stride;
    AlignedVector<T> steps(delta + at, stride), slopes(slope + at, stride), highs(high + at, stride);
    AlignedVector<T> lows(low + at, stride), entry(from_entry + at, stride), exit(to_exit + at, stride);
    AlignedVector<T>& v = lows;  // until the running sums need it
    v.setZero();
    for (int64_t i = 0; i < q; ++i)
        v[i] = view.dt[(segment.begin + i) * view.projection + h] + view.dt_bias[h];
    steps = v.min(T(20)).exp().log1p();  // softplus, taken as v itself beyond 20
    slopes = T(1) / (T(1) + (-v).exp());
    for (int64_t i = 0; i < q; ++i) {
        const T softplus = v[i] > T(20) ? v[i] : steps[i];
        steps[i] = std::min(std::max(softplus, view.dt_min), view.dt_max);
        if (softplus < view.dt_min || softplus > view.dt_max) slopes[i] = 0;
    }
    const T a = view.a(h);
    highs.setZero();
    lows.setZero();
    double sum = 0;
    for (int64_t i = 0; i < q; ++i) {
        sum += static_cast<double>(steps[i] * a);
        highs[i] = static_cast<T>(sum);
        lows[i] = static_cast<T>(sum - static_cast<double>(highs[i]));
    }
    const T high_last = highs[q - 1], low_last = lows[q - 1];
    entry = (highs + lows).min(T(0)).max(kFaintest<T>).exp();
    exit = ((high_last - highs) + (low_last - lows)).min(T(0)).max(kFaintest<T>).exp();
    carry[h] = entry[q - 1];
}

// Tokens of one tile: the lower triangle of C B^T is covered by row tiles [i0, i0 + kTile) x [0, i0 + kTile).
inline constexpr int64_t kTile = 32;

// A row-major matrix in scratch. Products are assigned to these only: for tiny sizes Eigen's order of
// summation depends on the destination's address, and scratch offsets depend on shapes alone.
template <class T>
MatrixMap<T> scratch_matrix(T* data, int64_t rows, int64_t columns, int64_t stride) {
    return {data, rows, columns, Eigen::OuterStride<>(stride)};
}

// cb[i, j] = C_i . B_j, the tiles on and below the diagonal only.
template <class T>
void multiply_cb(const GroupView<T>& view, const Segment& segment, T* cb, int64_t stride) {
    const auto b = view.rows(view.b, segment, view.state), c = view.rows(view.c, segment, view.state);
    for (int64_t i = 0; i < segment.count; i += kTile) {
        const int64_t rows = std::min(kTile, segment.count - i);
        scratch_matrix(cb + i * stride, rows, i + rows, stride).noalias() =
            c.middleRows(i, rows) * b.topRows(i + rows).transpose();
    }
}

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
