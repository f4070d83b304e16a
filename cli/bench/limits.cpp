#include "cli/bench/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/bench/memory.h"
#include "cli/bench/timing.h"

namespace minipuzzle::cli::bench {
namespace {

struct ProductSizes {
    int64_t rows, outputs, inputs;
};

LimitRow measure_copy(Backend& backend, int64_t bytes) {
    Memory memory(backend);
    const int64_t elements = bytes / bytes_of(backend.compute_type());
    const Tensor from = memory.normal({elements}), to = memory.empty({elements});
    const Timing timing =
        time_launches(backend, [&](int64_t) { backend.copy(to.data, from.data, from.bytes()); });
    return {.name = fmt::format("copy of {} MiB", bytes >> 20),
            .ms = timing.ms,
            .per_second = 2 * static_cast<double>(from.bytes()) / (timing.ms * 1e-3)};
}

LimitRow measure_product(Backend& backend, const ProductSizes& sizes, bool quantised) {
    Memory memory(backend);
    const double deviation = 1 / std::sqrt(static_cast<double>(sizes.inputs));
    LinearForward args{.out = memory.empty({1, sizes.rows, sizes.outputs})};
    if (quantised) {
        const Codes x = memory.codes({1, sizes.rows, sizes.inputs});
        const Codes weight = memory.codes({sizes.outputs, sizes.inputs}, deviation);
        args.x = x.values, args.x_scale = x.scale;
        args.weight = weight.values, args.weight_scale = weight.scale;
    } else {
        args.x = memory.normal({1, sizes.rows, sizes.inputs});
        args.weight = memory.normal({sizes.outputs, sizes.inputs}, deviation);
    }
    const Timing timing = time_launches(backend, [&](int64_t) { backend.run(args); });
    return {.name = fmt::format("{}product {} x {} x {}", quantised ? "E4M3 " : "", sizes.rows, sizes.outputs,
                                sizes.inputs),
            .ms = timing.ms,
            .per_second = (quantised ? cost(args).quantised_flops : cost(args).flops) / (timing.ms * 1e-3)};
}

}  // namespace

double Limits::product_seconds(const Cost& cost) const {
    return cost.flops / product_rate + cost.quantised_flops / quantised_product_rate;
}

double Limits::seconds(const Cost& cost) const {
    return std::max(cost.bytes / bandwidth, product_seconds(cost));
}

bool Limits::memory_bound(const Cost& cost) const { return cost.bytes / bandwidth >= product_seconds(cost); }

Limits measure_limits(Backend& backend) {
    const bool cpu = backend.device() == DeviceKind::cpu;
    Limits limits{.copy = measure_copy(backend, cpu ? int64_t{64} << 20 : int64_t{1} << 30),
                  .products = {},
                  .quantised_products = {}};
    limits.bandwidth = limits.copy.per_second;
    const std::vector<ProductSizes> products =
        cpu ? std::vector<ProductSizes>{{512, 1024, 512}}
            : std::vector<ProductSizes>{
                  {8192, 8192, 8192}, {8192, 32768, 8192}, {8192, 8192, 32768}, {8192, 21504, 4096}};
    for (const ProductSizes& sizes : products) {
        limits.products.push_back(measure_product(backend, sizes, false));
        limits.product_rate = std::max(limits.product_rate, limits.products.back().per_second);
        limits.quantised_products.push_back(measure_product(backend, sizes, true));
        limits.quantised_product_rate =
            std::max(limits.quantised_product_rate, limits.quantised_products.back().per_second);
    }
    return limits;
}

double measure_product_rate(Backend& backend) {
    const bool cpu = backend.device() == DeviceKind::cpu;
    return measure_product(backend, cpu ? ProductSizes{512, 1024, 512} : ProductSizes{8192, 8192, 8192},
                           false)
        .per_second;
}

}  // namespace minipuzzle::cli::bench
