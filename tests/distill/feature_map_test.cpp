#include "distill/feature_map.h"

#include "tests/catch.h"
#include "tests/support/errors.h"

using minipuzzle::distill::feature_map;
using minipuzzle::distill::FeaturePair;

namespace {

// The teacher layer of each student layer's pair.
std::vector<int64_t> teacher_side(const std::vector<int64_t>& kept, int64_t layers) {
    std::vector<int64_t> result;
    int64_t student = 0;
    for (const FeaturePair& pair : feature_map(kept, layers)) {
        CHECK(pair.student_layer == student++);
        result.push_back(pair.teacher_layer);
    }
    return result;
}

}  // namespace

TEST_CASE("Each student layer is held against the teacher's stream before the next kept layer") {
    CHECK(teacher_side({0, 1, 2, 3}, 4) == std::vector<int64_t>{0, 1, 2, 3});  // nothing dropped
    CHECK(teacher_side({0, 2, 3}, 4) == std::vector<int64_t>{1, 2, 3});        // 1 dropped
    CHECK(teacher_side({0, 3, 4}, 8) == std::vector<int64_t>{2, 3, 7});        // 1, 2 and the last three
    CHECK(teacher_side({2, 5}, 6) == std::vector<int64_t>{4, 5});              // a dropped beginning
    CHECK(teacher_side({3}, 6) == std::vector<int64_t>{5});
    CHECK(teacher_side({}, 6).empty());
}

TEST_CASE("Kept layers must ascend and exist") {
    for (const std::vector<int64_t>& kept :
         std::vector<std::vector<int64_t>>{{1, 0}, {1, 1}, {0, 4}, {-1, 2}}) {
        const std::string message = minipuzzle::test::bad_input([&] { feature_map(kept, 4); });
        CHECK(message.find("kept layers") != std::string::npos);
    }
}
