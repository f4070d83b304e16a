#include "runtime/live_states.h"

#include <algorithm>
#include <numeric>

namespace minipuzzle {

int64_t StatePlan::host_states() const { return std::count(on_host.begin(), on_host.end(), true); }

StatePlan plan_states(const SweepSchedule& schedule, int64_t resident) {
    std::vector<int64_t> touched(schedule.slots, 0), order(schedule.slots);
    for (const auto& layer : schedule.layers)
        for (const SweepSchedule::Step& step : layer) {
            ++touched[step.from];
            if (step.to != step.from) ++touched[step.to];
        }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return touched[a] > touched[b]; });
    StatePlan plan{std::vector<bool>(schedule.slots, true)};
    for (int64_t i = 0; i < std::min(resident, schedule.slots); ++i) plan.on_host[order[i]] = false;
    return plan;
}

LiveStates::LiveStates(Backend& backend, DeviceArena& arena, const SweepSchedule& schedule,
                       const StatePlan& plan, const Tensor& shape, std::byte* host)
    : arena_(arena),
      shape_(shape),
      host_(host),
      steps_({{.from = -1, .to = 0}}),
      resident_(schedule.slots),
      host_index_(schedule.slots, -1),
      stored_(schedule.slots, kNone) {
    for (const auto& layer : schedule.layers) steps_.insert(steps_.end(), layer.begin(), layer.end());
    for (int64_t slot = 0; slot < schedule.slots; ++slot) {
        if (plan.on_host[slot])
            host_index_[slot] = host_states_++;
        else
            resident_[slot] = arena.take("live states", {shape.size(0), shape.size(1), shape.size(2)});
    }
    if (host_states_ > 0) copies_ = backend.make_copy_queue();
}

void LiveStates::begin_layers() {
    if (!copies_) return;
    for (int64_t i = 0; i < kBuffers; ++i)
        buffers_.push_back(
            {arena_.take("states on their way", {shape_.size(0), shape_.size(1), shape_.size(2)})});
}

LiveStates::Buffer* LiveStates::find(int64_t slot) {
    for (Buffer& buffer : buffers_)
        if (buffer.slot == slot) return &buffer;
    return nullptr;
}

// The buffer whose last step is longest ago.
LiveStates::Buffer& LiveStates::take_buffer(int64_t slot, int64_t step) {
    Buffer& buffer = *std::min_element(buffers_.begin(), buffers_.end(),
                                       [](const Buffer& a, const Buffer& b) { return a.used < b.used; });
    MP_ASSERT(buffer.used < step - 1 || buffer.used < 0);
    buffer.slot = slot;
    buffer.used = step;
    return buffer;
}

// Copies to the device start after the operations given so far, so nobody still reads the buffer's old state.
void LiveStates::load(int64_t slot, int64_t step) {
    if (Buffer* there = find(slot)) {
        there->used = step;
        return;
    }
    Buffer& buffer = take_buffer(slot, step);
    if (buffer.stored != kNone) copies_->copies_wait(buffer.stored);
    buffer.stored = kNone;
    if (stored_[slot] != kNone) copies_->copies_wait(stored_[slot]);
    buffer.loaded = host_ ? copies_->copy(buffer.state.data, host_of(slot), shape_.bytes()) : kNone;
}

void LiveStates::prefetch(std::size_t step) {
    if (step >= steps_.size()) return;
    const int64_t from = steps_[step].from;
    if (from >= 0 && !resident_[from]) load(from, static_cast<int64_t>(step));
}

LiveStates::Step LiveStates::begin_step() {
    const auto number = static_cast<int64_t>(next_);
    const int64_t from = steps_.at(next_).from, to = steps_[next_].to;
    Step step;
    if (from >= 0) step.from = resident_[from];
    step.to = resident_[to];
    if (from >= 0 && !step.from) {
        prefetch(next_);
        Buffer& buffer = *find(from);
        if (buffer.loaded != kNone) copies_->operations_wait(buffer.loaded);
        buffer.loaded = kNone;
        step.from = buffer.state;
    }
    if (!step.to) {
        Buffer* const there = find(to);
        Buffer& buffer = there ? *there : take_buffer(to, number);
        // The state that lay there, or this one as it was before, may still be on its way to the host.
        if (buffer.stored != kNone) copies_->operations_wait(buffer.stored);
        buffer.stored = kNone;
        step.to = buffer.state;
    }
    if (copies_) prefetch(next_ + 1);
    return step;
}

void LiveStates::end_step() {
    const int64_t to = steps_.at(next_++).to;
    if (resident_[to]) return;
    Buffer& buffer = *find(to);
    buffer.stored = host_ ? copies_->copy_back(host_of(to), buffer.state.data, shape_.bytes()) : kNone;
    stored_[to] = buffer.stored;
}

void LiveStates::end_layers() {
    MP_ASSERT(next_ == steps_.size());
    for (const Buffer& buffer : buffers_)
        if (buffer.stored != kNone) copies_->operations_wait(buffer.stored);
    const CopyQueue::Ticket last = *std::max_element(stored_.begin(), stored_.end());
    if (last != kNone) copies_->copies_wait(last);
    buffers_.clear();
}

CopyQueue::Ticket LiveStates::load_rows(int64_t begin, int64_t count, const Tensor& to) {
    const int64_t row = shape_.size(2) * bytes_of(shape_.dtype);
    CopyQueue::Ticket ticket = 0;
    for (int64_t slot = 0; slot < std::ssize(host_index_); ++slot)
        if (!resident_[slot] && host_)
            ticket = copies_->copy(to.data + host_index_[slot] * count * row, host_of(slot) + begin * row,
                                   count * row);
    return ticket;
}

}  // namespace minipuzzle
