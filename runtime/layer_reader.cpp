#include "runtime/layer_reader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

namespace minipuzzle {

void LayerParameters::add(const ParameterInfo& info, Tensor& tensor) {
    parts_.push_back({info, &tensor, bytes_});
    bytes_ += aligned_bytes(tensor);
    if (is_quantized(tensor)) bytes_ += aligned_bytes(*info.scale);
}

void LayerParameters::place(std::byte* block) const {
    for (const Part& part : parts_) {
        part.tensor->data = block + part.offset;
        if (is_quantized(*part.tensor))
            part.info.scale->data = part.tensor->data + aligned_bytes(*part.tensor);
    }
}

void LayerParameters::fill(ParameterFiller& filler) const {
    for (const Part& part : parts_) filler.fill(part.info, *part.tensor);
}

void LayerParameters::read(const ParameterSource& source, std::byte* block) const {
    for (const Part& part : parts_) {
        MP_ASSERT(!is_quantized(*part.tensor));
        source.read(part.info, part.tensor->dtype, block + part.offset);
    }
}

int64_t LayerParameters::quantized_bytes() const {
    int64_t bytes = 0;
    for (const Part& part : parts_)
        if (is_quantized(*part.tensor))
            bytes += aligned_bytes(*part.tensor) + aligned_bytes(*part.info.scale);
    return bytes;
}

void LayerParameters::quantize_from(Backend& backend, const LayerParameters& unquantized,
                                    std::byte* block) const {
    MP_ASSERT(parts_.size() == unquantized.parts_.size());
    for (std::size_t i = 0; i < parts_.size(); ++i) {
        const Part& part = parts_[i];
        const Tensor& values = *unquantized.parts_[i].tensor;
        if (!is_quantized(*part.tensor)) {
            part.tensor->data = values.data;
            continue;
        }
        part.tensor->data = block;
        part.info.scale->data = block + aligned_bytes(*part.tensor);
        block = part.info.scale->data + aligned_bytes(*part.info.scale);
        backend.run(QuantizeRows{.x = values, .out = *part.tensor, .scale = *part.info.scale});
    }
}

namespace {

// Pinned memory with an owner.
class PinnedBlock {
  public:
    PinnedBlock(Backend& backend, int64_t bytes)
        : backend_(&backend), data_(backend.allocate_pinned(bytes)) {}
    ~PinnedBlock() {
        if (data_) backend_->free_pinned(data_);
    }
    PinnedBlock(PinnedBlock&& other) noexcept
        : backend_(other.backend_), data_(std::exchange(other.data_, nullptr)) {}
    PinnedBlock& operator=(PinnedBlock&&) = delete;
    std::byte* data() const { return data_; }

  private:
    Backend* backend_;
    std::byte* data_;
};

class MemoryReader final : public LayerReader {
  public:
    MemoryReader(Backend& backend, const ParameterSource& source, const std::vector<int64_t>& order,
                 const std::vector<LayerParameters>& layers, std::byte* scratch) {
        ParameterFiller filler(backend, source);
        for (std::size_t i = 0; i < order.size(); ++i) {
            const auto& [layer, block] =
                *blocks_.emplace(order[i], PinnedBlock(backend, layers[i].bytes())).first;
            layers[i].place(scratch);
            layers[i].fill(filler);
            backend.copy(block.data(), scratch, layers[i].bytes());
        }
    }
    const std::byte* acquire(int64_t layer) override { return blocks_.at(layer).data(); }
    void release(CopyQueue::Ticket) override {}

  private:
    std::map<int64_t, PinnedBlock> blocks_;
};

constexpr int64_t kBuffers = 2;

int64_t largest_of(const std::vector<LayerParameters>& layers) {
    int64_t largest = 0;
    for (const LayerParameters& layer : layers) largest = std::max(largest, layer.bytes());
    return largest;
}

class ReadAhead final : public LayerReader {
  public:
    ReadAhead(Backend& backend, const ParameterSource& source, const std::vector<int64_t>& order,
              const std::vector<LayerParameters>& layers, CopyQueue& copies, std::byte* scratch)
        : source_(source), order_(order), layers_(layers), copies_(copies) {
        const int64_t largest = largest_of(layers);
        ParameterFiller filler(backend, source);
        for (const LayerParameters& layer : layers) {
            layer.place(scratch);
            layer.fill(filler);
        }
        for (int64_t i = 0; i < kBuffers; ++i) buffers_.emplace_back(backend, largest);
        thread_ = std::thread([this] { read_all(); });
    }
    ~ReadAhead() override {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    const std::byte* acquire(int64_t layer) override {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return ready_ > given_ || failure_; });
        if (failure_) std::rethrow_exception(failure_);
        MP_ASSERT(order_[given_ % std::ssize(order_)] == layer);
        return buffers_[given_ % kBuffers].data();
    }
    void release(CopyQueue::Ticket ticket) override {
        {
            const std::lock_guard lock(mutex_);
            tickets_[given_ % kBuffers] = ticket;
            ++given_;
        }
        changed_.notify_all();
    }

  private:
    void read_all() {
        try {
            for (int64_t next = 0;; ++next) {
                CopyQueue::Ticket busy;
                {
                    std::unique_lock lock(mutex_);
                    changed_.wait(lock, [&] { return stopping_ || next - given_ < kBuffers; });
                    if (stopping_) return;
                    busy = tickets_[next % kBuffers];
                }
                if (next >= kBuffers) copies_.host_wait(busy);
                layers_[next % std::ssize(order_)].read(source_, buffers_[next % kBuffers].data());
                {
                    const std::lock_guard lock(mutex_);
                    ready_ = next + 1;
                }
                changed_.notify_all();
            }
        } catch (...) {
            const std::lock_guard lock(mutex_);
            failure_ = std::current_exception();
            changed_.notify_all();
        }
    }

    const ParameterSource& source_;
    const std::vector<int64_t> order_;
    const std::vector<LayerParameters> layers_;
    CopyQueue& copies_;
    std::vector<PinnedBlock> buffers_;

    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t ready_ = 0, given_ = 0;  // layers read, layers handed on, counted through all passes
    CopyQueue::Ticket tickets_[kBuffers] = {};
    bool stopping_ = false;
    std::exception_ptr failure_;
    std::thread thread_;
};

}  // namespace

std::unique_ptr<LayerReader> read_from_memory(Backend& backend, const ParameterSource& source,
                                              const std::vector<int64_t>& order,
                                              const std::vector<LayerParameters>& layers,
                                              std::byte* scratch) {
    return std::make_unique<MemoryReader>(backend, source, order, layers, scratch);
}

std::unique_ptr<LayerReader> read_ahead(Backend& backend, const ParameterSource& source,
                                        const std::vector<int64_t>& order,
                                        const std::vector<LayerParameters>& layers, CopyQueue& copies,
                                        std::byte* scratch) {
    return std::make_unique<ReadAhead>(backend, source, order, layers, copies, scratch);
}

int64_t read_ahead_bytes(const std::vector<LayerParameters>& layers) { return kBuffers * largest_of(layers); }

}  // namespace minipuzzle
