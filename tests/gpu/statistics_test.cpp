// Activation sums and sums of their powers on the device against the CPU in double.
#include "tests/gpu/dense_testing.h"
#include "tests/kernels/statistics_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

TEST_CASE("GPU: activation sums are those of each sequence alone, bit for bit", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto check = [&](const UnitCase& units) {
        const auto x = rounded_to_bf16(Random(6).normals(units.elements()));
        const DeviceTensor values(*gpu, DType::bf16, {units.batch, units.time, units.columns}, x);
        const DeviceTensor out(*gpu, DType::f32, {units.batch, units.units}),
            alone(*gpu, DType::f32, {1, units.units});
        gpu->run(units.sums(values, out));
        INFO(units.describe());
        // Positive terms: a lane's own sum is at most 17 deep (515 / 32 tokens, or 8 products twice and 5
        // of the warp's sum under a root), then 32: 64 roundings of 2^-24 hold both.
        CHECK(relative_error(out.download(), units.expected(x)) < 4e-6);
        for (int64_t b = 0; b < units.batch; ++b) {
            gpu->run(units.sums(values.view().slice(b, 1), alone));
            CHECK(alone.download() == part(out.download(), b, units.batch));
        }
    };
    for (const UnitCase& units : unit_cases()) check(units);
    check({.batch = 3, .time = 200, .columns = 2600, .first = 1024, .channels = 1, .units = 1032});
}

TEST_CASE("GPU: powers accumulate in the order of sequences, however they are batched", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kBatch = 7, kUnits = 1001;
    auto x = convert<double>(convert<float>(Random(7).normals(kBatch * kUnits)));
    for (double& value : x) value = std::abs(value);
    const DeviceTensor values(*gpu, DType::f32, {kBatch, kUnits}, x);
    for (const double power : {0.5, 1.0, 2.0}) {
        const auto added = [&](std::initializer_list<std::pair<int64_t, int64_t>> batches) {
            std::vector<double> total(kUnits, 0.25);
            std::byte* memory = gpu->allocate(kUnits * 8);
            const Tensor on_device(memory, DType::f64, {kUnits}, DeviceKind::cuda);
            gpu->copy(memory, reinterpret_cast<const std::byte*>(total.data()), on_device.bytes());
            for (const auto& [first, count] : batches)
                gpu->run(AccumulatePowers{.x = values.view().slice(first, count),
                                          .scale = 0.3,
                                          .power = power,
                                          .total = on_device});
            gpu->copy(reinterpret_cast<std::byte*>(total.data()), memory, on_device.bytes());
            gpu->free(memory);
            return total;
        };
        std::vector<double> expected(kUnits, 0.25);
        make_cpu_backend(DType::f64, 0)
            ->run(AccumulatePowers{.x = tensor(x, {kBatch, kUnits}),
                                   .scale = 0.3,
                                   .power = power,
                                   .total = tensor(expected, {kUnits})});
        const std::vector<double> whole = added({{0, kBatch}});
        CHECK(added({{0, 2}, {2, 1}, {3, 4}}) == whole);
        // Eight terms in double; multiplications and additions may be fused on either side.
        CHECK(relative_error(whole, expected) < 16 * std::numeric_limits<double>::epsilon());
    }
}
