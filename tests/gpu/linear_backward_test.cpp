// The gradients of a linear layer on the device: values against the CPU, and whose bits depend on what.
#include "kernels/cuda/product_plain.h"
#include "kernels/cuda/products.h"
#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Shape {
    int64_t batch, length, inputs, outputs;
    int64_t rows() const { return batch * length; }
};

struct Operands {
    explicit Operands(const Shape& shape)
        : x(rounded_to_bf16(Random(11).normals(shape.rows() * shape.inputs))),
          weight(rounded_to_bf16(
              Random(12).normals(shape.outputs * shape.inputs, 0, 1 / std::sqrt(shape.outputs)))),
          d_out(rounded_to_bf16(Random(13).normals(shape.rows() * shape.outputs))),
          d_x(rounded_to_bf16(Random(14).normals(shape.rows() * shape.inputs))),
          d_weight(convert<double>(
              convert<float>(Random(15).normals(shape.outputs * shape.inputs, 0, std::sqrt(shape.rows()))))) {
    }
    std::vector<double> x, weight, d_out;
    std::vector<double> d_x, d_weight;  // what lies there before
};

// The gradients in double on the CPU, over what lay in `in`.
Operands reference(const Shape& shape, Operands in, bool d_x_accumulates) {
    const int64_t b = shape.batch, t = shape.length;
    make_cpu_backend(DType::f64, 0)
        ->run(LinearBackward{.x = tensor(in.x, {b, t, shape.inputs}),
                             .weight = tensor(in.weight, {shape.outputs, shape.inputs}),
                             .d_out = tensor(in.d_out, {b, t, shape.outputs}),
                             .d_x = tensor(in.d_x, {b, t, shape.inputs}),
                             .d_x_accumulates = d_x_accumulates,
                             .d_weight = tensor(in.d_weight, {shape.outputs, shape.inputs})});
    return in;
}

struct OnDevice {
    OnDevice(Backend& gpu, const Shape& s, const Operands& in)
        : x(gpu, DType::bf16, {s.batch, s.length, s.inputs}, in.x),
          weight(gpu, DType::bf16, {s.outputs, s.inputs}, in.weight),
          d_out(gpu, DType::bf16, {s.batch, s.length, s.outputs}, in.d_out),
          d_x(gpu, DType::bf16, {s.batch, s.length, s.inputs}),
          d_weight(gpu, DType::f32, {s.outputs, s.inputs}, in.d_weight) {}
    LinearBackward args(bool d_x_accumulates) const {
        return {.x = x,
                .weight = weight,
                .d_out = d_out,
                .d_x = d_x,
                .d_x_accumulates = d_x_accumulates,
                .d_weight = d_weight};
    }
    DeviceTensor x, weight, d_out, d_x, d_weight;
};

// d_x is rounded to bf16 once: each value by at most 2^-8 of itself, so the norm too. Sums in float32 of K
// terms are off by about sqrt(K) * 2^-24, 4e-6 at the largest K here.
constexpr double kRounded = 0x1p-8 + 1e-5, kPrecise = 1e-5;

cuda::Product input_product(const Shape& s, const OnDevice& on, bool adds) {
    return {.form = cuda::ProductForm::input_gradient,
            .x = on.d_out.view().data,
            .weight = on.weight.view().data,
            .residual = adds ? on.d_x.view().data : nullptr,
            .out = on.d_x.view().data,
            .rows = s.rows(),
            .inputs = s.outputs,
            .outputs = s.inputs};
}

cuda::Product weight_product(const Shape& s, const OnDevice& on) {
    return {.form = cuda::ProductForm::weight_gradient,
            .x = on.d_out.view().data,
            .weight = on.x.view().data,
            .residual = on.d_weight.view().data,
            .out = on.d_weight.view().data,
            .rows = s.outputs,
            .inputs = s.rows(),
            .outputs = s.inputs,
            .out_type = DType::f32};
}

}  // namespace

TEST_CASE("on a GPU a linear layer's gradients match the CPU", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const Shape& shape :
         {Shape{1, 1, 1, 1}, Shape{1, 1, 7, 3}, Shape{1, 5, 3, 1}, Shape{3, 1, 7, 5}, Shape{2, 33, 57, 65},
          Shape{2, 65, 192, 256}, Shape{1, 77, 256, 1104}, Shape{3, 100, 100, 203}, Shape{1, 129, 1024, 512},
          Shape{4, 512, 256, 192}, Shape{1, 1000, 36, 1044}})
        for (const bool adds : {false, true}) {
            CAPTURE(shape.batch, shape.length, shape.inputs, shape.outputs, adds);
            const Operands in(shape);
            const Operands expected = reference(shape, in, adds);
            OnDevice on(*gpu, shape, in);
            if (adds) on.d_x.upload(in.d_x);
            gpu->run(on.args(adds));
            CHECK(norm_error(on.d_x.download(), expected.d_x) < kRounded);
            CHECK(norm_error(on.d_weight.download(), expected.d_weight) < kPrecise);

            // The path of shapes that no library takes.
            on.d_x.upload(in.d_x);
            on.d_weight.upload(in.d_weight);
            cuda::product_plain({}, input_product(shape, on, adds));
            cuda::product_plain({}, weight_product(shape, on));
            MP_CUDA(cudaDeviceSynchronize());
            CHECK(norm_error(on.d_x.download(), expected.d_x) < kRounded);
            CHECK(norm_error(on.d_weight.download(), expected.d_weight) < kPrecise);
        }
}

TEST_CASE("on a GPU either gradient of a linear layer may be left out", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Shape shape{2, 40, 96, 64};
    const Operands in(shape), expected = reference(shape, in, false);
    const OnDevice on(*gpu, shape, in);
    LinearBackward args = on.args(false);
    args.d_weight = Tensor();
    gpu->run(args);
    CHECK(norm_error(on.d_x.download(), expected.d_x) < kRounded);
    CHECK(convert<double>(on.d_weight.download()) == in.d_weight);
    args = on.args(false);
    args.d_x = Tensor();
    gpu->run(args);
    CHECK(norm_error(on.d_weight.download(), expected.d_weight) < kPrecise);
}

TEST_CASE("on a GPU products take operands at any address", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Shape shape{1, 70, 64, 48};
    const Operands in(shape), expected = reference(shape, in, false);
    OnDevice on(*gpu, shape, in);
    cuda::Products products;
    // d_out one element beyond where it could be read in vectors.
    std::vector<double> shifted(in.d_out.size() + 1, NAN);
    std::copy(in.d_out.begin(), in.d_out.end(), shifted.begin() + 1);
    const DeviceTensor d_out(*gpu, DType::bf16, {static_cast<int64_t>(shifted.size())}, shifted);
    for (cuda::Product product : {input_product(shape, on, false), weight_product(shape, on)}) {
        product.x = d_out.view().data + 2;
        products.run({}, product);
    }
    MP_CUDA(cudaDeviceSynchronize());
    CHECK(norm_error(on.d_x.download(), expected.d_x) < kRounded);
    CHECK(norm_error(on.d_weight.download(), expected.d_weight) < kPrecise);
}

TEST_CASE("on a GPU a row of a linear layer's input gradient depends on that row alone", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const Shape shape = GENERATE(Shape{1, 9000, 4096, 6144}, Shape{1, 9000, 8192, 4096},
                                 Shape{1, 9000, 256, 1104}, Shape{1, 3000, 57, 33});
    CAPTURE(shape.inputs, shape.outputs);
    const int64_t rows = shape.rows();
    const DeviceTensor weight(*gpu, DType::bf16, {shape.outputs, shape.inputs});
    const DeviceTensor d_out(*gpu, DType::bf16, {1, rows, shape.outputs});
    const DeviceTensor d_x(*gpu, DType::bf16, {1, rows, shape.inputs});
    gpu->run(RandomNormal{.out = weight, .key = 5, .scale = 1 / std::sqrt(shape.outputs)});
    gpu->run(RandomNormal{.out = d_out, .key = 6, .scale = 1});
    const auto part = [](const Tensor& whole, int64_t begin, int64_t count) {
        const int64_t row = whole.bytes() / whole.size(1);
        return Tensor(whole.data + begin * row, whole.dtype, {1, count, whole.size(2)}, DeviceKind::cuda);
    };
    for (const bool adds : {false, true}) {
        CAPTURE(adds);
        gpu->run(RandomNormal{.out = d_x, .key = 7, .scale = 1});
        gpu->run(LinearBackward{.weight = weight, .d_out = d_out, .d_x = d_x, .d_x_accumulates = adds});
        const auto all = d_x.download();
        for (const int64_t count : {int64_t{1}, int64_t{7}, int64_t{512}, rows / 2})
            for (const int64_t begin : {int64_t{0}, rows - count}) {
                CAPTURE(begin, count);
                gpu->run(RandomNormal{.out = d_x, .key = 7, .scale = 1});
                gpu->run(LinearBackward{.weight = weight,
                                        .d_out = part(d_out, begin, count),
                                        .d_x = part(d_x, begin, count),
                                        .d_x_accumulates = adds});
                const auto some = d_x.download(begin * shape.inputs, count * shape.inputs);
                CHECK(std::equal(some.begin(), some.end(), all.begin() + begin * shape.inputs));
            }
    }
}

TEST_CASE("on a GPU a linear layer's weight gradient repeats bit for bit and adds up", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    // The last three are few tiles over many tokens, which the library may sum in pieces.
    const Shape shape = GENERATE(Shape{1, 8192, 4096, 6144}, Shape{4, 8192, 256, 1104},
                                 Shape{32, 512, 192, 256}, Shape{3, 500, 57, 33});
    CAPTURE(shape.inputs, shape.outputs);
    const DeviceTensor x(*gpu, DType::bf16, {shape.batch, shape.length, shape.inputs});
    const DeviceTensor d_out(*gpu, DType::bf16, {shape.batch, shape.length, shape.outputs});
    const DeviceTensor d_weight(*gpu, DType::f32, {shape.outputs, shape.inputs});
    gpu->run(RandomNormal{.out = x, .key = 8, .scale = 1});
    gpu->run(RandomNormal{.out = d_out, .key = 9, .scale = 1});
    const LinearBackward args{.x = x, .d_out = d_out, .d_weight = d_weight};
    gpu->zero(d_weight);
    gpu->run(args);
    const auto once = d_weight.download();
    gpu->zero(d_weight);
    gpu->run(args);
    CHECK(d_weight.download() == once);
    gpu->run(args);
    auto twice = once;
    for (float& value : twice) value *= 2;
    // One more addition in float32, rounded.
    CHECK(norm_error(d_weight.download(), twice) < kPrecise);
}
