#include "runtime/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "kernels/check.h"

namespace minipuzzle {

namespace fs = std::filesystem;

namespace {

constexpr const char* kMarkerText =
    "Written by minipuzzle: this folder is its output and may be replaced by it.\n";

[[noreturn]] void fail_reading(const fs::path& path, int error) {
    fail_input(error == ENOENT ? fmt::format("{}: no such file", path.string())
                               : fmt::format("{}: cannot be read: {}", path.string(), std::strerror(error)));
}

// An open descriptor that closes itself.
struct Descriptor {
    int value = -1;
    Descriptor(const fs::path& path, int flags) : value(::open(path.c_str(), flags | O_CLOEXEC)) {}
    ~Descriptor() {
        if (value >= 0) ::close(value);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
};

// Makes a rename last; file systems that cannot sync a folder are left alone.
void sync_folder(const fs::path& folder) {
    const Descriptor descriptor(folder, O_RDONLY | O_DIRECTORY);
    if (descriptor.value >= 0) ::fsync(descriptor.value);
}

void make_folders(const fs::path& folder) {
    std::error_code error;
    if (!folder.empty()) fs::create_directories(folder, error);
    if (error) fail_writing(folder, error.value());
}

// The folder's own path: absolute, links resolved, without a trailing slash.
fs::path resolved(const fs::path& folder) {
    std::error_code error;
    fs::path path = fs::weakly_canonical(fs::absolute(folder), error);
    if (error) fail_input(fmt::format("{}: cannot be resolved: {}", folder.string(), error.message()));
    return path.has_filename() ? path : path.parent_path();
}

void expect_ours(const fs::path& folder) {
    std::error_code error;
    const fs::file_status status = fs::symlink_status(folder, error);
    if (!fs::exists(status)) return;
    if (!fs::is_directory(status))
        fail_input(
            fmt::format("{}: exists and is not a folder; choose another output folder", folder.string()));
    if (!fs::is_empty(folder, error) && !fs::exists(folder / kOutputMarker))
        fail_input(
            fmt::format("{}: exists and is not ours (it has files but no {} marker); choose an empty or new "
                        "output folder",
                        folder.string(), kOutputMarker));
}

// Puts `partial` where `folder` is; an existing folder ends up under the partial name.
void exchange(const fs::path& partial, const fs::path& folder) {
    if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) return;
    // A file system without the atomic exchange: two renames through a third name.
    const fs::path old = folder.string() + ".old";
    fs::remove_all(old);
    fs::rename(folder, old);
    fs::rename(partial, folder);
    fs::rename(old, partial);
}

void put_in_place(const fs::path& partial, const fs::path& folder) {
    if (fs::exists(folder)) {
        exchange(partial, folder);
        sync_folder(folder.parent_path());
        fs::remove_all(partial);
    } else {
        fs::rename(partial, folder);
        sync_folder(folder.parent_path());
    }
}

}  // namespace

void fail_writing(const fs::path& path, int error) {
    if (error == ENOSPC || error == EDQUOT)
        throw Error(ErrorKind::other,
                    fmt::format("disk full: {} could not be written; free some space or write elsewhere",
                                path.string()));
    const ErrorKind kind = error == EFBIG || error == EIO ? ErrorKind::other : ErrorKind::bad_input;
    throw Error(kind, fmt::format("{}: cannot be written: {}", path.string(), std::strerror(error)));
}

std::string read_file(const fs::path& path) {
    const Descriptor file(path, O_RDONLY);
    if (file.value < 0) fail_reading(path, errno);
    std::string content;
    struct stat status {};
    if (::fstat(file.value, &status) == 0 && S_ISREG(status.st_mode))
        content.reserve(static_cast<std::size_t>(status.st_size));
    char chunk[1 << 16];
    for (;;) {
        const ssize_t count = ::read(file.value, chunk, sizeof chunk);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail_reading(path, errno);
        if (count == 0) return content;
        content.append(chunk, static_cast<std::size_t>(count));
    }
}

FileWriter::FileWriter(const fs::path& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail_writing(path, errno);
}

FileWriter::~FileWriter() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(path_.c_str());
}

void FileWriter::write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail_writing(path_, errno);
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
}

void FileWriter::write(const std::string& text) { write(std::as_bytes(std::span(text))); }

void FileWriter::finish() {
    if (::fsync(descriptor_) != 0 && errno != EINVAL) fail_writing(path_, errno);
    if (::close(std::exchange(descriptor_, -1)) != 0) {
        const int error = errno;
        ::unlink(path_.c_str());
        fail_writing(path_, error);
    }
}

void write_file_atomically(const fs::path& path, const std::string& content) {
    make_folders(path.parent_path());
    const fs::path partial = path.string() + ".partial";
    FileWriter writer(partial);
    writer.write(content);
    writer.finish();
    if (::rename(partial.c_str(), path.c_str()) != 0) {
        const int error = errno;
        ::unlink(partial.c_str());
        fail_writing(path, error);
    }
    sync_folder(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

void write_folder_atomically(const fs::path& given,
                             const std::function<void(const fs::path& partial)>& fill) {
    const fs::path folder = resolved(given);
    const fs::path partial = folder.string() + ".partial";
    expect_ours(folder);
    expect_ours(partial);
    make_folders(folder.parent_path());
    try {
        fs::remove_all(partial);
        make_folders(partial);
        write_file_atomically(partial / kOutputMarker, kMarkerText);
        fill(partial);
        put_in_place(partial, folder);
    } catch (const fs::filesystem_error& error) {
        std::error_code ignored;
        fs::remove_all(partial, ignored);
        fail_writing(error.path1(), error.code().value());
    } catch (...) {
        std::error_code ignored;
        fs::remove_all(partial, ignored);
        throw;
    }
}

void claim_folder(const fs::path& folder) {
    const fs::path path = resolved(folder);
    expect_ours(path);
    make_folders(path);
    if (!fs::exists(path / kOutputMarker)) write_file_atomically(path / kOutputMarker, kMarkerText);
}

MappedFile::MappedFile(const fs::path& path) {
    const Descriptor file(path, O_RDONLY);
    if (file.value < 0) fail_reading(path, errno);
    struct stat status {};
    if (::fstat(file.value, &status) != 0) fail_reading(path, errno);
    if (!S_ISREG(status.st_mode)) fail_input(fmt::format("{}: is not a regular file", path.string()));
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;
    void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value, 0);
    if (memory == MAP_FAILED) fail_reading(path, errno);
    data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace minipuzzle
