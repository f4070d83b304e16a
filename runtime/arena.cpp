#include "runtime/arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace minipuzzle {

DeviceArena::DeviceArena(Backend& backend, bool measuring, int64_t capacity)
    : backend_(&backend), measuring_(measuring), capacity_(capacity) {
    if (!measuring && capacity > 0) block_ = backend.allocate(capacity);
}

DeviceArena DeviceArena::measuring(Backend& measuring_backend) { return {measuring_backend, true, 0}; }
DeviceArena DeviceArena::sized(Backend& backend, int64_t bytes) { return {backend, false, bytes}; }

DeviceArena::DeviceArena(DeviceArena&& other) noexcept
    : backend_(other.backend_),
      measuring_(other.measuring_),
      block_(std::exchange(other.block_, nullptr)),
      capacity_(other.capacity_),
      used_(other.used_),
      peak_(other.peak_),
      takes_(std::move(other.takes_)),
      at_peak_(std::move(other.at_peak_)) {}

DeviceArena::~DeviceArena() {
    if (block_) backend_->free(block_);
}

Tensor DeviceArena::take(const std::string& name, std::initializer_list<int64_t> shape) {
    return take(name, shape, backend_->compute_type());
}

Tensor DeviceArena::take(const std::string& name, std::initializer_list<int64_t> shape, DType dtype) {
    Tensor tensor(nullptr, dtype, shape, backend_->device());
    const int64_t bytes = aligned(tensor.bytes());
    takes_.push_back({name, used_, bytes});
    used_ += bytes;
    if (used_ > peak_) {
        peak_ = used_;
        // Copying the list at every new peak would be quadratic; a real run only needs it when it fails.
        if (measuring_) at_peak_ = takes_;
    }
    if (measuring_) return tensor;
    if (used_ > capacity_) {
        at_peak_ = takes_;
        const std::string table = peak_table();
        throw Error(
            ErrorKind::out_of_memory,
            fmt::format("out of memory: \"{}\" needs {} more bytes than the {} the dry run measured\n{}",
                        name, used_ - capacity_, capacity_, table));
    }
    tensor.data = block_ + takes_.back().offset;
    return tensor;
}

void DeviceArena::release(Mark mark) {
    MP_ASSERT(mark <= takes_.size());
    if (mark == takes_.size()) return;
    used_ = takes_[mark].offset;
    takes_.resize(mark);
}

std::string DeviceArena::peak_table(int64_t scratch_bytes) const {
    std::vector<std::pair<std::string, int64_t>> totals;
    for (const Take& take : at_peak_) {
        auto same =
            std::find_if(totals.begin(), totals.end(), [&](auto& row) { return row.first == take.name; });
        if (same == totals.end())
            totals.emplace_back(take.name, take.bytes);
        else
            same->second += take.bytes;
    }
    if (scratch_bytes > 0) totals.emplace_back("scratch of operations", scratch_bytes);
    std::stable_sort(totals.begin(), totals.end(), [](auto& a, auto& b) { return a.second > b.second; });
    std::string table;
    for (const auto& [name, bytes] : totals)
        table += fmt::format("  {:<40} {:>12.1f} MiB\n", name, bytes / 1048576.0);
    return table + fmt::format("  {:<40} {:>12.1f} MiB\n", "peak", (peak_ + scratch_bytes) / 1048576.0);
}

void MeasuredRunner::make_room(int64_t arena_bytes) {
    try {
        if (!arena_ || arena_->capacity() < arena_bytes) {
            arena_.reset();
            arena_.emplace(DeviceArena::sized(backend_, arena_bytes));
        }
        backend_.reserve_scratch(dry_backend_->scratch_bytes());
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        throw Error(ErrorKind::out_of_memory, fmt::format("{}\n{}", error.what(), table_));
    }
}

}  // namespace minipuzzle
