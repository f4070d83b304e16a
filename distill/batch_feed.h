// BatchFeed: training rows on the device before the device asks for them.
#pragma once

#include <functional>
#include <future>

#include "runtime/arena.h"
#include "runtime/token_source.h"

namespace minipuzzle::distill {

// The rows of one step on the device.
struct DeviceBatch {
    Tensor tokens, targets, document;  // [B, T] i32
    int64_t target_count = 0;          // unmasked ones
};

// Two buffers take turns: while the operations of a step read one, the other is filled for the next step, by
// a copy queue from pinned memory. The rows themselves are put together on a thread of their own one step
// further ahead. Rows come in their order whatever the timing.
class BatchFeed {
  public:
    // On a measuring arena it takes its buffers and gives batches without contents.
    BatchFeed(Backend& backend, DeviceArena& arena, int64_t batch, int64_t seq_len);
    ~BatchFeed();
    BatchFeed(const BatchFeed&) = delete;
    BatchFeed& operator=(const BatchFeed&) = delete;

    // `rows` gives the step's rows, is called from one other thread at a time, steps `first` to `last` in
    // order.
    void start(std::function<PackedBatch(int64_t step)> rows, int64_t first, int64_t last);
    // The next step's rows, for operations given from here on; call it once a step, when the operations of
    // the step before the last are done. Throws what `rows` threw.
    const DeviceBatch& next();

  private:
    struct Slot {
        DeviceBatch batch;
        std::byte* pinned = nullptr;
        CopyQueue::Ticket ticket = 0;
    };
    void prepare();  // sets the thread to work on step `prepared_`
    void upload();   // step `uploaded_`, which the thread has put together
    Slot& slot_of(int64_t step) { return slots_[step % 2]; }

    Backend& backend_;
    bool measuring_;
    Slot slots_[2];
    std::unique_ptr<CopyQueue> copies_;
    std::function<PackedBatch(int64_t)> rows_;
    int64_t last_ = 0, prepared_ = 0, uploaded_ = 0, given_ = 0;  // the next step to prepare, upload, give
    std::future<PackedBatch> ready_;
};

}  // namespace minipuzzle::distill
