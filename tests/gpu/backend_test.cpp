// Memory, streams and errors of the CUDA backend.
#include <numeric>

#include "runtime/arena.h"
#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using minipuzzle::testing::cuda_backend;
using minipuzzle::testing::DeviceTensor;

TEST_CASE("a device that is not there is the user's error", "[gpu]") {
    if (!cuda_backend()) return;
    try {
        make_backend("cuda:99", 1);
        FAIL("no error");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::usage);
        CHECK(std::string(error.what()).find('\n') == std::string::npos);
    }
}

TEST_CASE("out of memory is an Error, again and again, and loses nothing", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    int64_t before = 0;
    for (int i = 0; i < 50; ++i) {
        if (i == 1) before = gpu->available();  // after what a first failure may load
        try {
            gpu->allocate(int64_t{1} << 50);
            FAIL("no error");
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::out_of_memory);
        }
        // An arena that does not fit says what it would have held.
        MeasuredRunner runner(*gpu);
        try {
            runner.run([](Backend&, DeviceArena& arena) {
                arena.take("far too much", {int64_t{1} << 46});
                if (!arena.is_measuring()) FAIL("got memory");
            });
            FAIL("no error");
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::out_of_memory);
            CHECK_THAT(error.what(), Catch::Contains("far too much"));
        }
    }
    CHECK(gpu->available() == before);
    // The device still works.
    const DeviceTensor x(*gpu, DType::f32, {3}, std::vector<float>{1, 2, 3});
    CHECK(x.download() == std::vector<float>{1, 2, 3});
}

TEST_CASE("a copy queue runs beside the operations and orders itself against them", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kElements = 1 << 22;
    std::byte* pinned = gpu->allocate_pinned(kElements * 2);
    const Tensor host(pinned, DType::bf16, {kElements});
    const DeviceTensor to(*gpu, DType::bf16, {kElements}), sum(*gpu, DType::bf16, {kElements});
    {
        const auto queue = gpu->make_copy_queue();
        // Far more copies than the queue keeps events for.
        for (int round = 0; round < 200; ++round) {
            // Whole numbers up to 256 are bf16's own.
            std::fill_n(reinterpret_cast<uint16_t*>(pinned), kElements,
                        float_to_bf16(static_cast<float>(round)));
            const auto ticket = queue->copy(to.view().data, pinned, host.bytes());
            queue->operations_wait(ticket);
            gpu->run(Add{to, to, sum});
            queue->host_wait(ticket);
            if (round % 50 != 49) continue;
            const auto values = sum.download();
            CHECK(std::all_of(values.begin(), values.end(),
                              [&](float value) { return value == 2 * static_cast<float>(round); }));
        }
    }
    gpu->free_pinned(pinned);
}

TEST_CASE("copies to the host and to the device wait for each other where they are told to", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kElements = 1 << 22;
    std::byte* pinned = gpu->allocate_pinned(kElements * 2);
    {
        const DeviceTensor one(*gpu, DType::bf16, {kElements}, std::vector<float>(kElements, 1.0f));
        const DeviceTensor a(*gpu, DType::bf16, {kElements}, std::vector<float>(kElements, 0.0f));
        const DeviceTensor b(*gpu, DType::bf16, {kElements});
        const auto queue = gpu->make_copy_queue();
        // a + 1 goes to the host and from there to b, b + 1 back to a: 200 rounds through one host buffer,
        // far more copies than the queue keeps events for.
        for (int round = 0; round < 100; ++round) {
            gpu->run(Add{a, one, a});
            queue->copies_wait(queue->copy_back(pinned, a.view().data, a.view().bytes()));
            queue->operations_wait(queue->copy(b.view().data, pinned, b.view().bytes()));
            gpu->run(Add{b, one, a});
        }
        const auto values = a.download();
        CHECK(std::all_of(values.begin(), values.end(), [](float value) { return value == 200; }));
        const auto ticket = queue->copy_back(pinned, b.view().data, b.view().bytes());
        queue->host_wait(ticket);
        CHECK(bf16_to_float(reinterpret_cast<const uint16_t*>(pinned)[kElements - 1]) == 199);
    }
    gpu->free_pinned(pinned);
}
