#include "runtime/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "kernels/check.h"
#include "runtime/shard_files.h"

namespace minipuzzle {

namespace fs = std::filesystem;

namespace {

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbeddings = "embeddings.weight";
constexpr const char* kEmbeddingsAlias = "embedding.weight";
constexpr const char* kModelPrefixes[] = {"language_model.backbone.", "language_model.model.", "backbone.",
                                          "model.", ""};

using TensorsByName = std::map<std::string, const StoredTensor*>;

TensorsByName by_name(const std::vector<SafetensorsFile>& shards) {
    TensorsByName tensors;
    for (const SafetensorsFile& shard : shards)
        for (const StoredTensor& tensor : shard.tensors())
            if (const auto [entry, fresh] = tensors.emplace(tensor.name, &tensor); !fresh)
                fail_input(fmt::format("{}: tensor \"{}\" is also in another shard", shard.path().string(),
                                       tensor.name));
    return tensors;
}

bool any_starts_with(const TensorsByName& tensors, const std::string& prefix) {
    const auto entry = tensors.lower_bound(prefix);
    return entry != tensors.end() && entry->first.starts_with(prefix);
}

NamePrefixes find_prefixes(const TensorsByName& tensors) {
    for (const std::string prefix : kModelPrefixes)
        if (tensors.contains(prefix + kEmbeddings) || tensors.contains(prefix + kEmbeddingsAlias) ||
            any_starts_with(tensors, prefix + "layers."))
            return {prefix, prefix.starts_with("language_model.") ? "language_model." : ""};
    return {"backbone.", ""};
}

// The canonical name of a file's tensor; nothing where it lies outside the model.
std::optional<std::string> canonical_name(const std::string& name, const NamePrefixes& prefixes) {
    if (name.starts_with(prefixes.head) && name.substr(prefixes.head.size()).starts_with("lm_head."))
        return name.substr(prefixes.head.size());
    if (!name.starts_with(prefixes.model)) return std::nullopt;
    const std::string rest = name.substr(prefixes.model.size());
    return rest == kEmbeddingsAlias ? kEmbeddings : rest;
}

bool is_quantisation_scale(const std::string& name) {
    for (const char* end : {".weight_scale", ".weight_scale_2", ".weight_scale_inv", ".input_scale",
                            ".k_scale", ".v_scale", ".q_scale", ".output_scale"})
        if (name.ends_with(end)) return true;
    return false;
}

bool is_plain_float(DType dtype) {
    return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

// Gives the folder's tensors their places in the architecture.
class SlotMatcher {
  public:
    SlotMatcher(const fs::path& folder, const Architecture& architecture, const NamePrefixes& prefixes)
        : folder_(folder), architecture_(architecture), prefixes_(prefixes) {
        for (const TensorSlot& slot : tensor_slots(architecture)) slots_[slot.name] = slot;
    }

    // The slot a tensor belongs to; nullptr for one that is none of the model's. Error where it contradicts
    // config.json.
    const TensorSlot* slot_of(const StoredTensor& tensor) const {
        const std::optional<std::string> name = canonical_name(tensor.name, prefixes_);
        if (!name) return nullptr;
        if (is_quantisation_scale(*name))
            fail(tensor, "quantised checkpoints are not supported; use the bf16 weights");
        const auto slot = slots_.find(*name);
        if (slot != slots_.end()) {
            check(tensor, slot->second);
            return &slot->second;
        }
        if (name->starts_with("layers.")) fail_layer(tensor, name->substr(7));
        return nullptr;
    }

    // A tied model may store its head, a copy of the embeddings that nobody reads.
    bool is_tied_head(const StoredTensor& tensor) const {
        return architecture_.tied_embeddings && tensor.name == prefixes_.head + kHead;
    }

    void expect_all(const std::map<std::string, StoredTensor>& found) const {
        std::vector<std::string> missing;
        for (const TensorSlot& slot : tensor_slots(architecture_))
            if (!found.contains(slot.name))
                missing.push_back((slot.name == kHead ? prefixes_.head : prefixes_.model) + slot.name);
        if (missing.empty()) return;
        const std::string more = missing.size() > 1 ? fmt::format(" (and {} more)", missing.size() - 1) : "";
        fail_input(fmt::format("{}: tensor \"{}\" is missing{}, but config.json's layers {} need it",
                               folder_.string(), missing[0], more, architecture_.pattern()));
    }

  private:
    [[noreturn]] void fail(const StoredTensor& tensor, const std::string& what) const {
        fail_input(fmt::format("{}: tensor \"{}\": {}", folder_.string(), tensor.name, what));
    }

    void check(const StoredTensor& tensor, const TensorSlot& slot) const {
        if (!is_plain_float(tensor.dtype))
            fail(tensor,
                 fmt::format("has dtype {}, expected F64, F32, F16 or BF16; quantised checkpoints are not "
                             "supported",
                             info(tensor.dtype).name));
        if (tensor.shape != slot.shape)
            fail(tensor, fmt::format("has shape {}, but config.json says {}", tensor.shape, slot.shape));
    }

    [[noreturn]] void fail_layer(const StoredTensor& tensor, const std::string& rest) const {
        std::size_t layer = 0;
        const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
        if (error != std::errc() || *end != '.') fail(tensor, "expected layers.NUMBER.NAME");
        const std::size_t layers = architecture_.layers.size();
        if (layer >= layers)
            fail(tensor, fmt::format("config.json has {} layers, {} ({})", layers, architecture_.pattern(),
                                     "so this one lies beyond the last"));
        fail(tensor, fmt::format("config.json says layer {} is '{}' ({}), which has no such tensor", layer,
                                 letter(type_of(architecture_.layers[layer])),
                                 name(type_of(architecture_.layers[layer]))));
    }

    const fs::path& folder_;
    const Architecture& architecture_;
    const NamePrefixes& prefixes_;
    std::map<std::string, TensorSlot> slots_;
};

Json read_config(const fs::path& folder) {
    if (!fs::is_directory(folder))
        fail_input(fmt::format("{}: {}, expected a model folder with config.json and safetensors weights",
                               folder.string(), fs::exists(folder) ? "is not a folder" : "no such folder"));
    const fs::path path = folder / "config.json";
    if (!fs::exists(path))
        fail_input(
            fmt::format("{}: holds no config.json, expected a Hugging Face model folder", folder.string()));
    return parse_config_text(read_file(path), path.string());
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder)
    : folder_(folder),
      config_(read_config(folder)),
      architecture_(parse_architecture(config_, (folder / "config.json").string())),
      shards_(open_shards(folder)) {
    const TensorsByName tensors = by_name(shards_);
    prefixes_ = find_prefixes(tensors);
    const SlotMatcher matcher(folder_, architecture_, prefixes_);
    for (const auto& [name, tensor] : tensors) {
        if (matcher.is_tied_head(*tensor)) continue;
        if (const TensorSlot* slot = matcher.slot_of(*tensor)) {
            if (!slots_.emplace(slot->name, *tensor).second)
                fail_input(fmt::format("{}: tensor \"{}\" is there under both of its names", folder_.string(),
                                       name));
        } else {
            unknown_.push_back(*tensor);
        }
    }
    matcher.expect_all(slots_);
}

const StoredTensor& Checkpoint::tensor(const std::string& canonical) const {
    const auto slot = slots_.find(canonical);
    MP_ASSERT(slot != slots_.end());
    return slot->second;
}

std::string Checkpoint::file_name(const std::string& canonical) const {
    if (const auto slot = slots_.find(canonical); slot != slots_.end()) return slot->second.name;
    return (canonical == kHead ? prefixes_.head : prefixes_.model) + canonical;
}

std::vector<fs::path> Checkpoint::other_files() const {
    std::vector<fs::path> files;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
        const std::string name = entry.path().filename().string();
        if (name == "config.json" || name.starts_with('.') || is_weight_file(entry.path())) continue;
        if (fs::exists(entry.path() / kOutputMarker)) continue;  // a result that was written below its source
        expect_inside(folder_, entry.path());
        files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
}

std::string Checkpoint::weights_hash(bool full) const {
    Sha256 hash;
    for (const SafetensorsFile& shard : shards_) {
        if (full) {
            hash.update(shard.content());
        } else {
            hash.update(fmt::format("{}\n", shard.content().size()));
            hash.update(shard.header());
        }
    }
    return hash.digest();
}

ModelIdentity Checkpoint::identity(bool full_hash) const {
    return {.path = folder_.string(),
            .pattern = architecture_.pattern(),
            .arch_hash = arch_hash(architecture_),
            .weights_hash = weights_hash(full_hash)};
}

}  // namespace minipuzzle
