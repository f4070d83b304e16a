#include "runtime/shard_files.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/check.h"
#include "runtime/artefact.h"

namespace minipuzzle {

namespace fs = std::filesystem;

namespace {

using TensorsOfShard = std::map<std::string, std::set<std::string>>;

bool is_below(const fs::path& path, const fs::path& folder) {
    const fs::path relative = path.lexically_relative(folder);
    return !relative.empty() && *relative.begin() != ".." && *relative.begin() != ".";
}

// A name of the index must be a plain path below the folder before it is looked up at all.
void expect_plain(const std::string& shard, const std::string& where) {
    const fs::path path(shard);
    bool plain = !shard.empty() && !path.is_absolute() && shard.find('\0') == std::string::npos;
    for (const fs::path& part : path) plain = plain && part != "..";
    if (!plain) fail_input(fmt::format("{}: the shard \"{}\" does not lie inside the folder", where, shard));
}

TensorsOfShard read_index(const fs::path& path) {
    const std::string where = path.string();
    const nlohmann::json index = parse_sorted_json(read_file(path), where);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
        fail_input(fmt::format("{}: has no weight_map of tensor names to shards", where));
    TensorsOfShard shards;
    for (const auto& [tensor, shard] : index["weight_map"].items()) {
        if (!shard.is_string())
            fail_input(fmt::format("{}: weight_map gives \"{}\" {}, expected a file name", where, tensor,
                                   shard.dump()));
        expect_plain(shard.get<std::string>(), where);
        shards[shard.get<std::string>()].insert(tensor);
    }
    if (shards.empty()) fail_input(fmt::format("{}: its weight_map is empty", where));
    return shards;
}

void expect_tensors(const SafetensorsFile& file, const std::set<std::string>& expected) {
    for (const std::string& name : expected)
        if (!file.find(name))
            fail_input(fmt::format("{}: lacks tensor \"{}\", which {} says is there", file.path().string(),
                                   name, kShardIndex));
    for (const StoredTensor& tensor : file.tensors())
        if (!expected.contains(tensor.name))
            fail_input(fmt::format("{}: holds tensor \"{}\", which {} does not list for it",
                                   file.path().string(), tensor.name, kShardIndex));
}

[[noreturn]] void fail_without_weights(const fs::path& folder) {
    for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
        if (fs::exists(folder / other))
            fail_input(fmt::format("{}: holds {}, expected safetensors weights; convert the model first",
                                   folder.string(), other));
    fail_input(fmt::format("{}: holds neither {} nor {}", folder.string(), kShardIndex, kSingleShard));
}

}  // namespace

void expect_inside(const fs::path& folder, const fs::path& file) {
    std::error_code error;
    const fs::path root = fs::canonical(folder, error);
    const fs::path target = error ? fs::path() : fs::canonical(file, error);
    if (error) fail_input(fmt::format("{}: no such file", file.string()));
    if (is_below(target, root)) return;
    // A Hub cache: models--NAME/snapshots/REVISION/FILE links to models--NAME/blobs/HASH.
    const fs::path snapshots = root.parent_path();
    if (snapshots.filename() == "snapshots" && is_below(target, snapshots.parent_path() / "blobs")) return;
    fail_input(fmt::format("{}: links to {}, out of its folder; replace the link by the file", file.string(),
                           target.string()));
}

bool is_weight_file(const fs::path& path) {
    const std::string name = path.filename().string();
    for (const char* end :
         {".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})
        if (name.ends_with(end)) return true;
    return false;
}

std::vector<SafetensorsFile> open_shards(const fs::path& folder) {
    std::vector<SafetensorsFile> files;
    if (!fs::exists(folder / kShardIndex)) {
        if (!fs::exists(folder / kSingleShard)) fail_without_weights(folder);
        expect_inside(folder, folder / kSingleShard);
        files.emplace_back(folder / kSingleShard);
        return files;
    }
    const TensorsOfShard shards = read_index(folder / kShardIndex);
    if (fs::exists(folder / kSingleShard) && !shards.contains(kSingleShard))
        fail_input(
            fmt::format("{}: holds both {} and an index of other shards; remove the one that is not meant",
                        folder.string(), kSingleShard));
    for (const auto& [shard, tensors] : shards) {
        if (!fs::exists(folder / shard))
            fail_input(fmt::format("{}: no such file, but {} names this shard", (folder / shard).string(),
                                   kShardIndex));
        expect_inside(folder, folder / shard);
    }
    for (const auto& [shard, tensors] : shards) {
        files.emplace_back(folder / shard);
        expect_tensors(files.back(), tensors);
    }
    return files;
}

}  // namespace minipuzzle
