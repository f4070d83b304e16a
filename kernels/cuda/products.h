// Matrix products through cuBLASLt: one algorithm per weight shape, so that a row's bits depend on that row
// alone.
#pragma once

#include <map>
#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace minipuzzle::cuda {

// How the operands of a product lie in memory, row-major: as in a linear layer's output and its two
// gradients.
enum class ProductForm {
    forward,          // x [rows, inputs], weight [outputs, inputs]: out = x * weight^T
    input_gradient,   // x [rows, inputs], weight [inputs, outputs]: out = x * weight
    weight_gradient,  // x [inputs, rows], weight [inputs, outputs]: out = x^T * weight
};

// out[r, o] = sum_i x(r, i) * weight(i, o) (+ residual[r, o]), row-major and contiguous. x and weight bf16,
// or (forward only) both E4M3 codes, whose sum is then multiplied by x_scale[r] * weight_scale[o]; out and
// residual bf16, or both float32 (the accumulator's own digits).
struct Product {
    ProductForm form = ProductForm::forward;
    const std::byte* x = nullptr;
    const std::byte* weight = nullptr;
    const std::byte* residual = nullptr;  // [rows, outputs]; null for none; may be out
    std::byte* out = nullptr;             // [rows, outputs]
    int64_t rows = 0, inputs = 0, outputs = 0;
    DType out_type = DType::bf16;
    const float* x_scale = nullptr;       // [rows]; null where x and weight are bf16
    const float* weight_scale = nullptr;  // [outputs]
    int64_t reference_rows = 0;           // that the algorithm is chosen for; 0: those of a usual batch

    bool quantised() const { return x_scale != nullptr; }
};

// Keeps the library's handle, its 64 MiB workspace and the algorithm of every shape: of the weight and the
// type of the result alone for `forward` and `input_gradient`, so that a row's bits do not depend on the
// number of rows; for `weight_gradient` also of the number of inputs (tokens) up to the next power of two.
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
