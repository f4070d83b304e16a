// Products of E4M3 codes on the device: values against the CPU in double, and that a row's bits depend on
// that row alone.
#include "kernels/cuda/product_plain.h"
#include "kernels/cuda/products.h"
#include "tests/gpu/dense_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

// Normal deviates as codes and scales, made on the device.
class Operand {
  public:
    Operand(Backend& gpu, std::initializer_list<int64_t> extents, uint64_t key, double deviation)
        : gpu_(gpu), codes_(gpu, DType::f8_e4m3, extents), scale_(gpu, DType::f32, {codes_.view().rows()}) {
        const DeviceTensor drawn(gpu, DType::bf16, extents);
        gpu.run(RandomNormal{.out = drawn, .key = key, .scale = deviation});
        gpu.run(QuantizeRows{drawn, codes(), scale()});
    }
    const Tensor& codes() const { return codes_; }
    const Tensor& scale() const { return scale_; }
    // The numbers they stand for.
    std::vector<double> values() const {
        std::vector<uint8_t> raw(codes().elements());
        gpu_.copy(reinterpret_cast<std::byte*>(raw.data()), codes().data, codes().bytes());
        const auto scales = scale_.download();
        const auto width = static_cast<size_t>(codes().columns());
        std::vector<double> all(raw.size());
        for (size_t i = 0; i < all.size(); ++i) all[i] = e4m3_to_float(raw[i]) * double{scales[i / width]};
        return all;
    }

  private:
    Backend& gpu_;
    DeviceTensor codes_, scale_;
};

// One rounding to bf16 changes a value by at most 2^-8 of itself.
double rounding(DType out_type) { return out_type == DType::bf16 ? 0x1p-8 : 0; }

// The matrix units of Hopper keep about 14 bits of a sum of such products, which moves to float32 now and
// then: 1.3e-4 was measured for 4096 to 32768 inputs.
double tolerance(DType out_type) { return rounding(out_type) + 3e-4; }

std::vector<std::byte> row_bytes(Backend& gpu, const Tensor& tensor, int64_t row) {
    const int64_t size = tensor.bytes() / tensor.rows();
    std::vector<std::byte> bytes(size);
    gpu.copy(bytes.data(), tensor.data + row * size, size);
    return bytes;
}

}  // namespace

TEST_CASE("GPU: products of codes match the CPU", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    struct Shape {
        int64_t rows, inputs, outputs;
    };
    for (const Shape& shape :
         {Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{65, 33, 57}, Shape{7, 48, 16}, Shape{1, 192, 256},
          Shape{130, 192, 256}, Shape{77, 256, 1104}, Shape{300, 100, 203}, Shape{512, 1024, 512}})
        for (const DType type : {DType::bf16, DType::f32})
            for (const bool with_residual : {false, true}) {
                CAPTURE(shape.rows, shape.inputs, shape.outputs, info(type).name, with_residual);
                const Operand x(*gpu, {1, shape.rows, shape.inputs}, 1, 2),
                    weight(*gpu, {shape.outputs, shape.inputs}, 2, 1 / std::sqrt(shape.inputs));
                const auto added = rounded_to_bf16(Random(3).normals(shape.rows * shape.outputs));
                std::vector<double> expected(added.size());
                const auto x_values = x.values(), weight_values = weight.values();
                LinearForward reference{.x = tensor(x_values, {1, shape.rows, shape.inputs}),
                                        .weight = tensor(weight_values, {shape.outputs, shape.inputs}),
                                        .out = tensor(expected, {1, shape.rows, shape.outputs})};
                if (with_residual) reference.residual = tensor(added, {1, shape.rows, shape.outputs});
                make_cpu_backend(DType::f64, 0)->run(reference);

                const DeviceTensor out(*gpu, type, {1, shape.rows, shape.outputs}),
                    plain(*gpu, type, {1, shape.rows, shape.outputs}),
                    residual(*gpu, type, {1, shape.rows, shape.outputs}, added);
                LinearForward args{.x = x.codes(),
                                   .weight = weight.codes(),
                                   .out = out,
                                   .x_scale = x.scale(),
                                   .weight_scale = weight.scale()};
                if (with_residual) args.residual = residual;
                gpu->run(args);
                CHECK(norm_error(out.download(), expected) < tolerance(type));

                cuda::product_plain({}, {.x = x.codes().data,
                                         .weight = weight.codes().data,
                                         .residual = args.residual.data,
                                         .out = plain.view().data,
                                         .rows = shape.rows,
                                         .inputs = shape.inputs,
                                         .outputs = shape.outputs,
                                         .out_type = type,
                                         .x_scale = x.scale().as<float>(),
                                         .weight_scale = weight.scale().as<float>()});
                MP_CUDA(cudaDeviceSynchronize());
                CHECK(norm_error(plain.download(), expected) < rounding(type) + 1e-5);

                if (!with_residual) continue;
                // In place the bits are the same as beside.
                args.out = residual;
                gpu->run(args);
                CHECK(residual.download() == out.download());
            }
}

TEST_CASE("GPU: a row of a product of codes depends on that row alone", "[gpu]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    constexpr int64_t kRows = 9000;
    struct Case {
        int64_t inputs, outputs;
        bool residual;
    };
    for (const Case& c : {Case{4096, 18560, false}, Case{8192, 4096, true}, Case{21504, 4096, true},
                          Case{256, 1104, false}, Case{192, 256, true}, Case{33, 57, true}}) {
        CAPTURE(c.inputs, c.outputs, c.residual);
        const Operand x(*gpu, {1, kRows, c.inputs}, 4, 1), weight(*gpu, {c.outputs, c.inputs}, 5, 0.02);
        const DeviceTensor added(*gpu, DType::bf16, {1, kRows, c.outputs}),
            all(*gpu, DType::bf16, {1, kRows, c.outputs}), some(*gpu, DType::bf16, {1, kRows, c.outputs});
        gpu->run(RandomNormal{.out = added, .key = 6});
        const auto rows_of = [](const Tensor& tensor, int64_t begin, int64_t count) {
            Tensor rows = tensor.view({tensor.rows(), 1, tensor.columns()}).slice(begin, count);
            return rows.view({1, count, tensor.columns()});
        };
        const auto run = [&](int64_t begin, int64_t count, const Tensor& out) {
            gpu->run(LinearForward{.x = rows_of(x.codes(), begin, count),
                                   .weight = weight.codes(),
                                   .residual = c.residual ? rows_of(added, begin, count) : Tensor(),
                                   .out = out,
                                   .x_scale = x.scale().slice(begin, count),
                                   .weight_scale = weight.scale()});
        };
        run(0, kRows, all);
        for (const int64_t count : {1, 7, 512, 8192}) {
            // Scales may lie anywhere that rows can begin.
            for (const int64_t begin : {int64_t{0}, int64_t{5}, kRows - count}) {
                CAPTURE(count, begin);
                const Tensor out = rows_of(some, 0, count);
                run(begin, count, out);
                bool same = true;
                for (int64_t row = 0; row < count; row += 1 + row / 8)
                    same &= row_bytes(*gpu, out, row) == row_bytes(*gpu, all, begin + row);
                CHECK(same);
                CHECK(row_bytes(*gpu, out, count - 1) == row_bytes(*gpu, all, begin + count - 1));
            }
        }
        run(0, kRows, some);
        CHECK(some.download() == all.download());
    }
}
