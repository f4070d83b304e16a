// Reads NumPy's .npy files of float32.
#pragma once

#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/files.h"

namespace minipuzzle::test {

struct NpyArray {
    std::vector<int64_t> shape;
    std::vector<float> values;  // C order
};

// Versions 1 and 2 of the format, little-endian float32 in C order; throws std::runtime_error on anything
// else.
inline NpyArray read_npy(const std::filesystem::path& path) {
    const std::string content = read_file(path);
    if (content.size() < 12 || content.compare(0, 6, "\x93NUMPY") != 0)
        throw std::runtime_error(path.string() + " is no .npy file");
    const auto byte = [&](std::size_t at) {
        return static_cast<std::size_t>(static_cast<unsigned char>(content[at]));
    };
    const bool first_version = content[6] == 1;
    const std::size_t begin = first_version ? 10 : 12;
    const std::size_t length = first_version ? byte(8) + 256 * byte(9)
                                             : byte(8) + 256 * (byte(9) + 256 * (byte(10) + 256 * byte(11)));
    const std::string header = content.substr(begin, length);
    if (header.find("'<f4'") == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error(path.string() + " is not float32 in C order: " + header);
    NpyArray array;
    std::size_t at = header.find('(', header.find("'shape'")) + 1;
    std::size_t count = 1;
    while (header.find_first_of("0123456789", at) < header.find(')', at)) {
        at = header.find_first_of("0123456789", at);
        array.shape.push_back(std::stoll(header.substr(at)));
        count *= static_cast<std::size_t>(array.shape.back());
        at = header.find_first_of(",)", at);
    }
    if (content.size() != begin + length + count * sizeof(float))
        throw std::runtime_error(path.string() + " has another size than its shape says");
    array.values.resize(count);
    std::memcpy(array.values.data(), content.data() + begin + length, count * sizeof(float));
    return array;
}

}  // namespace minipuzzle::test
