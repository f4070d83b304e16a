// A Hugging Face model folder: config.json, shards and their index, tokenizer and whatever else lies there.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"
#include "runtime/safetensors.h"

namespace minipuzzle {

// One tensor of the model in canonical spelling ("embeddings.weight", "layers.3.mixer.in_proj.weight",
// "norm_f.weight", "lm_head.weight"): where it comes from and what the architecture says its shape must be.
struct TensorSlot {
    std::string name;            // canonical
    std::vector<int64_t> shape;  // as the file has it (conv1d.weight is [C, 1, K])
    int layer = -1;              // -1 outside the layers
};
// Every tensor of an architecture, in file order. The one list that load, save, prune and random init go by.
std::vector<TensorSlot> tensor_slots(const Architecture& architecture);

// An opened, fully checked folder. Opening checks: shards named by the index exist, lie inside the folder (no
// "..", no absolute paths, no links out of it), hold exactly the tensors the index says; every slot of the
// architecture is there with its shape and a floating dtype; no layers.N tensor beyond the pattern or of
// another type's layer.
class Checkpoint {
  public:
    explicit Checkpoint(const std::filesystem::path& folder);

    const std::filesystem::path& folder() const { return folder_; }
    const Architecture& architecture() const { return architecture_; }
    const Json& config() const { return config_; }
    // The stored tensor of a slot, by canonical name; its `name` is the file's own spelling.
    const StoredTensor& tensor(const std::string& canonical) const;
    // Tensors that belong to no slot (vision towers, mtp.*), passed through untouched.
    const std::vector<StoredTensor>& unknown() const { return unknown_; }
    const std::vector<SafetensorsFile>& shards() const { return shards_; }
    // The file's own spelling for a canonical name ("backbone.layers.0.norm.weight", ...).
    std::string file_name(const std::string& canonical) const;
    // Files of the folder other than config.json, shards and index.
    std::vector<std::filesystem::path> other_files() const;
    std::string weights_hash(bool full) const;
    ModelIdentity identity(bool full_hash = false) const;

  private:
    std::filesystem::path folder_;
    Json config_;
    Architecture architecture_;
    std::vector<SafetensorsFile> shards_;
    std::map<std::string, StoredTensor> slots_;
    std::vector<StoredTensor> unknown_;
    std::string prefix_;       // "backbone.", "model.", "language_model.backbone.", ...
    std::string head_prefix_;  // "", "language_model."
};

// A tensor to be written: canonical name for slots (spelled by `spell`), bytes owned by `content` or
// borrowed.
struct OutgoingTensor {
    std::string name;  // the file's spelling
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::function<std::vector<std::byte>()> bytes;  // called once, while its shard is written
    int64_t size = 0;                               // in bytes
};

// Writes a model folder: config.json, shards of at most `shard_bytes` with an index (a single shard too keeps
// the name model-00001-of-00001 and an index, as the minis have it), and `files` copied as they are. Atomic
// as a whole.
struct OutgoingCheckpoint {
    Json config;
    std::vector<OutgoingTensor> tensors;
    std::vector<std::filesystem::path> copies;  // other files of the source folder
    std::map<std::string, std::string> texts;   // more files: name -> content (model card)
    int64_t shard_bytes = int64_t{5} << 30;
};
void write_checkpoint(const std::filesystem::path& folder, const OutgoingCheckpoint& checkpoint);

}  // namespace minipuzzle
