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
                           .out_type = args.out.dtype});
}

}  // namespace minipuzzle::cuda
