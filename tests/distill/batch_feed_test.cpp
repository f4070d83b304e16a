#include "distill/batch_feed.h"

#include <atomic>

#include "tests/catch.h"

using namespace minipuzzle;
using namespace minipuzzle::distill;

namespace {

constexpr int64_t kBatch = 2, kLength = 3;

// Rows that say which step they are of; as many targets are masked.
PackedBatch rows_of(int64_t step) {
    const auto value = static_cast<int32_t>(step);
    PackedBatch rows{.batch = kBatch,
                     .length = kLength,
                     .tokens = std::vector<int32_t>(kBatch * kLength, value),
                     .targets = std::vector<int32_t>(kBatch * kLength, value),
                     .document = std::vector<int32_t>(kBatch * kLength, 0)};
    std::fill_n(rows.targets.begin(), step % 5, -1);
    return rows;
}

struct FeedFixture {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 1);
    DeviceArena arena = DeviceArena::sized(*backend, 6 * 256);
    BatchFeed feed{*backend, arena, kBatch, kLength};
};

}  // namespace

TEST_CASE("Rows come in the order of their steps, from whichever step on") {
    for (int64_t first : {1, 4}) {
        FeedFixture fixture;
        std::atomic<int64_t> asked = first, most = 0;
        fixture.feed.start(
            [&](int64_t step) {
                CHECK(step == asked++);
                most = step;
                return rows_of(step);
            },
            first, 9);
        for (int64_t step = first; step <= 9; ++step) {
            const DeviceBatch& batch = fixture.feed.next();
            CHECK(batch.tokens.as<int32_t>()[kBatch * kLength - 1] == step);
            CHECK(batch.target_count == kBatch * kLength - step % 5);
        }
        CHECK(most == 9);
    }
}

TEST_CASE("What goes wrong while rows are put together comes out of the feed") {
    FeedFixture fixture;
    const auto rows = [](int64_t step) {
        if (step == 3) fail_input("the source ran dry");
        return rows_of(step);
    };
    fixture.feed.start(rows, 1, 9);
    fixture.feed.next();
    CHECK_THROWS_AS(fixture.feed.next(), Error);
}

TEST_CASE("A feed may be left before its rows were all taken") {
    FeedFixture fixture;
    fixture.feed.start(rows_of, 1, 1000);
    CHECK(fixture.feed.next().tokens.as<int32_t>()[0] == 1);
}
