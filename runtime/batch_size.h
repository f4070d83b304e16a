// How many tokens a batch should hold.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"
#include "runtime/token_source.h"

namespace minipuzzle {

inline int64_t longest(const std::vector<Window>& windows) {
    int64_t length = 1;
    for (const Window& window : windows) length = std::max<int64_t>(length, window.length);
    return length;
}

// What of a device's free memory may be taken: the driver takes some for itself.
inline int64_t usable_memory(const Backend& backend) { return backend.available() / 20 * 19; }

// On a device: as many as keep it busy and `room` bytes take, by `arena_bytes(batch, length)`, the dry run of
// that batch; at least one window. Results do not depend on it.
inline int64_t tokens_that_fit(int64_t room, const std::vector<Window>& windows,
                               const std::function<int64_t(int64_t batch, int64_t length)>& arena_bytes) {
    constexpr int64_t kMost = 32768;
    const int64_t length = longest(windows);
    int64_t batch = std::max<int64_t>(1, kMost / length);
    while (batch > 1 && arena_bytes(batch, length) > room) batch /= 2;
    return batch * length;
}
inline int64_t tokens_that_fit(const Backend& backend, const std::vector<Window>& windows,
                               const std::function<int64_t(int64_t batch, int64_t length)>& arena_bytes) {
    return tokens_that_fit(usable_memory(backend), windows, arena_bytes);
}

// A batch of that size without contents, for dry runs.
inline WindowBatch blank_batch(int64_t batch, int64_t length) {
    return {.windows = {}, .batch = batch, .length = length, .tokens = {}, .targets = {}};
}

}  // namespace minipuzzle
