#include "kernels/cuda/products.h"

#include <algorithm>
#include <bit>
#include <compare>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels/cuda/libraries.h"
#include "kernels/cuda/product_plain.h"

namespace minipuzzle::cuda {

namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
// The algorithm of a weight shape is asked for at this number of rows and used for every number of rows.
constexpr int64_t kReferenceRows = 8192;
constexpr int kCandidates = 16;
// The library wants a scale vector so aligned. One that lies elsewhere, as those of a part of some rows do,
// is copied to the end of the workspace first, where this much room is kept for each of the two.
constexpr uint32_t kScaleAlignment = 16;
constexpr int64_t kScaleBytes = int64_t{8} << 20;

// Owns a library object for as long as the plan lives.
template <class T>
using Owned = std::unique_ptr<T, cublasStatus_t (*)(T*)>;
using Desc = Owned<std::remove_pointer_t<cublasLtMatmulDesc_t>>;
using Layout = Owned<std::remove_pointer_t<cublasLtMatrixLayout_t>>;
using Preference = Owned<std::remove_pointer_t<cublasLtMatmulPreference_t>>;

// Where a quantised plan's scales lie, before its first product says where: any address will do.
constexpr uintptr_t kSomewhere = 256;

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    MP_CUBLAS(cublas_lt().desc_set(desc, attribute, &value, sizeof value));
}

void set_scales(cublasLtMatmulDesc_t desc, const void* weight_scale, const void* x_scale) {
    set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, weight_scale);
    set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scale);
}

// With a residual the factors 1 of the product and of the residual lie in device memory, where the library
// cannot see that they are 1: in place it would otherwise let the memory system add, which rounds the product
// to bf16 before the sum, so that a result depended on where it is written.
Desc make_desc(cublasOperation_t weight, cublasOperation_t x, bool with_residual) {
    cublasLtMatmulDesc_t desc = nullptr;
    MP_CUBLAS(cublas_lt().desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Desc owned(desc, cublas_lt().desc_destroy);
    const int32_t factors = with_residual ? CUBLASLT_POINTER_MODE_DEVICE : CUBLASLT_POINTER_MODE_HOST;
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, weight);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSB, x);
    set(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, factors);
    return owned;
}

// Of E4M3 operands: one scale per output and one per row; sums that are moved to float32 registers now and
// then, because the matrix units keep fewer digits of a running sum of such products (NOTES.md).
void make_quantised(cublasLtMatmulDesc_t desc) {
    constexpr int32_t kVectors = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kVectors);
    set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kVectors);
    set(desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0});
    const auto* somewhere = reinterpret_cast<const void*>(kSomewhere);
    set_scales(desc, somewhere, somewhere);
}

// A row-major matrix as the library sees it: column-major, transposed.
Layout make_layout(cudaDataType_t type, int64_t rows, int64_t columns) {
    cublasLtMatrixLayout_t layout = nullptr;
    MP_CUBLAS(
        cublas_lt().layout_create(&layout, type, narrow<uint64_t>(columns), narrow<uint64_t>(rows), columns));
    return Layout(layout, cublas_lt().layout_destroy);
}

// The alignment of every row of a matrix whose memory is 256-byte aligned.
uint32_t row_alignment(int64_t row_bytes) {
    return static_cast<uint32_t>(std::min<int64_t>(256, row_bytes & -row_bytes));
}

bool is_aligned(const void* memory, uint32_t alignment) {
    return reinterpret_cast<uintptr_t>(memory) % alignment == 0;
}

bool sums_over_tokens(ProductForm form) { return form == ProductForm::weight_gradient; }

// What decides on the algorithm: everything but the number of tokens, of which only the size that the
// algorithm is chosen for is here.
struct Shape {
    ProductForm form;
    int64_t fixed, outputs;  // fixed: rows of a weight gradient, else inputs
    DType out_type;
    bool with_residual, quantised;
    int64_t reference_tokens;
    auto operator<=>(const Shape&) const = default;

    explicit Shape(const Product& product)
        : form(product.form),
          fixed(sums_over_tokens(product.form) ? product.rows : product.inputs),
          outputs(product.outputs),
          out_type(product.out_type),
          with_residual(product.residual != nullptr),
          quantised(product.quantised()),
          reference_tokens(reference(product)) {}

    // The least number of tokens that the algorithm has to serve.
    int64_t fewest_tokens() const { return sums_over_tokens(form) ? reference_tokens / 2 + 1 : 1; }

    cudaDataType_t operand_type() const { return quantised ? CUDA_R_8F_E4M3 : CUDA_R_16BF; }
    int operand_bytes() const { return quantised ? 1 : 2; }

  private:
    static int64_t reference(const Product& product) {
        if (sums_over_tokens(product.form))
            return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(product.inputs)));
        return product.reference_rows > 0 ? product.reference_rows : kReferenceRows;
    }
};

// Everything cuBLASLt wants to know about one shape. The library is column-major: it sees weight^T, x^T and
// out^T [outputs, rows], and forms out^T = weight^T * x^T.
struct Plan {
    explicit Plan(const Shape& shape)
        : desc(make_desc(shape.form == ProductForm::forward ? CUBLAS_OP_T : CUBLAS_OP_N,
                         sums_over_tokens(shape.form) ? CUBLAS_OP_T : CUBLAS_OP_N, shape.with_residual)),
          weight(weight_layout(shape)),
          x(make_layout(shape.operand_type(), shape.reference_tokens, shape.fixed)),
          out(make_layout(shape.out_type == DType::f32 ? CUDA_R_32F : CUDA_R_16BF,
                          sums_over_tokens(shape.form) ? shape.fixed : shape.reference_tokens,
                          shape.outputs)),
          varying(sums_over_tokens(shape.form) ? weight.get() : out.get()),
          weight_alignment(row_alignment(shape.operand_bytes() *
                                         (shape.form == ProductForm::forward ? shape.fixed : shape.outputs))),
          x_alignment(row_alignment(shape.operand_bytes() * shape.fixed)),
          out_alignment(row_alignment(shape.outputs * bytes_of(shape.out_type))),
          workspace_bytes(kWorkspaceBytes - (shape.quantised ? 2 * kScaleBytes : 0)),
          tokens_(shape.reference_tokens) {
        if (shape.quantised) make_quantised(desc.get());
    }

    // Rows of x as it lies.
    void set_tokens(int64_t tokens) {
        if (tokens == tokens_) return;
        const uint64_t columns = narrow<uint64_t>(tokens);
        for (cublasLtMatrixLayout_t layout : {x.get(), varying})
            MP_CUBLAS(cublas_lt().layout_set(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns));
        tokens_ = tokens;
    }

    bool takes_memory_of(const Product& product) const {
        return is_aligned(product.x, x_alignment) && is_aligned(product.weight, weight_alignment) &&
               is_aligned(product.residual, out_alignment) && is_aligned(product.out, out_alignment);
    }

    Desc desc;
    Layout weight, x, out;
    cublasLtMatrixLayout_t varying;  // the other layout that has as many rows as x
    uint32_t weight_alignment, x_alignment, out_alignment;
    int64_t workspace_bytes;
    std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: product_plain

  private:
    static Layout weight_layout(const Shape& shape) {
        if (shape.form == ProductForm::forward)
            return make_layout(shape.operand_type(), shape.outputs, shape.fixed);
        const int64_t rows = sums_over_tokens(shape.form) ? shape.reference_tokens : shape.fixed;
        return make_layout(shape.operand_type(), rows, shape.outputs);
    }

    int64_t tokens_;  // that the layouts say
};

void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    MP_CUBLAS(cublas_lt().preference_set(preference, attribute, &value, sizeof value));
}

Preference make_preference(const Plan& plan) {
    cublasLtMatmulPreference_t preference = nullptr;
    MP_CUBLAS(cublas_lt().preference_create(&preference));
    Preference owned(preference, cublas_lt().preference_destroy);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(plan.workspace_bytes));
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan.weight_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, plan.x_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan.out_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan.out_alignment);
    return owned;
}

template <class T>
T attribute(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t name) {
    T value{};
    size_t written = 0;
    MP_CUBLAS(cublas_lt().algo_get(&algorithm, name, &value, sizeof value, &written));
    return value;
}

// Whether a result's bits are what they have to be. A row's must not depend on the number of rows: each
// element is one sum over all inputs, in one place. A weight gradient is a sum over all tokens anyway: it may
// be summed in pieces that are added in a fixed order, as float32 in the workspace.
bool sums_as_demanded(const cublasLtMatmulAlgo_t& algorithm, const Shape& shape) {
    const auto scheme = attribute<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    if (sums_over_tokens(shape.form))
        return scheme == CUBLASLT_REDUCTION_SCHEME_NONE || scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    return attribute<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) == 1 &&
           scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

// The library ranks its proposals by a model of the chip that leaves out the power limit, which every large
// product runs into. On Hopper the tile named here is then faster than the first proposal (NOTES.md): by 2 to
// 9 % for wide results of a forward product, by 4 to 10 % in large gradients. None: the first proposal it is.
std::optional<cublasLtMatmulTile_t> preferred_tile(const Shape& shape, int architecture) {
    constexpr int64_t kWide = 6144, kLarge = int64_t{1} << 24;
    if (architecture != 90 || shape.quantised) return std::nullopt;
    if (shape.form == ProductForm::forward)
        return shape.outputs >= kWide ? std::optional(CUBLASLT_MATMUL_TILE_176x128) : std::nullopt;
    const int64_t rows = sums_over_tokens(shape.form) ? shape.fixed : shape.reference_tokens;
    if (rows * shape.outputs < kLarge) return std::nullopt;
    // Sums longer than a row of the result is wide repay the larger tile.
    const bool long_sums = shape.form == ProductForm::input_gradient && shape.fixed > shape.outputs;
    return long_sums ? CUBLASLT_MATMUL_TILE_256x128 : CUBLASLT_MATMUL_TILE_128x160;
}

// The library's proposals for the reference number of tokens, best first by its own ranking: rules, nothing
// is timed.
std::vector<cublasLtMatmulHeuristicResult_t> propose(cublasLtHandle_t handle, const Plan& plan) {
    const Preference preference = make_preference(plan);
    std::vector<cublasLtMatmulHeuristicResult_t> found(kCandidates);
    int count = 0;
    const cublasStatus_t status = cublas_lt().algo_get_heuristic(
        handle, plan.desc.get(), plan.weight.get(), plan.x.get(), plan.out.get(), plan.out.get(),
        preference.get(), kCandidates, found.data(), &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) MP_CUBLAS(status);
    found.resize(static_cast<size_t>(count));
    return found;
}

// The best proposal that sums as demanded and takes any number of tokens; none where there is none.
std::optional<cublasLtMatmulAlgo_t> choose_algorithm(cublasLtHandle_t handle, Plan& plan, const Shape& shape,
                                                     int architecture) {
    const auto takes = [&](const cublasLtMatmulAlgo_t& algorithm, int64_t tokens) {
        plan.set_tokens(tokens);
        cublasLtMatmulHeuristicResult_t result{};
        return cublas_lt().algo_check(handle, plan.desc.get(), plan.weight.get(), plan.x.get(),
                                      plan.out.get(), plan.out.get(), &algorithm,
                                      &result) == CUBLAS_STATUS_SUCCESS &&
               result.state == CUBLAS_STATUS_SUCCESS &&
               result.workspaceSize <= static_cast<uint64_t>(plan.workspace_bytes);
    };
    auto proposals = propose(handle, plan);
    std::erase_if(proposals, [&](const auto& proposal) {
        return proposal.state != CUBLAS_STATUS_SUCCESS || !sums_as_demanded(proposal.algo, shape) ||
               !takes(proposal.algo, shape.fewest_tokens()) || !takes(proposal.algo, shape.reference_tokens);
    });
    if (proposals.empty()) return std::nullopt;
    const auto tile = preferred_tile(shape, architecture);
    const auto preferred = std::ranges::find_if(proposals, [&](const auto& proposal) {
        return tile && attribute<uint32_t>(proposal.algo, CUBLASLT_ALGO_CONFIG_TILE_ID) == *tile;
    });
    return preferred != proposals.end() ? preferred->algo : proposals.front().algo;
}

}  // namespace

struct Products::State {
    State() {
        MP_CUBLAS(cublas_lt().create(&handle));
        const float value = 1;
        cudaError_t error = cudaMalloc(&memory, kWorkspaceBytes + sizeof value);
        if (error == cudaSuccess) error = cudaMemcpy(one(), &value, sizeof value, cudaMemcpyHostToDevice);
        if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);  // other streams read it
        if (error == cudaSuccess) return;
        release();
        MP_CUDA(error);
    }
    ~State() { release(); }
    void release() {
        cudaFree(memory);
        cublas_lt().destroy(handle);
    }

    void* workspace() { return memory; }
    // The scales where the library can read them: as they lie, or a copy in one of the workspace's last
    // places.
    const void* aligned_scales(const float* scales, int64_t count, int place, cudaStream_t stream) {
        if (is_aligned(scales, kScaleAlignment)) return scales;
        const int64_t bytes = count * int64_t{sizeof(float)};
        MP_ASSERT(bytes <= kScaleBytes);
        std::byte* copy = static_cast<std::byte*>(memory) + kWorkspaceBytes - (place + 1) * kScaleBytes;
        MP_CUDA(cudaMemcpyAsync(copy, scales, bytes, cudaMemcpyDeviceToDevice, stream));
        return copy;
    }
    void* one() { return static_cast<std::byte*>(memory) + kWorkspaceBytes; }

    Plan& plan_of(const Shape& shape, int architecture) {
        const auto known = plans.find(shape);
        if (known != plans.end()) return known->second;
        Plan plan(shape);
        plan.algorithm = choose_algorithm(handle, plan, shape, architecture);
        return plans.emplace(shape, std::move(plan)).first->second;
    }

    cublasLtHandle_t handle = nullptr;
    void* memory = nullptr;  // the workspace, then a float32 1
    std::map<Shape, Plan> plans;
};

Products::Products() : state_(std::make_unique<State>()) {}
Products::~Products() = default;

// FLOPs: 2 * rows * inputs * outputs, for 8192 rows of the 8B model 1.25e12 (in_proj), 0.55e12
// (out_proj), 1.44e12 (up, down) and 8.80e12 (head). Ideal bytes: 2 * (rows * inputs + inputs * outputs) +
// out (+ residual): 0.52e9 for in_proj, so all of these are bound by arithmetic.
void Products::run(const Context& context, const Product& product) {
    MP_ASSERT(product.out_type == DType::bf16 || product.out_type == DType::f32);
    MP_ASSERT(product.inputs > 0);
    MP_ASSERT(!product.quantised() || (product.weight_scale && product.form == ProductForm::forward));
    if (product.rows == 0 || product.outputs == 0) return;
    Plan& plan = state_->plan_of(Shape(product), context.architecture);
    if (!plan.algorithm || !plan.takes_memory_of(product)) return product_plain(context, product);
    plan.set_tokens(sums_over_tokens(product.form) ? product.inputs : product.rows);
    if (product.quantised())
        set_scales(plan.desc.get(),
                   state_->aligned_scales(product.weight_scale, product.outputs, 0, context.stream),
                   state_->aligned_scales(product.x_scale, product.rows, 1, context.stream));
    const float one = 1, zero = 0;
    const bool adds = product.residual != nullptr;
    const void* const alpha = adds ? state_->one() : &one;
    const void* const beta = adds ? state_->one() : &zero;
    const std::byte* const added = adds ? product.residual : product.out;
    MP_CUBLAS(cublas_lt().matmul(state_->handle, plan.desc.get(), alpha, product.weight, plan.weight.get(),
                                 product.x, plan.x.get(), beta, added, plan.out.get(), product.out,
                                 plan.out.get(), &*plan.algorithm, state_->workspace(),
                                 static_cast<uint64_t>(plan.workspace_bytes), context.stream));
}

}  // namespace minipuzzle::cuda
