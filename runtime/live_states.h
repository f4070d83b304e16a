// LiveStates: where the states of a sweep lie while its layers run: in device memory, or in pinned host
// memory, from where they pass through a few buffers on the device.
#pragma once

#include <memory>
#include <vector>

#include "runtime/arena.h"
#include "runtime/variant_sweep.h"

namespace minipuzzle {

// Which slots wait in host memory.
struct StatePlan {
    std::vector<bool> on_host;

    int64_t host_states() const;
    int64_t resident_states() const { return std::ssize(on_host) - host_states(); }
};
// The `resident` slots that most steps touch stay on the device (of equals those with the lowest numbers):
// what is moved least costs most memory for its traffic.
StatePlan plan_states(const SweepSchedule& schedule, int64_t resident);

// Steps run in the schedule's order. While one computes, the state that the next one reads is loaded and the
// one before is stored, both beside the arithmetic. Bits do not depend on the plan.
class LiveStates {
  public:
    // `shape` is that of a state, [B, T, D]; `host` has room for the plan's host states (may be null on a
    // measuring arena). Takes the resident states from the arena.
    LiveStates(Backend& backend, DeviceArena& arena, const SweepSchedule& schedule, const StatePlan& plan,
               const Tensor& shape, std::byte* host);

    // A step's tensors; `from` is empty for the first one, which makes the state that all others come from.
    struct Step {
        Tensor from, to;
    };
    // Takes the buffers that host states pass through from the arena; end_layers() comes before their
    // release.
    void begin_layers();
    // The next step, for operations given from here to end_step().
    Step begin_step();
    void end_step();
    void end_layers();

    int64_t host_states() const { return host_states_; }
    // A slot's state where it stays on the device, else empty.
    const Tensor& resident(int64_t slot) const { return resident_[slot]; }
    // Copies rows [begin, begin + count) of every host state, one after the other, to `to`
    // [host states, count, D]; host_index() says which is which. After end_layers().
    CopyQueue::Ticket load_rows(int64_t begin, int64_t count, const Tensor& to);
    int64_t host_index(int64_t slot) const { return host_index_[slot]; }
    void operations_wait(CopyQueue::Ticket ticket) { copies_->operations_wait(ticket); }

  private:
    static constexpr int64_t kBuffers = 4;  // two of the step that runs, one being filled, one being emptied
    static constexpr CopyQueue::Ticket kNone = -1;
    struct Buffer {
        Tensor state;
        int64_t slot = -1;                                 // whose state it holds, or will
        int64_t used = -1;                                 // the last step that needs it, so far
        CopyQueue::Ticket loaded = kNone, stored = kNone;  // still to be waited for
    };

    std::byte* host_of(int64_t slot) const { return host_ + host_index_[slot] * shape_.bytes(); }
    Buffer* find(int64_t slot);
    Buffer& take_buffer(int64_t slot, int64_t step);
    void load(int64_t slot, int64_t step);
    void prefetch(std::size_t step);

    DeviceArena& arena_;
    Tensor shape_;
    std::byte* host_;
    std::vector<SweepSchedule::Step> steps_;
    std::vector<Tensor> resident_;
    std::vector<int64_t> host_index_;  // -1: resident
    int64_t host_states_ = 0;
    std::vector<CopyQueue::Ticket> stored_;  // of each slot: the last copy to the host
    std::vector<Buffer> buffers_;
    std::unique_ptr<CopyQueue> copies_;  // null where all states are resident
    std::size_t next_ = 0;
};

}  // namespace minipuzzle
