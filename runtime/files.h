// Files: whole reads, atomic writes, output folders that are ours, hashes.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

namespace minipuzzle {

// The whole content. Error bad_input where there is no such file or it cannot be read.
// The Error of a write that failed with errno `error`: "disk full: ..." where it is, else what the system
// says.
[[noreturn]] void fail_writing(const std::filesystem::path& path, int error);

std::string read_file(const std::filesystem::path& path);

// Writes one new file from front to back. finish() flushes it to the disk; a writer that goes away before
// that removes its file. Error `other` on a full disk ("disk full: ..."), bad_input where the path cannot be
// written.
class FileWriter {
  public:
    explicit FileWriter(const std::filesystem::path& path);
    ~FileWriter();
    FileWriter(const FileWriter&) = delete;
    FileWriter& operator=(const FileWriter&) = delete;
    void write(std::span<const std::byte> bytes);
    void write(const std::string& text);
    void finish();

  private:
    std::filesystem::path path_;
    int descriptor_ = -1;
};

// Writes beside the target (PATH.partial), fsyncs, renames: a reader sees the old file or the new one, never
// half of one. Missing parent folders are made. Error `other` on a full disk (the half-written neighbour is
// removed).
void write_file_atomically(const std::filesystem::path& path, const std::string& content);

// The file that says a folder is our output and may be replaced.
inline constexpr const char* kOutputMarker = ".minipuzzle";

// Builds a folder as `FOLDER.partial` through `fill(partial)` and renames it into place; on failure nothing
// is left. An existing target must be empty or carry our marker, which this function writes, else Error
// bad_input; a marked one is replaced.
void write_folder_atomically(const std::filesystem::path& folder,
                             const std::function<void(const std::filesystem::path& partial)>& fill);

// Makes `folder` ours: creates it with the marker, or accepts one that is empty or already marked; Error
// bad_input "exists and is not ours" otherwise. For folders that grow over a run (search, distill, run).
void claim_folder(const std::filesystem::path& folder);

// SHA-256 of what update() was given, in order.
class Sha256 {
  public:
    void update(std::span<const std::byte> bytes);
    void update(const std::string& text);
    std::string digest();  // "sha256:<64 hex digits>"; once, after the last update

  private:
    void block(const std::byte* bytes);
    // First 32 bits of the fractional parts of the square roots of the first 8 primes (FIPS 180-4, 5.3.3).
    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::byte, 64> buffer_{};
    std::size_t filled_ = 0;
    uint64_t length_ = 0;
};

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
