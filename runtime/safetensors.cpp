#include "runtime/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "runtime/artefact.h"

namespace minipuzzle {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kHighestRank = 16;

// Little-endian, as the format says.
uint64_t read_u64(std::span<const std::byte> bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
    return value;
}

std::string write_u64(uint64_t value) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
    return bytes;
}

// Checks a header and turns its entries into tensors. Messages open with the file's path.
class HeaderReader {
  public:
    HeaderReader(std::string where, std::span<const std::byte> data)
        : where_(std::move(where)), data_(data) {}

    StoredTensor tensor(const std::string& name, const nlohmann::json& entry) const {
        if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
            !entry.contains("data_offsets"))
            fail(name, "expected an object of dtype, shape and data_offsets");
        StoredTensor tensor;
        tensor.name = name;
        tensor.dtype = dtype(name, entry["dtype"]);
        tensor.shape = shape(name, entry["shape"]);
        const auto [begin, end] = offsets(name, entry["data_offsets"]);
        const uint64_t size = byte_size(name, tensor);
        if (end - begin != size)
            fail(name, fmt::format("holds {} bytes, but {} {} needs {}", end - begin, info(tensor.dtype).name,
                                   tensor.shape, size));
        tensor.bytes = data_.subspan(begin, size);
        return tensor;
    }

    // Ranges tile the data: in their order each begins where the last one ended, and the last ends the file.
    void check_tiling(const std::vector<StoredTensor>& tensors) const {
        const std::byte* expected = data_.data();
        for (const StoredTensor& tensor : tensors) {
            if (tensor.bytes.data() != expected)
                fail(tensor.name,
                     fmt::format(
                         "begins at byte {} of the data, expected {} (the ranges must have neither holes "
                         "nor overlap)",
                         tensor.bytes.data() - data_.data(), expected - data_.data()));
            expected += tensor.bytes.size();
        }
        if (expected != data_.data() + data_.size())
            fail_input(fmt::format("{}: has {} bytes of data, but its tensors cover {}", where_, data_.size(),
                                   expected - data_.data()));
    }

  private:
    [[noreturn]] void fail(const std::string& name, const std::string& what) const {
        fail_input(fmt::format("{}: tensor \"{}\": {}", where_, name, what));
    }

    DType dtype(const std::string& name, const nlohmann::json& value) const {
        for (const DTypeInfo& known : kDTypes)
            if (value == known.name) return known.dtype;
        fail(name, fmt::format("the dtype {} is unknown", value.dump()));
    }

    std::vector<int64_t> shape(const std::string& name, const nlohmann::json& value) const {
        if (!value.is_array() || value.size() > kHighestRank)
            fail(name, fmt::format("the shape is not a list of at most {} sizes", kHighestRank));
        std::vector<int64_t> extents;
        for (const nlohmann::json& extent : value) {
            if (!extent.is_number_unsigned() || extent.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
                fail(name, fmt::format("the shape holds {}, expected whole numbers from 0", extent.dump()));
            extents.push_back(extent.get<int64_t>());
        }
        return extents;
    }

    std::pair<uint64_t, uint64_t> offsets(const std::string& name, const nlohmann::json& value) const {
        if (!value.is_array() || value.size() != 2 || !value[0].is_number_unsigned() ||
            !value[1].is_number_unsigned())
            fail(name, "data_offsets is not a pair of whole numbers from 0");
        const uint64_t begin = value[0], end = value[1];
        if (begin > end || end > data_.size())
            fail(name, fmt::format("data_offsets is [{}, {}], but the file has {} bytes of data", begin, end,
                                   data_.size()));
        return {begin, end};
    }

    uint64_t byte_size(const std::string& name, const StoredTensor& tensor) const {
        int64_t size = bytes_of(tensor.dtype);
        if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) return 0;
        for (int64_t extent : tensor.shape)
            if (__builtin_mul_overflow(size, extent, &size))
                fail(name, fmt::format("the shape {} overflows", tensor.shape));
        return static_cast<uint64_t>(size);
    }

    std::string where_;
    std::span<const std::byte> data_;
};

std::map<std::string, std::string> read_metadata(const nlohmann::json& value, const std::string& where) {
    std::map<std::string, std::string> metadata;
    if (!value.is_object()) fail_input(fmt::format("{}: __metadata__ is not an object", where));
    for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) fail_input(fmt::format("{}: __metadata__ \"{}\" is not a string", where, key));
        metadata[key] = text.get<std::string>();
    }
    return metadata;
}

std::span<const std::byte> header_of(std::span<const std::byte> file, const std::string& where) {
    if (file.size() < kLengthBytes)
        fail_input(
            fmt::format("{}: has {} bytes, which is too short for a safetensors file", where, file.size()));
    const uint64_t length = read_u64(file);
    if (length > kLongestHeader || length > file.size() - kLengthBytes)
        fail_input(fmt::format(
            "{}: its header claims {} bytes, but the file has {} and at most {} are allowed; is it "
            "a safetensors file, fully copied?",
            where, length, file.size(), kLongestHeader));
    return file.subspan(kLengthBytes, length);
}

template <class Stored, class Convert>
void convert_all(const StoredTensor& tensor, std::span<float> out, Convert convert) {
    for (std::size_t i = 0; i < out.size(); ++i) {
        Stored value;
        std::memcpy(&value, tensor.bytes.data() + i * sizeof value, sizeof value);
        out[i] = convert(value);
    }
}

template <class Stored, class Convert>
std::vector<std::byte> store_all(std::span<const float> values, Convert convert) {
    std::vector<std::byte> bytes(values.size() * sizeof(Stored));
    for (std::size_t i = 0; i < values.size(); ++i) {
        const Stored value = convert(values[i]);
        std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
    return bytes;
}

}  // namespace

int64_t StoredTensor::elements() const {
    // A zero first: the other extents of an empty tensor are not checked against overflow.
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    return count;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path), file_(path) {
    const std::string where = path.string();
    header_ = header_of(file_.bytes(), where);
    const std::string text(reinterpret_cast<const char*>(header_.data()), header_.size());
    const nlohmann::json header = parse_sorted_json(text, where + ": header");
    if (!header.is_object()) fail_input(fmt::format("{}: its header is not an object", where));
    const HeaderReader reader(where, file_.bytes().subspan(kLengthBytes + header_.size()));
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__")
            metadata_ = read_metadata(entry, where);
        else
            tensors_.push_back(reader.tensor(name, entry));
    }
    // Empty tensors share an offset with their neighbour: their end comes first.
    std::sort(tensors_.begin(), tensors_.end(), [](const StoredTensor& a, const StoredTensor& b) {
        const auto key = [](const StoredTensor& t) {
            return std::tuple(t.bytes.data(), t.bytes.data() + t.bytes.size(), std::string_view(t.name));
        };
        return key(a) < key(b);
    });
    reader.check_tiling(tensors_);
    for (std::size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

const StoredTensor* SafetensorsFile::find(const std::string& name) const {
    const auto entry = index_.find(name);
    return entry == index_.end() ? nullptr : &tensors_[entry->second];
}

void sort_for_storage(std::vector<StoredTensor>& tensors) {
    std::stable_sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
        return bytes_of(a.dtype) > bytes_of(b.dtype);
    });
}

std::string safetensors_header(const std::vector<StoredTensor>& tensors,
                               const std::map<std::string, std::string>& metadata) {
    Json header = Json::object();
    auto& entries = header.get_ref<Json::object_t&>();
    if (!metadata.empty()) entries.emplace_back("__metadata__", metadata);
    int64_t offset = 0;
    for (const StoredTensor& tensor : tensors) {
        const int64_t end = offset + tensor.size();
        // Appended rather than assigned: ordered objects look keys up linearly.
        entries.emplace_back(tensor.name, Json{{"dtype", info(tensor.dtype).name},
                                               {"shape", tensor.shape},
                                               {"data_offsets", {offset, end}}});
        offset = end;
    }
    std::string text = header.dump();
    text.resize(div_up(std::ssize(text), 8) * 8, ' ');
    return write_u64(text.size()) + text;
}

void write_safetensors(const std::filesystem::path& path, const std::vector<StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
    std::vector<StoredTensor> stored = tensors;
    sort_for_storage(stored);
    FileWriter file(path);
    file.write(safetensors_header(stored, metadata));
    for (const StoredTensor& tensor : stored) {
        MP_ASSERT(std::ssize(tensor.bytes) == tensor.size());
        file.write(tensor.bytes);
    }
    file.finish();
}

void read_as_float(const StoredTensor& tensor, std::span<float> out) {
    MP_ASSERT(std::ssize(out) == tensor.elements() && std::ssize(tensor.bytes) == tensor.size());
    switch (tensor.dtype) {
        case DType::f64:
            return convert_all<double>(tensor, out, [](double value) { return static_cast<float>(value); });
        case DType::f32:
            return convert_all<float>(tensor, out, [](float value) { return value; });
        case DType::f16:
            return convert_all<uint16_t>(tensor, out, f16_to_float);
        case DType::bf16:
            return convert_all<uint16_t>(tensor, out, bf16_to_float);
        default:
            fail_input(fmt::format("tensor \"{}\" has dtype {}, expected F64, F32, F16 or BF16", tensor.name,
                                   info(tensor.dtype).name));
    }
}

std::vector<std::byte> to_dtype(std::span<const float> values, DType dtype) {
    switch (dtype) {
        case DType::f64:
            return store_all<double>(values, [](float value) { return static_cast<double>(value); });
        case DType::f32:
            return store_all<float>(values, [](float value) { return value; });
        case DType::f16:
            return store_all<uint16_t>(values, float_to_f16);
        case DType::bf16:
            return store_all<uint16_t>(values, float_to_bf16);
        default:
            MP_ASSERT(false);
    }
}

}  // namespace minipuzzle
