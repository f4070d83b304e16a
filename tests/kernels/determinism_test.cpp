// Bits: at any number of threads, alone or in company, on any memory. And what every backend promises: shapes
// are checked, errors are Errors.
#include <cstring>

#include "tests/kernels/every_operation.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

extern "C" Backend* minipuzzle_cpu_backend_v1(int compute_type, int threads);

namespace {

std::unique_ptr<Backend> float_backend(int threads) { return make_cpu_backend(DType::f32, threads); }

// Bits, so that NaN equals itself and -0 differs from 0.
bool same_bits(const float* a, const float* b, size_t count) {
    return std::memcmp(a, b, count * sizeof(float)) == 0;
}

void check_same(const std::map<std::string, std::vector<float>>& a,
                const std::map<std::string, std::vector<float>>& b) {
    REQUIRE(a.size() == b.size());
    for (const auto& [name, values] : a) {
        INFO(name);
        REQUIRE(values.size() == b.at(name).size());
        CHECK(same_bits(values.data(), b.at(name).data(), values.size()));
    }
}

// 1 takes matrix-vector products, 3 the smallest blocks, 150 a whole block and a part.
int64_t any_length() { return GENERATE(1, 3, 150); }

}  // namespace

TEST_CASE("every operation of the list runs here, and its results are finite") {
    const auto cpu = float_backend(2);
    RecordingBackend recording(*cpu);
    const EveryOperation all(recording, 150, 0, 3);
    for (const auto* outputs : {&all.activations, &all.parameters}) {
        for (const auto& [name, values] : *outputs) {
            INFO(name);
            CHECK(std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }));
        }
    }
#define MINIPUZZLE_COUNT(Operation) CHECK(recording.ran.count(#Operation) == 1);
    MINIPUZZLE_OPERATIONS(MINIPUZZLE_COUNT)
#undef MINIPUZZLE_COUNT
}

TEST_CASE("results have the same bits at any number of threads") {
    const int64_t time = any_length();
    const auto one = float_backend(1);
    const EveryOperation expected(*one, time, 0, 3);
    for (const int threads : {1, 2, 3}) {
        INFO(threads << " threads");
        const auto several = float_backend(threads);
        const EveryOperation actual(*several, time, 0, 3);
        check_same(actual.activations, expected.activations);
        check_same(actual.parameters, expected.parameters);
    }
}

TEST_CASE("a sequence has the same bits alone as in a batch") {
    const int64_t time = any_length();
    const auto cpu = float_backend(2);
    const EveryOperation batch(*cpu, time, 0, 3);
    for (int64_t sequence = 0; sequence < 3; ++sequence) {
        const EveryOperation alone(*cpu, time, sequence, 1);
        for (const auto& [name, values] : alone.activations) {
            INFO(name << ", sequence " << sequence);
            const auto& together = batch.activations.at(name);
            REQUIRE(together.size() == 3 * values.size());
            CHECK(same_bits(values.data(), together.data() + sequence * values.size(), values.size()));
        }
    }
}

TEST_CASE("both instruction sets agree but for rounding") {
    const auto chosen = float_backend(2);
    const std::unique_ptr<Backend> oldest(minipuzzle_cpu_backend_v1(static_cast<int>(DType::f32), 2));
    CHECK(oldest->name().find("v3") == std::string::npos);
    const EveryOperation a(*chosen, 150, 0, 3), b(*oldest, 150, 0, 3);
    for (const auto& [name, values] : a.activations) {
        INFO(name);
        // The longest chains (norm, two products, their gradients) lose about a hundred roundings.
        CHECK(relative_error(values, b.activations.at(name)) < 256 * std::numeric_limits<float>::epsilon());
    }
}

TEST_CASE("the measuring backend accepts shapes without memory and rejects wrong ones") {
    const auto measuring = make_measuring_backend(DType::f32, DeviceKind::cuda);
    const auto shape = [](std::initializer_list<int64_t> extents, DType dtype = DType::f32) {
        return Tensor(nullptr, dtype, extents, DeviceKind::cuda);
    };
    CHECK(measuring->name() == "measuring");
    CHECK(measuring->device() == DeviceKind::cuda);
    LinearForward linear{.x = shape({2, 3, 4}), .weight = shape({5, 4}), .out = shape({2, 3, 5})};
    measuring->run(linear);
    linear.weight = shape({4, 5});
    CHECK_THROWS_WITH(measuring->run(linear), Catch::Contains("LinearForward") && Catch::Contains("weight") &&
                                                  Catch::Contains("[4, 5]"));
    linear.weight = shape({5, 4}, DType::bf16);
    CHECK_THROWS_AS(measuring->run(linear), InternalError);
    linear = {shape({2, 3, 4}), Tensor(nullptr, DType::f32, {5, 4}), shape({2, 3, 5})};
    CHECK_THROWS_WITH(measuring->run(linear), Catch::Contains("another device"));
    linear = {shape({6, 4}), shape({5, 4}), shape({6, 5})};
    CHECK_THROWS_AS(measuring->run(linear), InternalError);
    CHECK_THROWS_WITH(measuring->run(LinearForward{}), Catch::Contains("x is not given"));
    CHECK_THROWS_AS(
        measuring->run(EmbeddingForward{shape({2, 3}, DType::i64), shape({9, 4}), shape({2, 3, 4})}),
        InternalError);
}

// A stand-in that damages one operation's arguments at a time would need every struct's fields; instead,
// every default-constructed operation must be refused by every backend.
TEST_CASE("no backend runs an operation without its tensors") {
    const auto cpu = float_backend(1);
    const auto measuring = make_measuring_backend(DType::f32, DeviceKind::cpu);
    for (Backend* backend : {cpu.get(), measuring.get()}) {
#define MINIPUZZLE_REFUSED(Operation) CHECK_THROWS_AS(backend->run(Operation{}), InternalError);
        MINIPUZZLE_OPERATIONS(MINIPUZZLE_REFUSED)
#undef MINIPUZZLE_REFUSED
    }
}

TEST_CASE("validation knows the sizes that must fit each other") {
    const auto shape = [](std::initializer_list<int64_t> extents, DType dtype = DType::f32) {
        return Tensor(nullptr, dtype, extents);
    };
    AttentionForward attention{
        4, 3, 2, shape({1, 5, 8}), shape({1, 5, 6}), shape({1, 5, 6}), {}, shape({1, 5, 8}), {}};
    CHECK_THROWS_WITH(validate(attention), Catch::Contains("divisible by kv_heads"));
    attention = {4,
                 2,
                 2,
                 shape({1, 5, 8}),
                 shape({1, 5, 4}),
                 shape({1, 5, 4}),
                 shape({1, 4}, DType::i32),
                 shape({1, 5, 8}),
                 {}};
    CHECK_THROWS_WITH(validate(attention), Catch::Contains("document"));

    VocabularyLoss loss{.student = {shape({6, 3}), shape({9, 3})},
                        .teacher = {},
                        .targets = shape({6}, DType::i32),
                        .sequence_length = 4,
                        .kl_weight = 0,
                        .ce = {},
                        .kl = {},
                        .d_hidden = {},
                        .d_head = {}};
    CHECK_THROWS_WITH(validate(loss), Catch::Contains("sequence_length"));
    loss.sequence_length = 3;
    CHECK_NOTHROW(validate(loss));
    loss.teacher = {shape({6, 5}), shape({8, 5})};
    CHECK_THROWS_WITH(validate(loss), Catch::Contains("teacher.head"));
    loss.teacher = {};
    loss.temperature = 0;
    CHECK_THROWS_WITH(validate(loss), Catch::Contains("temperature"));

    const MambaShape mixer{.heads = 4, .head_dim = 2, .state = 3, .groups = 3, .conv_kernel = 4};
    CHECK_THROWS_WITH(validate(GatedNormForward{mixer, shape({1, 2, 8}), shape({1, 2, 38}), shape({8}), 1e-5,
                                                shape({1, 2, 8})}),
                      Catch::Contains("divisible by groups"));
}

TEST_CASE("backends are chosen by name, and wrong names are the user's error") {
    CHECK(make_backend("cpu", 1)->compute_type() == DType::f32);
    CHECK(make_cpu_backend(DType::f64, 1)->compute_type() == DType::f64);
    for (const char* device : {"cuda:4096", "cuda:", "cuda:x", "cuda:-1", "gpu", ""}) {
        try {
            make_backend(device, 1);
            FAIL("no error for device " << device);
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::usage);
        }
    }
    CHECK_THROWS_AS(make_cpu_backend(DType::f32, -1), Error);
}

TEST_CASE("memory is aligned, zeroed on demand, and running out is an Error by type") {
    const auto cpu = float_backend(1);
    std::byte* memory = cpu->allocate(100);
    CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
    const Tensor view(memory, DType::f32, {25});
    cpu->zero(view);
    CHECK(std::all_of(view.as<float>(), view.as<float>() + 25, [](float x) { return x == 0; }));
    const float value = 3;
    cpu->copy(memory, reinterpret_cast<const std::byte*>(&value), sizeof value);
    CHECK(view.as<float>()[0] == 3);
    cpu->free(memory);
    try {  // thrown inside the instruction set's own object, caught here
        cpu->free(cpu->allocate(int64_t{1} << 60));
        FAIL("no error for 2^60 bytes");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::out_of_memory);
    }
}
