// Memory behind a model's weights, and how it is filled.
#include "runtime/weights.h"

namespace minipuzzle {

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed)
    : WeightMemory(backend, architecture, zeroed, [](const Tensor& parameter) { return parameter.dtype; }) {}

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed,
                           const TypeChoice& type)
    : backend_(&backend), weights_(shaped_weights(backend, architecture)) {
    for_each_parameter(architecture, weights_, [&](const ParameterInfo&, Tensor& tensor) {
        const std::optional<DType> chosen = type(tensor);
        if (chosen)
            tensor.dtype = *chosen;
        else
            tensor = {};
    });
    place(architecture);
    if (zeroed) zero();
}

WeightMemory::WeightMemory(Backend& backend, const Architecture& architecture, Precision precision)
    : backend_(&backend), weights_(shaped_weights(backend, architecture, precision)) {
    place(architecture);
}

// Gives the tensors, shaped by now, their places in one block.
void WeightMemory::place(const Architecture& architecture) {
    const auto each = [&](const std::function<void(Tensor&)>& visit) {
        for_each_parameter(architecture, weights_, [&](const ParameterInfo& info, Tensor& tensor) {
            if (tensor) visit(tensor);
            if (info.scale && *info.scale) visit(*info.scale);
        });
    };
    each([&](Tensor& tensor) { bytes_ += aligned_bytes(tensor); });
    if (bytes_ > 0) block_ = backend_->allocate(bytes_);
    std::byte* next = block_;
    each([&](Tensor& tensor) {
        if (!next) return;  // a measuring backend gives no memory
        tensor.data = next;
        next += aligned_bytes(tensor);
    });
    if (architecture.tied_embeddings) weights_.lm_head = weights_.embeddings;
}

void WeightMemory::zero() {
    if (block_) backend_->zero(Tensor(block_, DType::u8, {bytes_}, backend_->device()));
}

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : backend_(other.backend_),
      block_(std::exchange(other.block_, nullptr)),
      bytes_(other.bytes_),
      weights_(std::move(other.weights_)) {}

WeightMemory::~WeightMemory() {
    if (block_) backend_->free(block_);
}

ParameterFiller::~ParameterFiller() {
    if (staging_) backend_.free(staging_);
}

void ParameterFiller::fill(const ParameterInfo& info, const Tensor& tensor) {
    if (!is_quantized(tensor)) {
        source_.fill(backend_, info, tensor);
        return;
    }
    Tensor values = tensor;
    values.dtype = backend_.compute_type();
    if (values.bytes() > staging_bytes_) {
        if (staging_) backend_.free(staging_);
        staging_ = nullptr;
        staging_ = backend_.allocate(values.bytes());
        staging_bytes_ = values.bytes();
    }
    values.data = staging_;
    source_.fill(backend_, info, values);
    backend_.run(QuantizeRows{.x = values, .out = tensor, .scale = *info.scale});
}

WeightMemory load_weights(Backend& backend, const Architecture& architecture, const ParameterSource& source,
                          Precision precision) {
    WeightMemory memory(backend, architecture, precision);
    ParameterFiller filler(backend, source);
    for_each_parameter(architecture, memory.weights(),
                       [&](const ParameterInfo& info, Tensor& tensor) { filler.fill(info, tensor); });
    return memory;
}

WeightMemory load_weights(Backend& backend, const Checkpoint& checkpoint) {
    return load_weights(backend, checkpoint.architecture(), *checkpoint_source(checkpoint));
}

WeightMemory random_weights(Backend& backend, const Architecture& architecture, uint64_t seed,
                            double initializer_range) {
    return load_weights(backend, architecture, *random_source(architecture, seed, initializer_range));
}

}  // namespace minipuzzle
