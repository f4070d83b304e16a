// Random small search problems, the same on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nas/search.h"

namespace minipuzzle::nas::testing {

// splitmix64: one number after another from a seed.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    int64_t below(int64_t n) {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return static_cast<int64_t>((z ^ (z >> 31)) % static_cast<uint64_t>(n));
    }
    bool chance(int64_t one_in) { return below(one_in) == 0; }

  private:
    uint64_t state_;
};

// Layers of a pattern; every layer of a type alike.
inline Architecture architecture_of(const std::string& pattern, int64_t ffn_width) {
    Architecture architecture;
    architecture.vocab = 32;
    architecture.width = 8;
    for (const char c : pattern) {
        if (c == 'M')
            architecture.layers.push_back(
                Mamba{.heads = 4, .head_dim = 4, .state = 8, .groups = 2, .conv_kernel = 4});
        else if (c == '*')
            architecture.layers.push_back(Attention{.heads = 4, .kv_heads = 2, .head_dim = 4});
        else
            architecture.layers.push_back(Ffn{.width = ffn_width});
    }
    return architecture;
}

inline std::string random_pattern(Random& random, int64_t layers) {
    std::string pattern;
    for (int64_t i = 0; i < layers; ++i) pattern += "M*-"[random.below(3)];
    return pattern;
}

// Scores in sixty-fourths: sums of them are exact, so equal predictions are equal bits in any order of
// adding. Ties and nulls are common, some layers are better dropped.
inline ScoreTable random_scores(Random& random, const Architecture& architecture) {
    ScoreTable scores;
    scores.model.pattern = architecture.pattern();
    scores.base_loss = 2.0;
    for (std::size_t i = 0; i < architecture.layers.size(); ++i) {
        LayerScore layer;
        layer.layer = static_cast<int64_t>(i);
        layer.type = type_of(architecture.layers[i]);
        if (!random.chance(9)) layer.loss_delta = static_cast<double>(random.below(14) - 1) / 64;
        scores.layers.push_back(layer);
    }
    return scores;
}

}  // namespace minipuzzle::nas::testing
