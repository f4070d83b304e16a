// How the layers that are streamed reach pinned host memory, from where a CopyQueue takes them.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "runtime/weights.h"

namespace minipuzzle {

// The parameters of one layer, laid out one after the other in a block of bytes, scales behind what they
// scale.
class LayerParameters {
  public:
    // `tensor` and the scales stay the caller's; place() gives them their memory.
    void add(const ParameterInfo& info, Tensor& tensor);
    int64_t bytes() const { return bytes_; }
    void place(std::byte* block) const;
    // Fills the tensors where they lie.
    void fill(ParameterFiller& filler) const;
    // The block as host bytes; of a layer without quantised tensors.
    void read(const ParameterSource& source, std::byte* block) const;
    // Bytes that the quantised tensors and their scales take alone.
    int64_t quantized_bytes() const;
    // Places the tensors on those of the same layer in the compute type; what is held in E4M3 is quantised
    // into `block`.
    void quantize_from(Backend& backend, const LayerParameters& unquantized, std::byte* block) const;

  private:
    struct Part {
        ParameterInfo info;
        Tensor* tensor;
        int64_t offset;
    };
    std::vector<Part> parts_;
    int64_t bytes_ = 0;
};

// Gives streamed layers as pinned host bytes, in cyclic order.
class LayerReader {
  public:
    virtual ~LayerReader() = default;
    // The next layer asked for, which stays valid until the copy named by the release is done.
    virtual const std::byte* acquire(int64_t layer) = 0;
    virtual void release(CopyQueue::Ticket ticket) = 0;
};

// Every layer is made once on the device, in `scratch` (room for the largest), and kept in pinned memory.
std::unique_ptr<LayerReader> read_from_memory(Backend& backend, const ParameterSource& source,
                                              const std::vector<int64_t>& order,
                                              const std::vector<LayerParameters>& layers, std::byte* scratch);
// A thread reads ahead from the source into two pinned buffers. Every layer is read, and checked on the
// device in `scratch`, once at the start.
std::unique_ptr<LayerReader> read_ahead(Backend& backend, const ParameterSource& source,
                                        const std::vector<int64_t>& order,
                                        const std::vector<LayerParameters>& layers, CopyQueue& copies,
                                        std::byte* scratch);
// The pinned memory that it takes.
int64_t read_ahead_bytes(const std::vector<LayerParameters>& layers);

}  // namespace minipuzzle
