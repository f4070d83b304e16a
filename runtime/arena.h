// DeviceArena: one block of device memory, named takes, released in reverse order; sized by a dry run.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace minipuzzle {

// Two modes. measuring(): takes hand out shapes without memory and only the peak is kept; the wiring code is
// then run once over a measuring backend (kernels/backend.h). sized: one allocation of the measured peak,
// takes are pointer bumps; a take that does not fit is Error out_of_memory with the table.
class DeviceArena {
  public:
    static DeviceArena measuring(Backend& measuring_backend);
    static DeviceArena sized(Backend& backend, int64_t bytes);
    ~DeviceArena();
    DeviceArena(DeviceArena&&) noexcept;
    DeviceArena(const DeviceArena&) = delete;
    DeviceArena& operator=(const DeviceArena&) = delete;

    // What a take of that many bytes takes.
    static int64_t aligned(int64_t bytes) { return div_up(bytes, kAlignment) * kAlignment; }

    // A tensor of the backend's compute type, uninitialised, 256-byte aligned, valid until released.
    Tensor take(const std::string& name, std::initializer_list<int64_t> shape);
    Tensor take(const std::string& name, std::initializer_list<int64_t> shape, DType dtype);

    using Mark = std::size_t;
    Mark mark() const { return takes_.size(); }
    void release(Mark mark);  // frees every take since the mark

    bool is_measuring() const { return measuring_; }
    int64_t capacity() const { return capacity_; }
    int64_t used() const { return used_; }
    int64_t peak() const { return peak_; }
    // The live takes at the moment of the peak, largest first: "activations.zxbcdt  12.0 MiB", and the
    // scratch memory of operations where there is any.
    std::string peak_table(int64_t scratch_bytes = 0) const;

  private:
    static constexpr int64_t kAlignment = 256;
    DeviceArena(Backend& backend, bool measuring, int64_t capacity);
    struct Take {
        std::string name;
        int64_t offset = 0, bytes = 0;
    };
    Backend* backend_;
    bool measuring_;
    std::byte* block_ = nullptr;
    int64_t capacity_ = 0, used_ = 0, peak_ = 0;
    std::vector<Take> takes_, at_peak_;
};

// Releases what was taken in its scope.
class ArenaScope {
  public:
    explicit ArenaScope(DeviceArena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~ArenaScope() { arena_.release(mark_); }
    ArenaScope(const ArenaScope&) = delete;
    ArenaScope& operator=(const ArenaScope&) = delete;

  private:
    DeviceArena& arena_;
    DeviceArena::Mark mark_;
};

// The dry run and the real one, one after the other: `wiring(Backend&, DeviceArena&)` runs first on a
// measuring arena, then on real memory of the measured size, which is kept for the next call when that needs
// no more. The wiring must touch data only where `!arena.is_measuring()`.
class MeasuredRunner {
  public:
    explicit MeasuredRunner(Backend& backend) : backend_(backend), dry_backend_(backend.measuring()) {}

    template <class Wiring>
    void run(Wiring&& wiring) {
        run_in(dry_run(wiring), wiring);
    }
    // The real run alone, in an arena of a size that a dry run of the same shapes gave (arena_of).
    template <class Wiring>
    void run_in(int64_t arena_bytes, Wiring&& wiring) {
        make_room(arena_bytes);
        arena_->release(0);  // what a run that broke off left
        wiring(backend_, *arena_);
        arena_->release(0);
    }
    // The dry run alone: bytes of the arena.
    template <class Wiring>
    int64_t arena_of(Wiring&& wiring) {
        return dry_run(wiring);
    }
    // The dry run alone: bytes of arena and scratch together.
    template <class Wiring>
    int64_t peak_of(Wiring&& wiring) {
        const int64_t bytes = dry_run(wiring);
        return bytes + scratch_bytes();
    }
    // The most scratch that any dry run so far asked for.
    int64_t scratch_bytes() const { return dry_backend_->scratch_bytes(); }
    // Bytes of the largest arena so far, and of scratch.
    int64_t peak() const { return (arena_ ? arena_->capacity() : 0) + dry_backend_->scratch_bytes(); }
    // What the last dry run took, largest first.
    const std::string& table() const { return table_; }

  private:
    template <class Wiring>
    int64_t dry_run(Wiring&& wiring) {
        DeviceArena dry = DeviceArena::measuring(*dry_backend_);
        wiring(*dry_backend_, dry);
        table_ = dry.peak_table(dry_backend_->scratch_bytes());
        return dry.peak();
    }
    // Error out_of_memory with the table.
    void make_room(int64_t arena_bytes);

    Backend& backend_;
    std::unique_ptr<Backend> dry_backend_;
    std::string table_;
    std::optional<DeviceArena> arena_;
};

}  // namespace minipuzzle
