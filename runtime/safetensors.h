// safetensors: u64 header length, JSON header, data. Reader over a mapping, writer into a file.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "runtime/files.h"

namespace minipuzzle {

struct StoredTensor {
    std::string name;
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::span<const std::byte> bytes;  // in the mapping; possibly misaligned: read by memcpy
    int64_t elements() const;
    int64_t size() const { return elements() * bytes_of(dtype); }  // in bytes, by its shape
};

// One mapped file. The header is checked in full before anything is read: its length against the file and
// 100 MB, JSON without duplicate keys, dtype, shape and size with overflow checks, ranges that tile the data
// without holes or overlap. Error bad_input names file, tensor, found, expected.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::filesystem::path& path);
    const std::filesystem::path& path() const { return path_; }
    const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the order of their data
    const StoredTensor* find(const std::string& name) const;
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    std::span<const std::byte> header() const { return header_; }         // its JSON text, for hashing
    std::span<const std::byte> content() const { return file_.bytes(); }  // the whole file

  private:
    std::filesystem::path path_;
    MappedFile file_;
    std::span<const std::byte> header_;
    std::vector<StoredTensor> tensors_;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, std::size_t> index_;
};

// The order tensors are stored in: larger elements first, else as given, so that every one is aligned to its
// element (readers that map the file need it).
void sort_for_storage(std::vector<StoredTensor>& tensors);
// The first bytes of a file that holds `tensors` in this order: header length and header, padded to 8 bytes.
// Only names, types and shapes are read.
std::string safetensors_header(const std::vector<StoredTensor>& tensors,
                               const std::map<std::string, std::string>& metadata);
// Writes `tensors` in storage order, fsynced; removes the file again on failure.
void write_safetensors(const std::filesystem::path& path, const std::vector<StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// The elements as float32, whatever floating dtype they are stored in (f64, f32, f16, bf16); `out` has
// elements() room.
void read_as_float(const StoredTensor& tensor, std::span<float> out);
// The inverse: `values` in `dtype` (f32, f16, bf16, f64), rounded to nearest even.
std::vector<std::byte> to_dtype(std::span<const float> values, DType dtype);

}  // namespace minipuzzle
