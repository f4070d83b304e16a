#include <fmt/format.h>

#include "kernels/check.h"
#include "runtime/checkpoint.h"
#include "runtime/shard_files.h"

namespace minipuzzle {

namespace fs = std::filesystem;

namespace {

using Shard = std::vector<const OutgoingTensor*>;

std::vector<Shard> fill_shards(const OutgoingCheckpoint& checkpoint) {
    std::vector<Shard> shards(1);
    int64_t filled = 0;
    for (const OutgoingTensor& tensor : checkpoint.tensors) {
        if (!shards.back().empty() && filled + tensor.size > checkpoint.shard_bytes) {
            shards.emplace_back();
            filled = 0;
        }
        shards.back().push_back(&tensor);
        filled += tensor.size;
    }
    return shards;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
    return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

// One tensor's bytes are in memory at a time.
void write_shard(const fs::path& path, const Shard& shard) {
    std::map<std::string, const OutgoingTensor*> outgoing;
    std::vector<StoredTensor> stored;
    for (const OutgoingTensor* tensor : shard) {
        const bool fresh = outgoing.emplace(tensor->name, tensor).second;
        MP_ASSERT(fresh);
        stored.push_back({.name = tensor->name, .dtype = tensor->dtype, .shape = tensor->shape, .bytes = {}});
        MP_ASSERT(stored.back().size() == tensor->size);
    }
    sort_for_storage(stored);
    FileWriter file(path);
    file.write(safetensors_header(stored, {{"format", "pt"}}));
    for (const StoredTensor& tensor : stored) {
        const std::vector<std::byte> bytes = outgoing.at(tensor.name)->bytes();
        MP_ASSERT(std::ssize(bytes) == tensor.size());
        file.write(bytes);
    }
    file.finish();
}

void write_weights(const fs::path& folder, const OutgoingCheckpoint& checkpoint) {
    const std::vector<Shard> shards = fill_shards(checkpoint);
    int64_t total = 0;
    nlohmann::json weight_map = nlohmann::json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
        const std::string name = shard_name(i, shards.size());
        write_shard(folder / name, shards[i]);
        for (const OutgoingTensor* tensor : shards[i]) {
            MP_ASSERT(!weight_map.contains(tensor->name));
            weight_map[tensor->name] = name;
            total += tensor->size;
        }
    }
    const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    write_file_atomically(folder / kShardIndex, index.dump(2) + "\n");
}

// Copies a file, or a folder with what it holds except weights, which are those of another model.
void copy_into(const fs::path& target_folder, const fs::path& source, const fs::path& source_folder) {
    expect_inside(source_folder, source);
    const fs::path target = target_folder / source.filename();
    if (fs::is_directory(source)) {
        fs::create_directory(target);
        for (const fs::directory_entry& entry : fs::directory_iterator(source))
            if (!is_weight_file(entry.path())) copy_into(target, entry.path(), source_folder);
    } else if (fs::is_regular_file(source)) {
        FileWriter file(target);
        file.write(MappedFile(source).bytes());
        file.finish();
    }
}

}  // namespace

void write_checkpoint(const fs::path& folder, const OutgoingCheckpoint& checkpoint) {
    write_folder_atomically(folder, [&](const fs::path& partial) {
        write_weights(partial, checkpoint);
        for (const fs::path& source : checkpoint.copies)
            if (!checkpoint.texts.contains(source.filename().string()))
                copy_into(partial, source, source.parent_path());
        for (const auto& [name, text] : checkpoint.texts) write_file_atomically(partial / name, text);
        write_file_atomically(partial / "config.json", config_text(checkpoint.config));
    });
}

}  // namespace minipuzzle
