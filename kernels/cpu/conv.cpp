// The causal depthwise convolution of the Mamba-2 mixer, followed by SiLU, and its gradient.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/scratch.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {
namespace {

// Channels of one backward task.
constexpr int64_t kChannelBlock = 128;

// What forward and backward read, over channels [first, first + width) of sequence b.
template <class T>
struct ConvView {
    int64_t time, taps, width, row_stride;
    const T* rows;            // pre-conv values of token 0
    const int32_t* document;  // of token 0, or null
    const T *weight, *bias;   // of the first channel
    const T* initial;         // [width, taps-1], or null

    template <class Args>
    ConvView(const Args& args, int64_t b, int64_t first, int64_t channels)
        : time(args.zxbcdt.size(1)),
          taps(args.shape.conv_kernel),
          width(channels),
          row_stride(args.shape.projection()),
          rows(args.zxbcdt.template as<T>() + b * time * row_stride + args.shape.inner() + first),
          document(args.document ? args.document.template as<int32_t>() + b * time : nullptr),
          weight(args.weight.template as<T>() + first * taps),
          bias(args.bias ? args.bias.template as<T>() + first : nullptr),
          initial(args.initial_state ? args.initial_state.template as<T>() +
                                           (b * args.shape.conv_channels() + first) * (taps - 1)
                                     : nullptr) {}

    // Whether tokens `from` <= t see each other; positions before the row belong to its first document.
    bool same_document(int64_t from, int64_t t) const {
        return !document || document[std::max<int64_t>(from, 0)] == document[t];
    }
};

// Channel-contiguous copies of the weight and the initial state, and one token's values.
template <class T>
struct ConvSpace {
    int64_t stride;
    T *weight, *initial;         // [taps, stride], [taps-1, stride]
    AlignedVector<T> sum, gate;  // before SiLU, and its sigmoid

    ConvSpace(Carver& carver, const ConvView<T>& view)
        : stride(padded<T>(view.width)),
          weight(carver.take<T>(view.taps * stride)),
          initial(carver.take<T>(view.taps * stride)),
          sum(carver.take<T>(stride), view.width),
          gate(carver.take<T>(stride), view.width) {}

    void load(const ConvView<T>& view) {
        const int64_t taps = view.taps;
        for (int64_t c = 0; c < view.width; ++c) {
            for (int64_t k = 0; k < taps; ++k) weight[k * stride + c] = view.weight[c * taps + k];
            for (int64_t k = 0; view.initial && k + 1 < taps; ++k)
                initial[k * stride + c] = view.initial[c * (taps - 1) + k];
        }
    }

    // The values that tap k of token t multiplies, or null where there are none.
    const T* tapped(const ConvView<T>& view, int64_t t, int64_t k) const {
        const int64_t from = t - (view.taps - 1) + k;
        if (!view.same_document(from, t)) return nullptr;
        if (from >= 0) return view.rows + from * view.row_stride;
        return view.initial ? initial + (from + view.taps - 1) * stride : nullptr;
    }

    void convolve(const ConvView<T>& view, int64_t t) {
        if (view.bias) {
            sum = ConstVector<T>(view.bias, view.width);
        } else {
            sum.setZero();
        }
        for (int64_t k = 0; k < view.taps; ++k) {
            if (const T* values = tapped(view, t, k))
                sum += ConstVector<T>(weight + k * stride, view.width) * ConstVector<T>(values, view.width);
        }
        gate = T(1) / (T(1) + (-sum).exp());
    }
};

template <class T>
struct ConvBackwardSpace : ConvSpace<T> {
    AlignedVector<T> d_sum;
    T* d_initial;          // [taps-1, stride]
    TokenSum<T> d_weight;  // [taps, stride]
    TokenSum<T> d_bias;

    ConvBackwardSpace(Carver& carver, const ConvView<T>& view)
        : ConvSpace<T>(carver, view),
          d_sum(carver.take<T>(this->stride), view.width),
          d_initial(carver.take<T>(view.taps * this->stride)),
          d_weight(carver, view.taps * this->stride),
          d_bias(carver, view.width) {}

    // Adds token t's gradient, d_xbc being that of its output, to the rows of `d_rows` its taps read.
    void add_token(const ConvView<T>& view, int64_t t, const T* d_xbc, T* d_rows) {
        const int64_t width = view.width, row = this->stride;
        this->convolve(view, t);
        d_sum = ConstVector<T>(d_xbc, width) * this->gate * (T(1) + this->sum * (T(1) - this->gate));
        Vector<T>(d_bias.span(), width) += d_sum;
        d_bias.next();
        Vector<T>(d_rows + t * view.row_stride, width).setZero();
        for (int64_t k = 0; k < view.taps; ++k) {
            const int64_t from = t - (view.taps - 1) + k;
            if (!view.same_document(from, t)) continue;
            T* target =
                from >= 0 ? d_rows + from * view.row_stride : d_initial + (from + view.taps - 1) * row;
            Vector<T>(target, width) += ConstVector<T>(this->weight + k * row, width) * d_sum;
            if (const T* values = this->tapped(view, t, k))
                Vector<T>(d_weight.span() + k * row, width) += ConstVector<T>(values, width) * d_sum;
        }
        d_weight.next();
    }
};

// The last taps-1 pre-conv values of the last token's document, older ones zero; [width, taps-1].
template <class T>
void keep_final_state(const ConvView<T>& view, T* final_state) {
    const int64_t kept = view.taps - 1;
    for (int64_t k = 0; k < kept; ++k) {
        const int64_t from = view.time - kept + k;
        const bool seen = view.time == 0 || view.same_document(from, view.time - 1);
        for (int64_t c = 0; c < view.width; ++c) {
            T value = 0;
            if (seen && from >= 0) value = view.rows[from * view.row_stride + c];
            if (seen && from < 0 && view.initial) value = view.initial[c * kept + from + kept];
            final_state[c * kept + k] = value;
        }
    }
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const ConvForward& args) {
    validate(args);
    const int64_t batch = args.xbc.size(0), time = args.xbc.size(1), channels = args.shape.conv_channels();
    const int64_t blocks = div_up(time, kRowBlock);
    pool_.parallel_for(batch * blocks, [&](int64_t task, int worker) {
        const int64_t b = task / blocks, begin = task % blocks * kRowBlock;
        const ConvView<T> view(args, b, 0, channels);
        auto space = carve<ConvSpace<T>>(pool_, worker, view);
        space.load(view);
        for (int64_t t = begin; t < std::min(begin + kRowBlock, time); ++t) {
            space.convolve(view, t);
            Vector<T>(args.xbc.as<T>() + (b * time + t) * channels, channels) = space.sum * space.gate;
        }
    });
    if (!args.final_state) return;
    const int64_t kept = channels * (args.shape.conv_kernel - 1);
    for (int64_t b = 0; b < batch; ++b)
        keep_final_state(ConvView<T>(args, b, 0, channels), args.final_state.as<T>() + b * kept);
}

template <class T>
void CpuBackend<T>::run(const ConvBackward& args) {
    validate(args);
    const int64_t batch = args.d_xbc.size(0), time = args.d_xbc.size(1);
    const int64_t channels = args.shape.conv_channels(), taps = args.shape.conv_kernel;
    const int64_t blocks = div_up(channels, kChannelBlock);
    Carver shared(pool_.shared_scratch(batch * channels * (taps + 1) * int64_t{sizeof(double)} +
                                       2 * kScratchAlignment));
    double* d_weight = shared.take<double>(batch * channels * taps);  // one row per sequence
    double* d_bias = shared.take<double>(batch * channels);
    pool_.parallel_for(batch * blocks, [&](int64_t task, int worker) {
        const int64_t b = task / blocks, first = task % blocks * kChannelBlock;
        const ConvView<T> view(args, b, first, std::min(kChannelBlock, channels - first));
        auto space = carve<ConvBackwardSpace<T>>(pool_, worker, view);
        space.load(view);
        space.d_weight.reset();
        space.d_bias.reset();
        std::fill_n(space.d_initial, taps * space.stride, T(0));
        const T* d_xbc = args.d_xbc.as<T>() + b * time * channels + first;
        T* d_rows = args.d_zxbcdt.as<T>() + b * time * view.row_stride + args.shape.inner() + first;
        for (int64_t t = 0; t < time; ++t) space.add_token(view, t, d_xbc + t * channels, d_rows);
        const double* weight_sums = space.d_weight.total();
        for (int64_t c = 0; c < view.width; ++c) {
            for (int64_t k = 0; k < taps; ++k)
                d_weight[(b * channels + first + c) * taps + k] = weight_sums[k * space.stride + c];
            for (int64_t k = 0; args.d_initial_state && k + 1 < taps; ++k)
                args.d_initial_state.as<T>()[(b * channels + first + c) * (taps - 1) + k] =
                    space.d_initial[k * space.stride + c];
        }
        std::copy_n(space.d_bias.total(), view.width, d_bias + b * channels + first);
    });
    add_partials(d_weight, batch, channels * taps, args.d_weight.as<T>());
    if (args.d_bias) add_partials(d_bias, batch, channels, args.d_bias.as<T>());
}

template void CpuBackend<float>::run(const ConvForward&);
template void CpuBackend<double>::run(const ConvForward&);
template void CpuBackend<float>::run(const ConvBackward&);
template void CpuBackend<double>::run(const ConvBackward&);

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
