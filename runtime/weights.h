// Weights: a model's parameters (or their gradients, or moments) as tensors on a backend: matrices in its
// compute type, the rest in the precise type (kernels/ops.h, "Element types").
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "kernels/backend.h"
#include "runtime/architecture.h"
#include "runtime/checkpoint.h"
#include "runtime/precision.h"

namespace minipuzzle {

// A projection [O, I] that is held in E4M3 has the scales of its rows beside it, [O] precise; they are empty
// tensors otherwise.
struct MambaWeights {
    Tensor norm;         // [D]
    Tensor in_proj;      // [projection, D]
    Tensor conv_weight;  // [conv_channels, Kc]
    Tensor conv_bias;    // [conv_channels]; empty where the model has none
    Tensor dt_bias;      // [H]
    Tensor a_log;        // [H]
    Tensor d;            // [H]
    Tensor gate_norm;    // [inner]
    Tensor out_proj;     // [D, inner]
    Tensor in_proj_scale, out_proj_scale;
};
struct AttentionWeights {
    Tensor norm;            // [D]
    Tensor q_proj;          // [H*P, D]
    Tensor k_proj, v_proj;  // [K*P, D]
    Tensor o_proj;          // [D, H*P]
    Tensor q_proj_scale, k_proj_scale, v_proj_scale, o_proj_scale;
};
struct FfnWeights {
    Tensor norm;       // [D]
    Tensor up_proj;    // [F, D]
    Tensor down_proj;  // [D, F]
    Tensor up_proj_scale, down_proj_scale;
};
using LayerWeights = std::variant<MambaWeights, AttentionWeights, FfnWeights>;

struct Weights {
    Tensor embeddings;  // [V, D]
    std::vector<LayerWeights> layers;
    Tensor norm_f;   // [D]
    Tensor lm_head;  // [V, D]; the same memory as embeddings when tied
};

// What a parameter is, for those who walk the list.
struct ParameterInfo {
    TensorSlot slot;
    bool decays = false;      // weight decay applies: matrices only, never norms, A_log, D, dt_bias or biases
    Tensor* scale = nullptr;  // of a projection: where its scales lie if it is held in E4M3
};

// Calls visit(info, tensor) for every parameter in the order of tensor_slots(); a tied lm_head is not visited
// twice. The one walk that load, save, init, AdamW, the gradient norm and prune go by.
void for_each_parameter(const Architecture& architecture, Weights& weights,
                        const std::function<void(const ParameterInfo&, Tensor&)>& visit);

// The tensors of an architecture with their extents and types, and no memory behind them yet.
Weights shaped_weights(const Backend& backend, const Architecture& architecture,
                       Precision precision = Precision::bf16);

// Bytes that a tensor takes where tensors lie one after the other.
int64_t aligned_bytes(const Tensor& tensor);

// The type that a parameter's companion (its gradient, a moment) has in memory; nullopt: it has none.
using TypeChoice = std::function<std::optional<DType>(const Tensor& parameter)>;

// Owns the memory behind a Weights.
class WeightMemory {
  public:
    // Uninitialised; `zeroed` fills with 0.
    WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed);
    // Uninitialised, with room for scales where `precision` has them.
    WeightMemory(Backend& backend, const Architecture& architecture, Precision precision);
    // The same tensors in other types; those without one stay empty.
    WeightMemory(Backend& backend, const Architecture& architecture, bool zeroed, const TypeChoice& type);
    ~WeightMemory();
    WeightMemory(WeightMemory&&) noexcept;
    WeightMemory& operator=(WeightMemory&&) = delete;
    WeightMemory(const WeightMemory&) = delete;

    Weights& weights() { return weights_; }
    const Weights& weights() const { return weights_; }
    int64_t bytes() const { return bytes_; }
    // All of it, by one operation.
    void zero();

  private:
    void place(const Architecture& architecture);

    Backend* backend_;
    std::byte* block_ = nullptr;
    int64_t bytes_ = 0;
    Weights weights_;
};

// Gives every parameter its values, wherever it lies: a checkpoint's, or random ones.
class ParameterSource {
  public:
    virtual ~ParameterSource() = default;
    // Writes the values in `type` to host memory, or throws Error bad_input.
    virtual void read(const ParameterInfo& parameter, DType type, std::byte* host) const = 0;
    // Fills a tensor of the backend; by read() unless the backend can do it better.
    virtual void fill(Backend& backend, const ParameterInfo& parameter, const Tensor& tensor) const = 0;
};

// A checkpoint's tensors, converted to the type asked for; must outlive the source. Error bad_input names the
// first tensor that holds NaN or infinity.
std::unique_ptr<ParameterSource> checkpoint_source(const Checkpoint& checkpoint);
// Random initialisation (nemotron_h's: normal(0, initializer_range) matrices, out_proj / down_proj / o_proj
// scaled by 1/sqrt(layers), A uniform in [1, 16], dt log-uniform in [1e-3, 0.1], D = 1, norms 1), each tensor
// drawn from (seed, tensor name) alone.
std::unique_ptr<ParameterSource> random_source(const Architecture& architecture, uint64_t seed,
                                               double initializer_range = 0.02);

// Fills a model's tensors from a source. Those held in E4M3 are filled in the compute type first, in memory
// of the largest one's size that the object keeps, and quantised from there.
class ParameterFiller {
  public:
    ParameterFiller(Backend& backend, const ParameterSource& source) : backend_(backend), source_(source) {}
    ~ParameterFiller();
    ParameterFiller(const ParameterFiller&) = delete;
    ParameterFiller& operator=(const ParameterFiller&) = delete;
    void fill(const ParameterInfo& info, const Tensor& tensor);

  private:
    Backend& backend_;
    const ParameterSource& source_;
    std::byte* staging_ = nullptr;
    int64_t staging_bytes_ = 0;
};

// All parameters on the device.
WeightMemory load_weights(Backend& backend, const Architecture& architecture, const ParameterSource& source,
                          Precision precision = Precision::bf16);
WeightMemory load_weights(Backend& backend, const Checkpoint& checkpoint);
WeightMemory random_weights(Backend& backend, const Architecture& architecture, uint64_t seed,
                            double initializer_range = 0.02);

// Host copies of a floating or precise tensor, as float.
std::vector<float> to_host(Backend& backend, const Tensor& tensor);
void from_host(Backend& backend, const Tensor& tensor, std::span<const float> values);

}  // namespace minipuzzle
