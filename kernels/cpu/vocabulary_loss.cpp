// Logits of one block of tokens at a time, [rows, V], in tiles of the vocabulary that threads share out.
// First each tile leaves its sums, then they are combined per row, then the logits turn into their gradient
// in place. With top_k the teacher's smallest logit that counts is found, per row, before the sums.
#include <algorithm>
#include <functional>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

// Columns of the hidden state's gradient that one task takes.
constexpr int64_t kHiddenColumns = 64;

// Sums of one row, over one tile or all, each relative to its maximum. With z the logits and T the
// temperature:
struct LossSums {
    double student_largest = -std::numeric_limits<double>::infinity();
    double teacher_largest = -std::numeric_limits<double>::infinity();
    double student = 0;       // sum exp(z - largest)
    double student_soft = 0;  // sum exp((z - largest) / T)
    double teacher_soft = 0;  // the same of the teacher
    double weighted = 0;      // sum exp((z_teacher - largest) / T) * (z_teacher - z)
    double reverse = 0;       // sum exp((z - largest) / T) * (z - z_teacher)

    // Takes in another tile's sums. NaN in either maximum makes the sums NaN.
    void add(const LossSums& tile, double temperature) {
        const double largest = std::max(tile.student_largest, student_largest);
        student = student * std::exp(student_largest - largest) +
                  tile.student * std::exp(tile.student_largest - largest);
        const double old_soft = std::exp((student_largest - largest) / temperature);
        const double now_soft = std::exp((tile.student_largest - largest) / temperature);
        student_soft = student_soft * old_soft + tile.student_soft * now_soft;
        reverse = reverse * old_soft + tile.reverse * now_soft;
        student_largest = largest;
        const double teacher = std::max(tile.teacher_largest, teacher_largest);
        const double old = std::exp((teacher_largest - teacher) / temperature);
        const double now = std::exp((tile.teacher_largest - teacher) / temperature);
        teacher_soft = teacher_soft * old + tile.teacher_soft * now;
        weighted = weighted * old + tile.weighted * now;
        teacher_largest = teacher;
    }
};

// The loss of one block of rows.
template <class T>
class BlockLoss {
  public:
    BlockLoss(const VocabularyLoss& args, ThreadPool& pool)
        : args_(args),
          pool_(pool),
          targets_(args.targets.as<int32_t>()),
          tiles_{args.student.head.size(0), kColumnBlock},
          stride_(div_up(tiles_.n, kLanes) * kLanes + kLanes),  // off powers of two, which share cache sets
          with_ce_(args.ce || args.ce_weight != 0),
          with_kl_(args.teacher.hidden && (args.kl || args.kl_weight != 0)),
          with_reverse_(args.teacher.hidden && args.top_k == 0 &&
                        (args.reverse_kl || args.reverse_kl_weight != 0)),
          // As many as there are, or more, are all of them.
          top_k_(with_kl_ && args.top_k < tiles_.n ? args.top_k : 0) {
        const int64_t sums = kRowBlock * (tiles_.count() + 1), logits = kRowBlock * stride_;
        std::byte* memory =
            pool.shared_scratch(sums * sizeof(LossSums) + (2 * logits + kRowBlock) * sizeof(T));
        tile_sums_ = new (memory) LossSums[sums];
        row_sums_ = tile_sums_ + kRowBlock * tiles_.count();
        student_ = reinterpret_cast<T*>(memory + sums * sizeof(LossSums));
        teacher_ = student_ + logits;
        smallest_ = teacher_ + logits;
    }

    void run(Block rows) {
        rows_ = rows;
        bool any_live = false;
        for (int64_t i = 0; i < rows.count; ++i) any_live |= !masked(i);
        if (!any_live) return write_nothing();
        pool_.parallel_for(tiles_.count(), [&](int64_t tile, int) {
            form_tile(tiles_[tile]);
            if (top_k_ == 0) sum_tile<false>(tile);
        });
        if (top_k_ > 0) {
            pool_.parallel_for(rows.count, [&](int64_t i, int worker) { find_smallest(i, worker); });
            pool_.parallel_for(tiles_.count(), [&](int64_t tile, int) { sum_tile<true>(tile); });
        }
        for (int64_t i = 0; i < rows.count; ++i) write_row(i);
        if (!args_.d_hidden && !args_.d_head) return;
        pool_.parallel_for(tiles_.count(), [&](int64_t tile, int) {
            top_k_ > 0 ? tile_gradient<true>(tiles_[tile]) : tile_gradient<false>(tiles_[tile]);
        });
        if (args_.d_hidden) hidden_gradient();
    }

  private:
    bool masked(int64_t i) const { return targets_[rows_.begin + i] < 0; }

    ConstMatrixMap<T> hidden(const LmHead& lm) const {
        const int64_t width = lm.hidden.columns();
        const T* from = lm.hidden.as<T>() + rows_.begin * width;
        return matrix(from, rows_.count, width, width);
    }
    static ConstMatrixMap<T> head(const LmHead& lm, Block tile) {
        const int64_t width = lm.head.columns();
        const T* from = lm.head.as<T>() + tile.begin * width;
        return matrix(from, tile.count, width, width);
    }
    MatrixMap<T> logits(T* all, Block tile) const {
        return matrix(all + tile.begin, rows_.count, tile.count, stride_);
    }

    void form_tile(Block tile) {
        logits(student_, tile).noalias() = hidden(args_.student) * head(args_.student, tile).transpose();
        if (with_kl_ || with_reverse_) {
            logits(teacher_, tile).noalias() = hidden(args_.teacher) * head(args_.teacher, tile).transpose();
        }
    }

    // The smallest of the teacher's top_k logits: what is as large counts. NaN, which no logit reaches, where
    // one is not finite.
    void find_smallest(int64_t i, int worker) {
        if (masked(i)) return;
        const T* z = teacher_ + i * stride_;
        smallest_[i] = finite_max(z, tiles_.n);
        if (std::isnan(smallest_[i])) return;
        T* copy = reinterpret_cast<T*>(pool_.scratch(worker, tiles_.n * int64_t{sizeof(T)}));
        std::copy_n(z, tiles_.n, copy);
        std::nth_element(copy, copy + top_k_ - 1, copy + tiles_.n, std::greater<>());
        smallest_[i] = copy[top_k_ - 1];
    }

    // kTop: only the teacher's top_k tokens count.
    template <bool kTop>
    void sum_tile(int64_t index) {
        for (int64_t i = 0; i < rows_.count; ++i) {
            if (!masked(i)) tile_sums_[index * kRowBlock + i] = sum_row<kTop>(i, tiles_[index]);
        }
    }

    // exp((z - largest) * soften) of the teacher's logits z in row i, 0 where they do not count.
    template <bool kTop>
    Lanes<T> teacher_power(int64_t i, const Lanes<T>& z, T largest, T soften) const {
        const Lanes<T> power = ((z - largest) * soften).exp();
        if constexpr (kTop)
            return (z >= smallest_[i]).select(power, Lanes<T>::Zero());
        else
            return power;
    }

    template <bool kTop>
    LossSums sum_row(int64_t i, Block tile) const {
        constexpr T kLowest = std::numeric_limits<T>::lowest();
        const T* z = student_ + i * stride_ + tile.begin;
        const T largest = finite_max(z, tile.count), soften = static_cast<T>(1 / args_.temperature);
        LossSums sums;
        sums.student_largest = largest;
        if (with_ce_) {
            sums.student = sum_lanes<T>(tile.count, [&](int64_t v, auto lanes) -> Lanes<T> {
                return (lanes.load(z + v, kLowest) - largest).exp();
            });
        }
        if (!with_kl_ && !with_reverse_) return sums;
        const T* z_teacher = teacher_ + i * stride_ + tile.begin;
        const T teacher_largest = finite_max(z_teacher, tile.count);
        Lanes<T> student = Lanes<T>::Zero(), teacher = Lanes<T>::Zero(), weighted = Lanes<T>::Zero();
        for_lanes<T>(tile.count, [&](int64_t v, auto lanes) {
            const Lanes<T> s = lanes.load(z + v, kLowest), t = lanes.load(z_teacher + v, kLowest);
            const Lanes<T> e = teacher_power<kTop>(i, t, teacher_largest, soften);
            student += ((s - largest) * soften).exp();
            teacher += e;
            weighted += e * (t - s);
        });
        sums.teacher_largest = teacher_largest;
        sums.student_soft = student.sum();
        sums.teacher_soft = teacher.sum();
        sums.weighted = weighted.sum();
        if (with_reverse_) {
            sums.reverse = sum_lanes<T>(tile.count, [&](int64_t v, auto lanes) -> Lanes<T> {
                const Lanes<T> s = lanes.load(z + v, kLowest), t = lanes.load(z_teacher + v, kLowest);
                return ((s - largest) * soften).exp() * (s - t);
            });
        }
        return sums;
    }

    // Combines the tiles of one row and writes its losses.
    void write_row(int64_t i) {
        const int64_t r = rows_.begin + i;
        LossSums& sums = row_sums_[i] = LossSums{};
        double ce = 0, kl = 0, reverse_kl = 0;
        if (!masked(i)) {
            for (int64_t tile = 0; tile < tiles_.count(); ++tile) {
                sums.add(tile_sums_[tile * kRowBlock + i], args_.temperature);
            }
            const double t = args_.temperature;
            ce = sums.student_largest + std::log(sums.student) - student_[i * stride_ + targets_[r]];
            kl = t * (sums.weighted / sums.teacher_soft + sums.student_largest - sums.teacher_largest) +
                 t * t * std::log(sums.student_soft / sums.teacher_soft);
            reverse_kl =
                t * (sums.reverse / sums.student_soft + sums.teacher_largest - sums.student_largest) +
                t * t * std::log(sums.teacher_soft / sums.student_soft);
            if (kl < 0) kl = 0;  // by rounding only; NaN passes through
            if (reverse_kl < 0) reverse_kl = 0;
        }
        if (args_.ce) args_.ce.as<T>()[r] = static_cast<T>(ce);
        if (args_.kl && with_kl_) args_.kl.as<T>()[r] = static_cast<T>(kl);
        if (args_.reverse_kl && with_reverse_) args_.reverse_kl.as<T>()[r] = static_cast<T>(reverse_kl);
    }

    // d loss / d z = scale * (ce_weight * (softmax(z) - onehot) + kl_weight * T * (q - p) +
    // reverse_kl_weight * q * (z - z_teacher - sum q (z - z_teacher))), q = softmax(z / T) and p =
    // softmax(z_teacher / T), written over the student's logits; then the head's gradient.
    template <bool kTop>
    void tile_gradient(Block tile) {
        for (int64_t i = 0; i < rows_.count; ++i) gradient_row<kTop>(i, tile);
        if (!args_.d_head) return;
        const int64_t width = args_.d_head.columns();
        matrix(args_.d_head.as<T>() + tile.begin * width, tile.count, width, width).noalias() +=
            logits(student_, tile).transpose() * hidden(args_.student);
    }

    template <bool kTop>
    void gradient_row(int64_t i, Block tile) {
        T* z = student_ + i * stride_ + tile.begin;
        if (masked(i)) {
            std::fill_n(z, tile.count, T{0});
            return;
        }
        const LossSums& sums = row_sums_[i];
        const T largest = static_cast<T>(sums.student_largest);
        const T teacher_largest = static_cast<T>(sums.teacher_largest);
        const T soften = static_cast<T>(1 / args_.temperature);
        const double ce_scale = args_.scale * args_.ce_weight;
        const double kl_scale = args_.scale * args_.kl_weight * args_.temperature;
        const T hard = static_cast<T>(ce_scale / sums.student);
        const T soft = static_cast<T>(kl_scale / sums.student_soft);
        const T teacher = static_cast<T>(kl_scale / sums.teacher_soft);
        const T* z_teacher = teacher_ + i * stride_ + tile.begin;
        const T reverse = static_cast<T>(args_.scale * args_.reverse_kl_weight / sums.student_soft);
        const T mean = static_cast<T>(sums.reverse / sums.student_soft);
        const bool with_ce = args_.ce_weight != 0, with_kl = args_.kl_weight != 0;
        const bool with_reverse = args_.reverse_kl_weight != 0;
        for_lanes<T>(tile.count, [&](int64_t v, auto lanes) {
            const Lanes<T> s = lanes.load(z + v) - largest;
            Lanes<T> gradient = Lanes<T>::Zero();
            if (with_ce) gradient += hard * s.exp();
            if (with_kl) {
                gradient +=
                    soft * (s * soften).exp() -
                    teacher * teacher_power<kTop>(i, lanes.load(z_teacher + v), teacher_largest, soften);
            }
            if (with_reverse) {
                gradient +=
                    reverse * (s * soften).exp() * (lanes.load(z + v) - lanes.load(z_teacher + v) - mean);
            }
            lanes.store(z + v, gradient);
        });
        const int64_t target = targets_[rows_.begin + i] - tile.begin;
        if (target >= 0 && target < tile.count) z[target] -= static_cast<T>(ce_scale);
    }

    void hidden_gradient() {
        const int64_t width = args_.d_hidden.columns(), vocabulary = tiles_.n;
        for_blocks(pool_, width, kHiddenColumns, [&](Block columns) {
            T* to = args_.d_hidden.as<T>() + rows_.begin * width + columns.begin;
            const T* head = args_.student.head.as<T>() + columns.begin;
            matrix(to, rows_.count, columns.count, width).noalias() =
                logits(student_, {0, vocabulary}) * matrix(head, vocabulary, columns.count, width);
        });
    }

    // The outputs of a block without a single live token.
    void write_nothing() const {
        if (args_.ce) std::fill_n(args_.ce.as<T>() + rows_.begin, rows_.count, T{0});
        if (args_.kl && with_kl_) std::fill_n(args_.kl.as<T>() + rows_.begin, rows_.count, T{0});
        if (args_.reverse_kl && with_reverse_)
            std::fill_n(args_.reverse_kl.as<T>() + rows_.begin, rows_.count, T{0});
        const int64_t width = args_.d_hidden.columns();
        if (args_.d_hidden) {
            std::fill_n(args_.d_hidden.as<T>() + rows_.begin * width, rows_.count * width, T{0});
        }
    }

    const VocabularyLoss& args_;
    ThreadPool& pool_;
    const int32_t* targets_;
    Blocks tiles_;
    int64_t stride_;
    bool with_ce_, with_kl_, with_reverse_;
    int64_t top_k_;  // 0: all
    Block rows_{};
    LossSums *tile_sums_, *row_sums_;  // [tiles, kRowBlock], [kRowBlock]
    T *student_, *teacher_;            // logits, [kRowBlock, stride_]
    T* smallest_;                      // of the teacher's logits that count, [kRowBlock]; with top_k_
};

}  // namespace

template <class T>
void CpuBackend<T>::run(const VocabularyLoss& args) {
    validate(args);
    const int64_t row_count = args.targets.size(0);
    const int64_t length = args.sequence_length > 0 ? args.sequence_length : row_count;
    const SequenceBlocks blocks{length > 0 ? row_count / length : 0, length, kRowBlock};
    for (int64_t r = 0; r < row_count; ++r) {
        MP_ASSERT(args.targets.as<int32_t>()[r] < args.student.head.size(0));
    }
    BlockLoss<T> loss(args, pool_);
    for (int64_t block = 0; block < blocks.count(); ++block) loss.run(blocks[block]);
}

#define MINIPUZZLE_INSTANTIATE(T) template void CpuBackend<T>::run(const VocabularyLoss& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
