// One pass over the vocabulary in tiles that stay in cache: a tile of base logits is formed once, then each
// variant's tile is held against it. Sums are kept relative to the running maxima (online softmax, Milakov &
// Gimelshein 2018) and across tiles in double. With p the base's distribution and d = z - z_base,
// KL(base || variant) = lse - lse_base - sum_v p_v d_v.
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

// Token rows of a task: with 512 columns, the tiles of base, its exponentials, a variant and a head 192 wide
// fit a 1 MiB cache together.
constexpr int64_t kRows = 64;
constexpr int64_t kTile = kColumnBlock;

// One row's softmax so far.
struct RowState {
    double largest = -std::numeric_limits<double>::infinity();
    double sum = 0;  // sum exp(z - largest)
    int64_t argmax = 0;
    double target = 0;  // the target's logit

    double lse() const { return largest + std::log(sum); }
    double loss() const { return lse() - target; }

    // Takes in the maximum of the next tile; gives the factor by which sums relative to `largest` shrink.
    template <class T>
    double raise(const T* row, int64_t n, int64_t column) {
        const T tile_largest = finite_max(row, n);
        if (tile_largest <= largest) return 1;
        const double factor = std::exp(largest - tile_largest);
        largest = tile_largest;
        argmax = column + (std::find(row, row + n, tile_largest) - row);
        sum *= factor;
        return factor;
    }
};

// What a variant's row adds up against the base.
struct ComparisonState {
    RowState row;
    double weighted = 0;  // sum exp(z_base - largest_base) * (z - z_base)
    double error = 0;     // sum (z - z_base)^2
};

// Logits of a block of rows against one tile of the vocabulary.
template <class T>
void form_logits(const LmHead& lm, Block rows, Block tile, T* logits) {
    const int64_t width = lm.hidden.columns();
    matrix(logits, rows.count, tile.count, kTile).noalias() =
        matrix<T>(lm.hidden.as<T>() + rows.begin * width, rows.count, width, width) *
        matrix<T>(lm.head.as<T>() + tile.begin * width, tile.count, width, width).transpose();
}

template <class T>
void take_target(RowState& state, int32_t target, Block tile, const T* row) {
    if (target >= tile.begin && target < tile.end()) state.target = row[target - tile.begin];
}

template <class T>
void set(const Tensor& tensor, int64_t row, double value) {
    if (tensor) tensor.as<T>()[row] = static_cast<T>(value);
}

// One task: a block of rows, the base and every variant.
template <class T>
class RowComparison {
  public:
    RowComparison(const CompareLogits& args, Block rows, std::byte* memory)
        : args_(args), rows_(rows), targets_(args.targets.as<int32_t>()) {
        const int64_t states = static_cast<int64_t>(args.variants.size()) * kRows;
        base_ = new (memory) BaseRow[kRows];
        memory += kRows * sizeof(BaseRow);
        variants_ = new (memory) ComparisonState[states];
        memory += states * sizeof(ComparisonState);
        base_logits_ = reinterpret_cast<T*>(memory);
        base_exp_ = base_logits_ + kRows * kTile;
        logits_ = base_exp_ + kRows * kTile;
    }

    static int64_t scratch_bytes(const CompareLogits& args) {
        const int64_t states = static_cast<int64_t>(args.variants.size()) * kRows;
        return kRows * sizeof(BaseRow) + states * sizeof(ComparisonState) + 3 * kRows * kTile * sizeof(T);
    }

    void run() {
        bool any_live = false;
        for (int64_t i = 0; i < rows_.count; ++i) any_live |= !masked(i);
        const Blocks tiles{any_live ? args_.base.head.size(0) : 0, kTile};
        for (int64_t index = 0; index < tiles.count(); ++index) {
            const Block tile = tiles[index];
            take_base(tile);
            for (size_t v = 0; v < args_.variants.size(); ++v) take_variant(v, tile);
        }
        for (int64_t i = 0; i < rows_.count; ++i) write_row(i);
    }

  private:
    struct BaseRow {
        RowState row;
        double power = 0;
        double factor = 1;  // by which this tile's maximum shrank the sums relative to `row.largest`
    };

    bool masked(int64_t i) const { return targets_[rows_.begin + i] < 0; }

    void take_base(Block tile) {
        form_logits(args_.base, rows_, tile, base_logits_);
        for (int64_t i = 0; i < rows_.count; ++i) {
            if (masked(i)) continue;
            const T* z = base_logits_ + i * kTile;
            T* exponentials = base_exp_ + i * kTile;
            BaseRow& base = base_[i];
            base.factor = base.row.raise(z, tile.count, tile.begin);
            take_target(base.row, targets_[rows_.begin + i], tile, z);
            const T largest = static_cast<T>(base.row.largest);
            Lanes<T> sum = Lanes<T>::Zero(), power = Lanes<T>::Zero();
            for_lanes<T>(tile.count, [&](int64_t v, auto lanes) {
                const Lanes<T> e = (lanes.load(z + v, std::numeric_limits<T>::lowest()) - largest).exp();
                lanes.store(exponentials + v, e);
                sum += e;
                const Lanes<T> logits = lanes.load(z + v);
                power += logits * logits;
            });
            base.row.sum += sum.sum();
            base.power += power.sum();
        }
    }

    void take_variant(size_t v, Block tile) {
        form_logits(args_.variants[v].variant, rows_, tile, logits_);
        for (int64_t i = 0; i < rows_.count; ++i) {
            if (!masked(i)) take_variant_row(variants_[v * kRows + i], i, tile);
        }
    }

    void take_variant_row(ComparisonState& state, int64_t i, Block tile) {
        const T *z = logits_ + i * kTile, *z_base = base_logits_ + i * kTile, *p = base_exp_ + i * kTile;
        state.weighted *= base_[i].factor;
        state.row.raise(z, tile.count, tile.begin);
        take_target(state.row, targets_[rows_.begin + i], tile, z);
        const T largest = static_cast<T>(state.row.largest);
        Lanes<T> sum = Lanes<T>::Zero(), weighted = Lanes<T>::Zero(), error = Lanes<T>::Zero();
        for_lanes<T>(tile.count, [&](int64_t c, auto lanes) {
            const Lanes<T> logits = lanes.load(z + c, std::numeric_limits<T>::lowest());
            sum += (logits - largest).exp();
            const Lanes<T> difference = logits - lanes.load(z_base + c, std::numeric_limits<T>::lowest());
            weighted += lanes.load(p + c) * difference;
            error += difference * difference;
        });
        state.row.sum += sum.sum();
        state.weighted += weighted.sum();
        state.error += error.sum();
    }

    void write_row(int64_t i) const {
        const int64_t r = rows_.begin + i;
        const BaseRow& base = base_[i];
        const int32_t target = targets_[r];
        const bool live = !masked(i);
        set<T>(args_.base_loss, r, live ? base.row.loss() : 0);
        set<T>(args_.base_correct, r, live && base.row.argmax == target);
        set<T>(args_.base_power, r, live ? base.power : 0);
        for (size_t v = 0; v < args_.variants.size(); ++v) {
            const LogitsComparison& out = args_.variants[v];
            const ComparisonState& state = variants_[v * kRows + i];
            // Never negative but for rounding; NaN passes through.
            const double kl = state.row.lse() - base.row.lse() - state.weighted / base.row.sum;
            set<T>(out.loss, r, live ? state.row.loss() : 0);
            set<T>(out.correct, r, live && state.row.argmax == target);
            set<T>(out.kl, r, live ? (kl < 0 ? 0 : kl) : 0);
            set<T>(out.agrees, r, live && state.row.argmax == base.row.argmax);
            set<T>(out.error, r, live ? state.error : 0);
            if (out.hidden_mse || out.cosine) write_hidden(out, r, live);
        }
    }

    void write_hidden(const LogitsComparison& out, int64_t r, bool live) const {
        const int64_t width = args_.base.hidden.columns();
        const T *h = out.variant.hidden.as<T>() + r * width, *base = args_.base.hidden.as<T>() + r * width;
        const T square = sum_lanes<T>(width, [&](int64_t i, auto lanes) -> Lanes<T> {
            return (lanes.load(h + i) - lanes.load(base + i)).square();
        });
        const double norms =
            std::sqrt(static_cast<double>(dot_lanes(h, h, width)) * dot_lanes(base, base, width));
        set<T>(out.hidden_mse, r, live ? static_cast<double>(square) / width : 0);
        set<T>(out.cosine, r, live && norms != 0 ? dot_lanes(h, base, width) / norms : 0);
    }

    const CompareLogits& args_;
    Block rows_;
    const int32_t* targets_;
    BaseRow* base_;
    ComparisonState* variants_;             // [variants, kRows]
    T *base_logits_, *base_exp_, *logits_;  // [kRows, kTile]; exp(z_base - largest_base)
};

}  // namespace

template <class T>
void CpuBackend<T>::run(const CompareLogits& args) {
    validate(args);
    const int64_t row_count = args.targets.size(0);
    const int64_t length = args.sequence_length > 0 ? args.sequence_length : row_count;
    const SequenceBlocks blocks{length > 0 ? row_count / length : 0, length, kRows};
    for (int64_t r = 0; r < row_count; ++r) MP_ASSERT(args.targets.as<int32_t>()[r] < args.base.head.size(0));
    const int64_t bytes = RowComparison<T>::scratch_bytes(args);
    pool_.parallel_for(blocks.count(), [&](int64_t task, int worker) {
        RowComparison<T>(args, blocks[task], pool_.scratch(worker, bytes)).run();
    });
}

#define MINIPUZZLE_INSTANTIATE(T) template void CpuBackend<T>::run(const CompareLogits& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
