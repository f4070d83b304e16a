// What the cases of attention and of its gradients share.
#pragma once

#include "tests/gpu/gpu.h"

namespace minipuzzle::testing {

struct AttentionCase {
    int64_t batch, time, heads, kv_heads, head_dim;
    double new_document = 0;  // the chance that a token opens a document; 0: no documents
    double q_deviation = 1;   // large: the softmax picks single keys
};

// [B, T], each row beginning with some document, later ones not in steps of one.
inline std::vector<int32_t> random_documents(const AttentionCase& c, Random& random) {
    std::vector<int32_t> ids(c.batch * c.time);
    for (int64_t b = 0; b < c.batch; ++b) {
        int32_t id = static_cast<int32_t>(5 * random.uniform());
        for (int64_t t = 0; t < c.time; ++t) {
            if (t > 0 && random.uniform() < c.new_document)
                id += 1 + static_cast<int32_t>(3 * random.uniform());
            ids[b * c.time + t] = id;
        }
    }
    return ids;
}

}  // namespace minipuzzle::testing
