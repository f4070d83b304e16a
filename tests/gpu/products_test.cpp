// Matrix products on the device: values against the CPU, and that a row's bits depend on that row alone.
#include "kernels/cuda/products.h"

#include "kernels/cuda/product_plain.h"
#include "tests/gpu/gpu.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Shape {
    int64_t rows, inputs, outputs;
};

struct Operands {
    Operands(const Shape& shape, bool with_residual)
        : x(rounded_to_bf16(Random(1).normals(shape.rows * shape.inputs))),
          weight(rounded_to_bf16(
              Random(2).normals(shape.outputs * shape.inputs, 0, 1 / std::sqrt(shape.inputs)))) {
        if (with_residual) residual = rounded_to_bf16(Random(3).normals(shape.rows * shape.outputs));
    }
    std::vector<double> x, weight, residual;
};

// The product in double on the CPU.
std::vector<double> reference(const Shape& shape, const Operands& in) {
    std::vector<double> out(shape.rows * shape.outputs);
    LinearForward args{.x = tensor(in.x, {1, shape.rows, shape.inputs}),
                       .weight = tensor(in.weight, {shape.outputs, shape.inputs}),
                       .out = tensor(out, {1, shape.rows, shape.outputs})};
    if (!in.residual.empty()) args.residual = tensor(in.residual, {1, shape.rows, shape.outputs});
    make_cpu_backend(DType::f64, 0)->run(args);
    return out;
}

// Rounding to bf16 changes each value by at most 2^-9 of itself, so the norm too. float32 sums of K terms are
// off by about sqrt(K) * 2^-24, 4e-6 at the largest K here; both leave room for that.
double tolerance(DType out_type) { return out_type == DType::bf16 ? 0x1p-9 + 1e-5 : 1e-5; }

// `rows` copies of the first row of `tensor`, which lies there already.
void repeat_first_row(Backend& gpu, const Tensor& tensor) {
    const int64_t rows = tensor.size(1), row = tensor.bytes() / rows;
    for (int64_t filled = 1; filled < rows; filled *= 2)
        gpu.copy(tensor.data + filled * row, tensor.data, std::min(filled, rows - filled) * row);
}

// The bytes of one row.
std::vector<std::byte> row_bytes(Backend& gpu, const Tensor& tensor, int64_t row) {
    const int64_t size = tensor.bytes() / tensor.size(1);
    std::vector<std::byte> bytes(size);
    gpu.copy(bytes.data(), tensor.data + row * size, size);
    return bytes;
}

Tensor leading_rows(const Tensor& tensor, int64_t rows) {
    return Tensor(tensor.data, tensor.dtype, {1, rows, tensor.size(2)}, DeviceKind::cuda);
}

}  // namespace

TEST_CASE("products match the CPU", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 1, 7}, Shape{5, 3, 1}, Shape{3, 7, 5},
                               Shape{65, 33, 57}, Shape{130, 192, 256}, Shape{77, 256, 1104},
                               Shape{300, 100, 203}, Shape{64, 1044, 36}, Shape{129, 1024, 512}})
        for (const DType type : {DType::bf16, DType::f32})
            for (const bool with_residual : {false, true}) {
                CAPTURE(shape.rows, shape.inputs, shape.outputs, info(type).name, with_residual);
                const Operands in(shape, with_residual);
                const auto expected = reference(shape, in);
                const DeviceTensor x(*gpu, DType::bf16, {1, shape.rows, shape.inputs}, in.x);
                const DeviceTensor weight(*gpu, DType::bf16, {shape.outputs, shape.inputs}, in.weight);
                const DeviceTensor out(*gpu, type, {1, shape.rows, shape.outputs});
                DeviceTensor residual(*gpu, type, {1, shape.rows, shape.outputs});
                LinearForward args{.x = x, .weight = weight, .out = out};
                if (with_residual) {
                    residual.upload(in.residual);
                    args.residual = residual;
                }
                // The float32 form with a residual has no operation of its own: it is the class's.
                const cuda::Product product{.x = args.x.data,
                                            .weight = args.weight.data,
                                            .residual = args.residual.data,
                                            .out = args.out.data,
                                            .rows = shape.rows,
                                            .inputs = shape.inputs,
                                            .outputs = shape.outputs,
                                            .out_type = type};
                const cuda::Context context{};
                if (type == DType::bf16 || !with_residual)
                    gpu->run(args);
                else
                    cuda::Products().run(context, product);
                CHECK(norm_error(out.download(), expected) < tolerance(type));

                DeviceTensor plain(*gpu, type, {1, shape.rows, shape.outputs});
                cuda::Product plain_product = product;
                plain_product.out = plain.view().data;
                cuda::product_plain(context, plain_product);
                MP_CUDA(cudaDeviceSynchronize());
                CHECK(norm_error(plain.download(), expected) < tolerance(type));

                if (!with_residual) continue;
                // In place the bits are the same as beside.
                const auto beside = out.download();
                cuda::Product in_place = product;
                in_place.out = residual.view().data;
                cuda::Products().run(context, in_place);
                MP_CUDA(cudaDeviceSynchronize());
                CHECK(residual.download() == beside);
            }
}

TEST_CASE("a row of a product depends on that row alone", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kRows = 20000;
    struct Case {
        int64_t inputs, outputs;
        DType type;
        bool residual;
    };
    for (const Case& c : {Case{4096, 18560, DType::bf16, false}, Case{8192, 4096, DType::bf16, true},
                          Case{21504, 4096, DType::bf16, true}, Case{4096, 8192, DType::bf16, true},
                          Case{4096, 24000, DType::f32, false}, Case{256, 1104, DType::bf16, false},
                          Case{192, 256, DType::f32, false}, Case{33, 57, DType::bf16, true}}) {
        CAPTURE(c.inputs, c.outputs, info(c.type).name, c.residual);
        const DeviceTensor weight(*gpu, DType::bf16, {c.outputs, c.inputs});
        gpu->run(RandomNormal{.out = weight, .key = 5, .scale = 1 / std::sqrt(c.inputs)});
        const DeviceTensor x(*gpu, DType::bf16, {1, kRows, c.inputs});
        const DeviceTensor first(*gpu, DType::bf16, {c.inputs}, Random(6).normals(c.inputs));
        gpu->copy(x.view().data, first.view().data, first.view().bytes());
        repeat_first_row(*gpu, x);
        const DeviceTensor residual(*gpu, c.type, {1, c.residual ? kRows : 1, c.outputs});
        if (c.residual) {
            const DeviceTensor one(*gpu, c.type, {c.outputs}, Random(7).normals(c.outputs));
            gpu->copy(residual.view().data, one.view().data, one.view().bytes());
            repeat_first_row(*gpu, residual);
        }
        const DeviceTensor out(*gpu, c.type, {1, kRows, c.outputs});
        std::vector<std::byte> expected;
        for (const int64_t rows : {int64_t{8192}, int64_t{1}, int64_t{7}, int64_t{512}, kRows}) {
            CAPTURE(rows);
            gpu->zero(out);
            LinearForward args{.x = leading_rows(x, rows), .weight = weight, .out = leading_rows(out, rows)};
            if (c.residual) args.residual = leading_rows(residual, rows);
            gpu->run(args);
            if (expected.empty()) expected = row_bytes(*gpu, out, 0);
            // Every row of a tile's first and last, and a scatter over the rest.
            for (int64_t row = 0; row < rows; row += row < 300 ? 1 : 127)
                if (row_bytes(*gpu, out, row) != expected) FAIL("row " << row << " differs");
            CHECK(row_bytes(*gpu, out, rows - 1) == expected);
        }
        if (!c.residual) continue;
        gpu->run(LinearForward{.x = x, .weight = weight, .residual = residual, .out = residual});
        for (const int64_t row : {int64_t{0}, kRows / 2, kRows - 1})
            CHECK(row_bytes(*gpu, residual, row) == expected);
    }
}

TEST_CASE("products reach beyond 2^31 elements", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kRows = 17000, kInputs = 64, kOutputs = 131072;  // out: 2.2e9 elements, 8.9 GB
    if (gpu->available() < (int64_t{10} << 30)) {
        WARN("skipped: needs 10 GiB of device memory");
        return;
    }
    const auto w = rounded_to_bf16(Random(8).normals(kOutputs * kInputs, 0, 0.125));
    const auto last = rounded_to_bf16(Random(9).normals(kInputs));
    const DeviceTensor weight(*gpu, DType::bf16, {kOutputs, kInputs}, w);
    const DeviceTensor x(*gpu, DType::bf16, {1, kRows, kInputs});
    gpu->zero(x);
    const DeviceTensor row(*gpu, DType::bf16, {kInputs}, last);
    gpu->copy(x.view().data + (kRows - 1) * kInputs * 2, row.view().data, kInputs * 2);
    const Tensor view(gpu->allocate(kRows * kOutputs * 4), DType::f32, {1, kRows, kOutputs},
                      DeviceKind::cuda);
    gpu->run(LinearForward{.x = x, .weight = weight, .out = view});
    std::vector<float> values(kOutputs);
    gpu->copy(reinterpret_cast<std::byte*>(values.data()), view.data + (kRows - 1) * kOutputs * 4,
              kOutputs * 4);
    gpu->free(view.data);
    CHECK(norm_error(values, reference({1, kInputs, kOutputs}, [&] {
                         Operands in({1, 1, 1}, false);
                         in.x.assign(last.begin(), last.end());
                         in.weight.assign(w.begin(), w.end());
                         return in;
                     }())) < tolerance(DType::f32));
}
