// The two trained minis and what an independent implementation says of them (shared/models/README.md).
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/checkpoint.h"
#include "runtime/token_source.h"
#include "runtime/weights.h"
#include "tests/support/temp_dir.h"

namespace minipuzzle::test {

inline std::filesystem::path shared_folder() {
    return std::filesystem::path(MINIPUZZLE_SOURCE_DIR) / ".." / "shared";
}

// A mini opened, its weights on `backend`, and its reference with the calibration tokens as a corpus.
struct Mini {
    Checkpoint checkpoint;
    nlohmann::json reference;
    WeightMemory weights;
    TempDir scratch;
    Corpus corpus;
    std::vector<Window> windows;

    Mini(Backend& backend, const std::string& name, Precision precision = Precision::bf16)
        : checkpoint(shared_folder() / "models" / name),
          reference(nlohmann::json::parse(std::ifstream(checkpoint.folder() / "reference.json"))),
          weights(
              load_weights(backend, checkpoint.architecture(), *checkpoint_source(checkpoint), precision)),
          corpus({write_calibration()}, {.tokenizer = nullptr, .vocab = checkpoint.architecture().vocab},
                 false),
          windows(choose_windows(corpus, 512, 0, 0)) {}

    // The calibration tokens as {"tokens"} rows.
    std::string write_calibration() const {
        const std::filesystem::path path = scratch.path() / "calibration.jsonl";
        std::ofstream file(path);
        for (const auto& row : reference["calibration_tokens"])
            file << nlohmann::json{{"tokens", row}} << "\n";
        return path.string();
    }
};

}  // namespace minipuzzle::test
