// What the LM head says of a sweep's states, and in which pieces it is asked.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/arena.h"
#include "runtime/token_source.h"

namespace minipuzzle {

// Per-token outputs of the head that are read in one copy: a row of [B*T] each.
struct TokenMetrics {
    Tensor block;

    TokenMetrics(DeviceArena& arena, int64_t metrics, int64_t tokens, DType dtype)
        : block(arena.take("per-token metrics", {metrics, tokens}, dtype)) {}
    Tensor row(int64_t metric) const { return block.slice(metric, 1).view({block.size(1)}); }
    // Of each metric the means over windows.
    std::vector<std::vector<double>> window_means(Backend& backend, const WindowBatch& batch) const;
};

enum BaseMetric { kBaseLoss, kBaseCorrect, kBasePower, kBaseMetrics };
enum VariantMetric { kLoss, kCorrect, kKl, kAgrees, kError, kHiddenMse, kCosine, kVariantMetrics };

// What the head says of one slot.
struct SlotOutputs {
    int64_t slot = 0;
    TokenMetrics metrics;
};

// Rows of a sequence that the head takes at once of states that wait in host memory: whole row blocks of the
// CPU's comparison and of the CUDA one's products, so that a row's bits do not depend on it.
inline constexpr int64_t kHeadRows = 768;

// The head's share of a batch's rows at a time: all of them, or pieces of one sequence.
class HeadChunks {
  public:
    struct Chunk {
        int64_t begin = 0, count = 0, length = 0;  // rows of the batch; of a sequence among them
    };
    HeadChunks(const WindowBatch& batch, bool in_pieces) {
        if (!in_pieces) {
            chunks_.push_back({0, batch.batch * batch.length, batch.length});
            return;
        }
        for (int64_t sequence = 0; sequence < batch.batch; ++sequence)
            for (int64_t row = 0; row < batch.length; row += kHeadRows) {
                const int64_t count = std::min(kHeadRows, batch.length - row);
                chunks_.push_back({sequence * batch.length + row, count, count});
            }
    }
    int64_t count() const { return std::ssize(chunks_); }
    const Chunk& operator[](int64_t chunk) const { return chunks_[chunk]; }

  private:
    std::vector<Chunk> chunks_;
};

}  // namespace minipuzzle
