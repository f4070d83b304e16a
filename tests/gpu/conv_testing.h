// What the cases of the convolution and of its gradient share.
#pragma once

#include "tests/gpu/dense_testing.h"

namespace minipuzzle::testing {

struct ConvCase {
    MambaShape shape;
    int64_t batch = 2, time = 9;
    std::vector<int32_t> document;
    bool initial = true, bias = true;

    int64_t channels() const { return shape.conv_channels(); }
    int64_t kept() const { return shape.conv_kernel - 1; }
};

// About one boundary in `every` tokens, each sequence cut elsewhere.
inline std::vector<int32_t> documents(const ConvCase& c, int64_t every) {
    Random random(8);
    std::vector<int32_t> ids;
    for (int64_t b = 0; b < c.batch; ++b) {
        int32_t id = 0;
        for (int64_t t = 0; t < c.time; ++t)
            ids.push_back(id += t > 0 && random.uniform() * static_cast<double>(every) < 1);
    }
    return ids;
}

}  // namespace minipuzzle::testing
