// Small hybrid models with random weights, as folders on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/checkpoint.h"

namespace minipuzzle::test {

// `layers` is a pattern of M, * and -. Vocabulary 64, width 16; Mamba 4 heads of 8, 8 states, 2 groups,
// kernel 4; attention 4 heads over 2 key/value heads of 8; FFN 32.
Architecture tiny_architecture(const std::string& layers = "M-*M-");

// A nemotron_h config.json that describes it (first key generation).
Json tiny_config(const Architecture& architecture);

// Uniform in [0, 1), a pure function of its arguments.
double uniform(uint64_t seed, const std::string& name, uint64_t index);

// The random values of a tensor: matrices uniform with variance 1 / columns, so that activations keep their
// size through the layers; norms and D near 1; A in [1, 16]; dt_bias such that a step is in [0.001, 0.1].
std::vector<float> tiny_values(const TensorSlot& slot, uint64_t seed);

struct TinyModel {
    uint64_t seed = 1;
    DType dtype = DType::bf16;  // of everything but A_log and D, which are float32
    std::string prefix = "backbone.";
    std::string head_prefix;
    int64_t shard_bytes = int64_t{5} << 30;
};

// Writes the folder (config.json, shards, index) and opens as a Checkpoint.
void write_tiny_model(const std::filesystem::path& folder, const Architecture& architecture,
                      const TinyModel& options = {});

}  // namespace minipuzzle::test
