// Matrix products through cuBLASLt: one algorithm per weight shape, so that a row's bits depend on that row
// alone.
#pragma once

#include <map>
#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace minipuzzle::cuda {

// out[r, o] = sum_i x[r, i] * weight[o, i] (+ residual[r, o]); all row-major and contiguous. x and weight
// bf16; out and residual bf16, or both float32 (the accumulator's own digits).
struct Product {
    const std::byte* x = nullptr;         // [rows, inputs]
    const std::byte* weight = nullptr;    // [outputs, inputs]
    const std::byte* residual = nullptr;  // [rows, outputs]; null for none; may be out
    std::byte* out = nullptr;             // [rows, outputs]
    int64_t rows = 0, inputs = 0, outputs = 0;
    DType out_type = DType::bf16;
};

// Keeps the library's handle, its 64 MiB workspace and the algorithm of every (inputs, outputs, out_type,
// residual).
class Products {
  public:
    Products();
    ~Products();
    Products(const Products&) = delete;
    Products& operator=(const Products&) = delete;

    void run(const Context&, const Product&);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace minipuzzle::cuda
