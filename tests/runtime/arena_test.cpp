#include "runtime/arena.h"

#include "tests/catch.h"

using namespace minipuzzle;

TEST_CASE("A measuring arena finds the peak of nested takes without any memory") {
    const auto dry = make_measuring_backend(DType::f32, DeviceKind::cpu);
    DeviceArena arena = DeviceArena::measuring(*dry);
    const Tensor outer = arena.take("outer", {3, 5});
    CHECK(outer.data == nullptr);
    CHECK(outer.elements() == 15);
    for (int i = 0; i < 3; ++i) {
        ArenaScope scope(arena);
        arena.take("inner", {100 * (i + 1)});
    }
    CHECK(arena.used() == 256);         // 60 bytes, rounded up to the alignment
    CHECK(arena.peak() == 256 + 1280);  // the largest inner take is 1200 bytes
    CHECK(arena.peak_table().find("inner") != std::string::npos);
}

TEST_CASE("A sized arena hands out aligned, disjoint memory and reuses what was released") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    DeviceArena arena = DeviceArena::sized(*backend, 1024);
    const Tensor a = arena.take("a", {10});
    std::byte* second = nullptr;
    {
        ArenaScope scope(arena);
        const Tensor b = arena.take("b", {10});
        second = b.data;
        CHECK(b.data - a.data == 256);
        CHECK(reinterpret_cast<std::uintptr_t>(b.data) % 256 == 0);
    }
    CHECK(arena.take("c", {4}).data == second);
}

TEST_CASE("A take beyond the measured size is out of memory and shows the table") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    DeviceArena arena = DeviceArena::sized(*backend, 512);
    arena.take("weights", {64});
    try {
        arena.take("activations", {1000});
        FAIL("the take should have failed");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::out_of_memory);
        CHECK(std::string(error.what()).find("activations") != std::string::npos);
        CHECK(std::string(error.what()).find("weights") != std::string::npos);
    }
}

TEST_CASE("MeasuredRunner runs the wiring dry, then on memory of that size") {
    const auto backend = make_cpu_backend(DType::f32, 1);
    MeasuredRunner runner(*backend);
    int dry = 0, real = 0;
    const auto wiring = [&](Backend& on, DeviceArena& arena) {
        const Tensor x = arena.take("x", {8});
        on.zero(x);
        (arena.is_measuring() ? dry : real) += 1;
        if (!arena.is_measuring()) CHECK(x.as<float>()[7] == 0.0f);
    };
    runner.run(wiring);
    runner.run(wiring);
    CHECK(dry == 2);
    CHECK(real == 2);
    CHECK(runner.peak() == 256);
}
