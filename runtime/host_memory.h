// How much memory the host has left for pinning.
#pragma once

#include <cstdint>

namespace minipuzzle {

// Bytes that the process could still take, about: what the kernel calls available, or less where a control
// group limits the process. int64 max where the system does not say.
int64_t available_host_memory();

}  // namespace minipuzzle
