// Finding and opening the weight files of a model folder.
#pragma once

#include <filesystem>
#include <vector>

#include "runtime/safetensors.h"

namespace minipuzzle {

inline constexpr const char* kShardIndex = "model.safetensors.index.json";
inline constexpr const char* kSingleShard = "model.safetensors";

// Error bad_input where `file` is, or links to, something outside `folder` (or its Hub cache's blobs).
void expect_inside(const std::filesystem::path& folder, const std::filesystem::path& file);

// Weights in any format and their indices, by the file's name: what is never copied beside a student's own.
bool is_weight_file(const std::filesystem::path& path);

// The shards of a folder, by the index or model.safetensors alone, sorted by name, each opened and holding
// exactly the tensors that the index gives it.
std::vector<SafetensorsFile> open_shards(const std::filesystem::path& folder);

}  // namespace minipuzzle
