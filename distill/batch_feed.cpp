#include "distill/batch_feed.h"

#include <algorithm>
#include <cstring>

namespace minipuzzle::distill {

BatchFeed::BatchFeed(Backend& backend, DeviceArena& arena, int64_t batch, int64_t seq_len)
    : backend_(backend), measuring_(arena.is_measuring()), copies_(backend.make_copy_queue()) {
    for (Slot& slot : slots_) {
        for (Tensor* tensor : {&slot.batch.tokens, &slot.batch.targets, &slot.batch.document})
            *tensor = arena.take("rows of a step", {batch, seq_len}, DType::i32);
        slot.batch.target_count = batch * seq_len;
        slot.pinned = backend.allocate_pinned(3 * slot.batch.tokens.bytes());
    }
}

BatchFeed::~BatchFeed() {
    if (ready_.valid()) ready_.wait();
    if (!measuring_ && uploaded_ > 0) copies_->host_wait(slot_of(uploaded_ - 1).ticket);
    for (Slot& slot : slots_)
        if (slot.pinned) backend_.free_pinned(slot.pinned);
}

void BatchFeed::start(std::function<PackedBatch(int64_t step)> rows, int64_t first, int64_t last) {
    rows_ = std::move(rows);
    last_ = last;
    prepared_ = uploaded_ = given_ = first;
    prepare();
    upload();
}

void BatchFeed::prepare() {
    if (prepared_ > last_) return;
    ready_ = std::async(std::launch::async, rows_, prepared_++);
}

void BatchFeed::upload() {
    if (!ready_.valid()) return;
    const PackedBatch rows = ready_.get();
    prepare();
    Slot& slot = slot_of(uploaded_++);
    slot.batch.target_count =
        std::count_if(rows.targets.begin(), rows.targets.end(), [](int32_t target) { return target >= 0; });
    std::byte* host = slot.pinned;
    const auto copy = [&](const Tensor& to, const std::vector<int32_t>& from) {
        MP_ASSERT(to.elements() == std::ssize(from));
        std::memcpy(host, from.data(), static_cast<std::size_t>(to.bytes()));
        slot.ticket = copies_->copy(to.data, host, to.bytes());
        host += to.bytes();
    };
    copy(slot.batch.tokens, rows.tokens);
    copy(slot.batch.targets, rows.targets);
    copy(slot.batch.document, rows.document);
}

const DeviceBatch& BatchFeed::next() {
    if (measuring_) return slots_[0].batch;
    MP_ASSERT(given_ < uploaded_);
    const Slot& slot = slot_of(given_++);
    copies_->operations_wait(slot.ticket);
    upload();
    return slot.batch;
}

}  // namespace minipuzzle::distill
