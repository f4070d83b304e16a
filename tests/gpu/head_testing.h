// What the cases of the LM head's losses and comparisons share.
#pragma once

#include "tests/gpu/gpu.h"

namespace minipuzzle::testing {

// One model's values, as bf16 holds them.
struct Lm {
    int64_t rows, vocabulary, width;
    std::vector<double> hidden, head;

    Lm(int64_t row_count, int64_t vocabulary_size, int64_t columns, double scale, uint64_t seed)
        : rows(row_count), vocabulary(vocabulary_size), width(columns) {
        Random random(seed);
        hidden = rounded_to_bf16(random.normals(rows * width, 0, scale));
        head = rounded_to_bf16(random.normals(vocabulary * width, 0, 1 / std::sqrt(width)));
    }
    std::vector<double> logits(int64_t r) const {
        std::vector<double> z(vocabulary, 0.0);
        for (int64_t v = 0; v < vocabulary; ++v)
            for (int64_t i = 0; i < width; ++i) z[v] += hidden[r * width + i] * head[v * width + i];
        return z;
    }
    // The same head over hidden states a little off.
    Lm nudged(double by, uint64_t seed) const {
        Lm other = *this;
        Random random(seed);
        for (double& value : other.hidden) value += by * random.normal();
        other.hidden = rounded_to_bf16(other.hidden);
        return other;
    }
    Lm part(int64_t begin, int64_t count) const {
        Lm other = *this;
        other.rows = count;
        other.hidden.assign(hidden.begin() + begin * width, hidden.begin() + (begin + count) * width);
        return other;
    }
};

// About a seventh of the rows masked.
inline std::vector<int32_t> some_targets(int64_t rows, int64_t vocabulary) {
    std::vector<int32_t> targets(rows);
    for (int64_t r = 0; r < rows; ++r)
        targets[r] = r % 7 == 3 ? -1 : static_cast<int32_t>((r * 379 + r * r * 7919) % vocabulary);
    return targets;
}

}  // namespace minipuzzle::testing
