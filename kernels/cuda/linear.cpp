#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"

namespace minipuzzle::cuda {

// One product over all rows of the batch; its ideal bytes and FLOPs stand at Products::run.
void run(const Context& context, Products& products, const LinearForward& args) {
    MP_ASSERT(!args.residual || args.residual.dtype == args.out.dtype);
    products.run(context, {.x = args.x.data,
                           .weight = args.weight.data,
                           .residual = args.residual.data,
                           .out = args.out.data,
                           .rows = args.x.rows(),
                           .inputs = args.x.columns(),
                           .outputs = args.weight.size(0),
                           .out_type = args.out.dtype,
                           .x_scale = args.x_scale.as<float>(),
                           .weight_scale = args.weight_scale.as<float>()});
}

// d_x is a product over all rows, d_weight one that adds to what lies there. At the 8B shape, 8192 tokens,
// each has the FLOPs of its forward product (1.25e12 in_proj, 0.55e12 out_proj, 1.44e12 up, down); ideal
// bytes of in_proj: d_x 0.52e9, d_weight 0.98e9 (the gradient read and written in float32), so both are bound
// by arithmetic.
void run(const Context& context, Products& products, const LinearBackward& args) {
    const int64_t tokens = args.d_out.rows(), outputs = args.d_out.columns();
    if (tokens == 0) return;
    if (args.d_x)
        products.run(context, {.form = ProductForm::input_gradient,
                               .x = args.d_out.data,
                               .weight = args.weight.data,
                               .residual = args.d_x_accumulates ? args.d_x.data : nullptr,
                               .out = args.d_x.data,
                               .rows = tokens,
                               .inputs = outputs,
                               .outputs = args.d_x.columns(),
                               .out_type = args.d_x.dtype});
    if (args.d_weight)
        products.run(context, {.form = ProductForm::weight_gradient,
                               .x = args.d_out.data,
                               .weight = args.x.data,
                               .residual = args.d_weight.data,
                               .out = args.d_weight.data,
                               .rows = outputs,
                               .inputs = tokens,
                               .outputs = args.d_weight.columns(),
                               .out_type = args.d_weight.dtype});
}

}  // namespace minipuzzle::cuda
