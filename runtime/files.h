// Files: whole reads, atomic writes, output folders that are ours, hashes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

namespace minipuzzle {

std::string read_file(const std::filesystem::path& path);

// Writes beside the target, fsyncs, renames: a reader sees the old file or the new one, never half of one.
// Error `other` on a full disk (the half-written neighbour is removed).
void write_file_atomically(const std::filesystem::path& path, const std::string& content);

// Builds a folder as `FOLDER.partial` through `fill(partial)` and renames it into place; on failure nothing
// is left. An existing target must be empty or carry our marker (a `.minipuzzle` file, written by this
// function), else Error bad_input; a marked one is replaced.
void write_folder_atomically(const std::filesystem::path& folder,
                             const std::function<void(const std::filesystem::path& partial)>& fill);

// Makes `folder` ours: creates it with the marker, or accepts one that is empty or already marked; Error
// bad_input "exists and is not ours" otherwise. For folders that grow over a run (search, distill, run).
void claim_folder(const std::filesystem::path& folder);

// "sha256:<64 hex digits>".
std::string sha256(std::span<const std::byte> bytes);
std::string sha256(const std::string& text);
std::string sha256_of_file(const std::filesystem::path& path);

// A read-only mapping of a whole file.
class MappedFile {
  public:
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::span<const std::byte> bytes() const { return {data_, size_}; }

  private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace minipuzzle
