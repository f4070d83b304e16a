// The selective scan against the plain recurrence.
#include "tests/kernels/mamba_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// Both sums run over at most a few hundred terms of size one; double rounding, with the decays' exponents
// (up to about 1e3, so 1e3 * 2^-53 of relative error each) leaves 1e-12.
constexpr double kDoubleTolerance = 1e-12;

std::vector<int64_t> lengths(int64_t q) { return {1, 3, q - 1, q, q + 1, 2 * q, 3 * q + 5}; }

}  // namespace

TEST_CASE("The chunked scan equals the recurrence at every length") {
    for (const int64_t groups : {1, 2}) {
        for (const int64_t chunk : {16, 40, 64}) {
            for (const int64_t time : lengths(chunk)) {
                ScanCase c;
                c.shape = {.heads = 4, .head_dim = 5, .state = 7, .groups = groups, .conv_kernel = 4};
                c.time = time;
                c.initial = time % 2 == 1;
                const auto in = random_input(c, 100 * chunk + time);
                const auto expected = scan_sequentially(c, in);
                const auto run = scan_in_chunks(c, in, chunk);
                INFO("groups " << groups << " chunk " << chunk << " time " << time);
                CHECK(relative_error(run.out.y, expected.y) < kDoubleTolerance);
                CHECK(relative_error(run.out.final_state, expected.final_state) < kDoubleTolerance);
            }
        }
    }
}
