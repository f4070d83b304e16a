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

// How a folder spells the model's tensors in front of the canonical names.
struct NamePrefixes {
    std::string model;  // "backbone.", "model.", "language_model.backbone.", "language_model.model." or ""
    std::string head;   // before lm_head.weight: "" or "language_model."
};

// An opened, fully checked folder. Opening checks: shards named by the index exist, lie inside the folder (no
// "..", no absolute paths, no links out of it; the blobs folder of a Hub cache is inside), hold exactly the
// tensors the index says; every slot of the architecture is there with its shape and a floating dtype; no
// layers.N tensor beyond the pattern or of another type's layer; nothing quantised. Error bad_input names the
// file, the tensor, what was found and what was expected.
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
    // What else lies in the folder and belongs to the model, sorted: files and subfolders other than
    // config.json, weights of any format, their indices and hidden entries. Error bad_input where one links
    // out of the folder.
    std::vector<std::filesystem::path> other_files() const;
    // "sha256:..." of the shards' headers and sizes, in the order of their names; `full`: of their content.
    std::string weights_hash(bool full) const;
    ModelIdentity identity(bool full_hash = false) const;

  private:
    std::filesystem::path folder_;
    Json config_;
    Architecture architecture_;
    std::vector<SafetensorsFile> shards_;
    std::map<std::string, StoredTensor> slots_;
    std::vector<StoredTensor> unknown_;
    NamePrefixes prefixes_;
};

// A tensor to be written.
struct OutgoingTensor {
    std::string name;  // the file's spelling
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::function<std::vector<std::byte>()> bytes;  // called once, while its shard is written
    int64_t size = 0;                               // in bytes
};

// A model folder to be written: config.json, shards of at most `shard_bytes` (one tensor at least) with an
// index (a single shard too keeps the name model-00001-of-00001 and an index), `copies` as they are (a folder
// with all it holds) and `texts`, which win over a copy of the same name.
struct OutgoingCheckpoint {
    Json config;
    std::vector<OutgoingTensor> tensors;
    std::vector<std::filesystem::path> copies;  // other_files() of the source folder
    std::map<std::string, std::string> texts;   // more files: name -> content (model card)
    int64_t shard_bytes = int64_t{5} << 30;
};
// Tensors fill the shards in the order given. Atomic as a whole (write_folder_atomically, whose errors
// apply).
void write_checkpoint(const std::filesystem::path& folder, const OutgoingCheckpoint& checkpoint);

}  // namespace minipuzzle
