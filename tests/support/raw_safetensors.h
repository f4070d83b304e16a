// safetensors files put together byte by byte, for crafting broken ones.
#pragma once

#include <cstdint>
#include <string>

namespace minipuzzle::test {

// Header length, header text as it is, data.
inline std::string raw_safetensors(const std::string& header, const std::string& data,
                                   uint64_t claimed_length) {
    std::string file;
    for (int i = 0; i < 8; ++i) file += static_cast<char>(claimed_length >> (8 * i) & 0xff);
    return file.append(header).append(data);
}

inline std::string raw_safetensors(const std::string& header, const std::string& data) {
    return raw_safetensors(header, data, header.size());
}

}  // namespace minipuzzle::test
