// Where parameters get their values from: a checkpoint's files or random numbers.
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/random.h"
#include "runtime/parameter_leaf.h"
#include "runtime/weights.h"

namespace minipuzzle {

namespace {

// What the host can read goes to the device by one copy.
void fill_by_read(const ParameterSource& source, Backend& backend, const ParameterInfo& parameter,
                  const Tensor& tensor) {
    std::vector<std::byte> host(tensor.bytes());
    source.read(parameter, tensor.dtype, host.data());
    backend.copy(tensor.data, host.data(), tensor.bytes());
}

class CheckpointSource final : public ParameterSource {
  public:
    explicit CheckpointSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

    void read(const ParameterInfo& parameter, DType type, std::byte* host) const override {
        const StoredTensor& stored = checkpoint_.tensor(parameter.slot.name);
        if (stored.dtype == type) {
            std::memcpy(host, stored.bytes.data(), stored.bytes.size());
            return;
        }
        std::vector<float> values(stored.elements());
        read_as_float(stored, values);
        const std::vector<std::byte> converted = to_dtype(values, type);
        std::memcpy(host, converted.data(), converted.size());
    }

    void fill(Backend& backend, const ParameterInfo& parameter, const Tensor& tensor) const override {
        const StoredTensor& stored = checkpoint_.tensor(parameter.slot.name);
        if (stored.dtype == tensor.dtype)
            backend.copy(tensor.data, stored.bytes.data(), tensor.bytes());
        else
            fill_by_read(*this, backend, parameter, tensor);
        double squares = 0;
        backend.run(SquaredNorm{.x = tensor, .out = &squares});
        if (!std::isfinite(squares)) fail_damaged(stored);
    }

  private:
    [[noreturn]] void fail_damaged(const StoredTensor& stored) const {
        std::vector<float> values(stored.elements());
        read_as_float(stored, values);
        std::size_t at = 0;
        while (at < values.size() && std::isfinite(values[at])) ++at;
        const std::string where = checkpoint_.folder().string();
        if (at == values.size())
            fail_input(fmt::format("{}: tensor {} holds values too large for the device's element type",
                                   where, stored.name));
        fail_input(fmt::format("{}: tensor {} holds {} at element {}: the checkpoint is damaged", where,
                               stored.name, values[at], at));
    }

    const Checkpoint& checkpoint_;
};

// nemotron_h.md H.3 names the defaults; dt and A as Mamba-2 (Dao & Gu 2024) draws them.
class RandomSource final : public ParameterSource {
  public:
    RandomSource(const Architecture& architecture, uint64_t seed, double range)
        : seed_(seed), range_(range), layers_(static_cast<double>(architecture.layers.size())) {}

    void read(const ParameterInfo& parameter, DType type, std::byte* host) const override {
        std::vector<float> values = is_normal(parameter) ? normals(parameter) : others(parameter);
        const std::vector<std::byte> converted = to_dtype(values, type);
        std::memcpy(host, converted.data(), converted.size());
    }

    void fill(Backend& backend, const ParameterInfo& parameter, const Tensor& tensor) const override {
        if (is_normal(parameter))
            backend.run(RandomNormal{.out = tensor,
                                     .key = CounterRandom(seed_, parameter.slot.name).key(),
                                     .scale = deviation(parameter)});
        else
            fill_by_read(*this, backend, parameter, tensor);
    }

  private:
    static bool is_convolution(const std::string& leaf) {
        return leaf == "mixer.conv1d.weight" || leaf == "mixer.conv1d.bias";
    }
    static bool is_normal(const ParameterInfo& parameter) {
        return parameter.decays && !is_convolution(leaf_of(parameter.slot));
    }
    static int64_t elements(const ParameterInfo& parameter) {
        int64_t count = 1;
        for (int64_t extent : parameter.slot.shape) count *= extent;
        return count;
    }

    // Matrices that lead into the residual stream shrink with the depth, so that its size does not grow with
    // it.
    double deviation(const ParameterInfo& parameter) const {
        const std::string leaf = leaf_of(parameter.slot);
        const bool into_residual = leaf == "mixer.out_proj.weight" || leaf == "mixer.down_proj.weight" ||
                                   leaf == "mixer.o_proj.weight";
        return into_residual ? range_ / std::sqrt(layers_) : range_;
    }

    std::vector<float> normals(const ParameterInfo& parameter) const {
        const CounterRandom random(seed_, parameter.slot.name);
        const double scale = deviation(parameter);
        std::vector<float> values(elements(parameter));
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = static_cast<float>(scale * random.normal(static_cast<int64_t>(i)));
        return values;
    }

    std::vector<float> others(const ParameterInfo& parameter) const {
        const std::string leaf = leaf_of(parameter.slot);
        const CounterRandom random(seed_, parameter.slot.name);
        std::vector<float> values(elements(parameter), 1.0f);  // norms and D
        for (std::size_t i = 0; i < values.size(); ++i) {
            const double uniform = random.uniform(static_cast<int64_t>(i));
            if (leaf == "mixer.A_log") {
                values[i] = static_cast<float>(std::log(1 + 15 * uniform));
            } else if (leaf == "mixer.dt_bias") {
                const double dt = std::exp(std::log(1e-3) + uniform * (std::log(0.1) - std::log(1e-3)));
                values[i] = static_cast<float>(dt + std::log(-std::expm1(-dt)));  // the inverse of softplus
            } else if (is_convolution(leaf)) {
                // 1/sqrt(kernel 4), PyTorch's default for a convolution.
                values[i] = static_cast<float>((2 * uniform - 1) * 0.5);
            }
        }
        return values;
    }

    uint64_t seed_;
    double range_, layers_;
};

}  // namespace

std::unique_ptr<ParameterSource> checkpoint_source(const Checkpoint& checkpoint) {
    return std::make_unique<CheckpointSource>(checkpoint);
}

std::unique_ptr<ParameterSource> random_source(const Architecture& architecture, uint64_t seed,
                                               double initializer_range) {
    return std::make_unique<RandomSource>(architecture, seed, initializer_range);
}

}  // namespace minipuzzle
