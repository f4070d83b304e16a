#include "kernels/cuda/products.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/cuda/libraries.h"
#include "kernels/cuda/product_plain.h"

namespace minipuzzle::cuda {

namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
// The algorithm of a shape is asked for at this number of rows and used for every number of rows.
constexpr int64_t kReferenceRows = 8192;
constexpr int kCandidates = 16;

// Owns a library object for as long as the plan lives.
template <class T>
using Owned = std::unique_ptr<T, cublasStatus_t (*)(T*)>;
using Desc = Owned<std::remove_pointer_t<cublasLtMatmulDesc_t>>;
using Layout = Owned<std::remove_pointer_t<cublasLtMatrixLayout_t>>;
using Preference = Owned<std::remove_pointer_t<cublasLtMatmulPreference_t>>;

// With a residual the factors 1 of the product and of the residual lie in device memory, where the library
// cannot see that they are 1: in place it would otherwise let the memory system add, which rounds the product
// to bf16 before the sum, so that a result depended on where it is written.
Desc make_desc(bool with_residual) {
    cublasLtMatmulDesc_t desc = nullptr;
    MP_CUBLAS(cublas_lt().desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Desc owned(desc, cublas_lt().desc_destroy);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const int32_t factors = with_residual ? CUBLASLT_POINTER_MODE_DEVICE : CUBLASLT_POINTER_MODE_HOST;
    MP_CUBLAS(cublas_lt().desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    MP_CUBLAS(cublas_lt().desc_set(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, &factors, sizeof factors));
    return owned;
}

// A column-major matrix: a row-major one of `columns` rows and `rows` columns, without padding.
Layout make_layout(cudaDataType_t type, int64_t rows, int64_t columns) {
    cublasLtMatrixLayout_t layout = nullptr;
    MP_CUBLAS(
        cublas_lt().layout_create(&layout, type, narrow<uint64_t>(rows), narrow<uint64_t>(columns), rows));
    return Layout(layout, cublas_lt().layout_destroy);
}

// The alignment of every row of a matrix whose memory is 256-byte aligned.
uint32_t row_alignment(int64_t row_bytes) {
    return static_cast<uint32_t>(std::min<int64_t>(256, row_bytes & -row_bytes));
}

void require_aligned(const std::byte* memory, uint32_t alignment) {
    MP_ASSERT(reinterpret_cast<uintptr_t>(memory) % alignment == 0);
}

// Everything cuBLASLt wants to know about one weight shape. The library is column-major: it sees weight^T
// [inputs, outputs], x^T [inputs, rows] and out^T [outputs, rows], so out^T = (weight^T)^T * x^T.
struct Plan {
    Plan(int64_t inputs, int64_t outputs, DType out_type, bool with_residual)
        : desc(make_desc(with_residual)),
          weight(make_layout(CUDA_R_16BF, inputs, outputs)),
          x(make_layout(CUDA_R_16BF, inputs, kReferenceRows)),
          out(make_layout(out_type == DType::f32 ? CUDA_R_32F : CUDA_R_16BF, outputs, kReferenceRows)),
          input_alignment(row_alignment(inputs * 2)),
          output_alignment(row_alignment(outputs * bytes_of(out_type))) {}

    void set_rows(int64_t rows) {
        if (rows == rows_) return;
        const uint64_t columns = narrow<uint64_t>(rows);
        MP_CUBLAS(cublas_lt().layout_set(x.get(), CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns));
        MP_CUBLAS(cublas_lt().layout_set(out.get(), CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns));
        rows_ = rows;
    }

    Desc desc;
    Layout weight, x, out;
    uint32_t input_alignment, output_alignment;
    std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: product_plain

  private:
    int64_t rows_ = kReferenceRows;  // that the layouts say
};

void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    MP_CUBLAS(cublas_lt().preference_set(preference, attribute, &value, sizeof value));
}

Preference make_preference(const Plan& plan) {
    cublasLtMatmulPreference_t preference = nullptr;
    MP_CUBLAS(cublas_lt().preference_create(&preference));
    Preference owned(preference, cublas_lt().preference_destroy);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan.input_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, plan.input_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan.output_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan.output_alignment);
    return owned;
}

template <class T>
T attribute(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t name) {
    T value{};
    size_t written = 0;
    MP_CUBLAS(cublas_lt().algo_get(&algorithm, name, &value, sizeof value, &written));
    return value;
}

// Whether each element of the result is one sum over all inputs, in one place: then the order of that sum
// cannot depend on how many rows there are.
bool sums_in_one_piece(const cublasLtMatmulAlgo_t& algorithm) {
    return attribute<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) == 1 &&
           attribute<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) ==
               CUBLASLT_REDUCTION_SCHEME_NONE;
}

// The library ranks its proposals by a model of the chip that leaves out the power limit, which every large
// product runs into. For wide results Hopper's 176 x 128 tile is then 2 to 9 % faster than the first proposal
// (NOTES.md), so it goes first where it is among them.
bool goes_first(const cublasLtMatmulAlgo_t& algorithm, const Product& product, int architecture) {
    constexpr int64_t kWide = 6144;
    return architecture == 90 && product.outputs >= kWide &&
           attribute<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID) == CUBLASLT_MATMUL_TILE_176x128;
}

// The library's proposals for the reference number of rows, best first by its own ranking: rules, nothing is
// timed.
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

// The best proposal that sums in one piece and takes any number of rows; none where there is none.
std::optional<cublasLtMatmulAlgo_t> choose_algorithm(cublasLtHandle_t handle, Plan& plan,
                                                     const Product& product, int architecture) {
    const auto takes = [&](const cublasLtMatmulAlgo_t& algorithm, int64_t rows) {
        plan.set_rows(rows);
        cublasLtMatmulHeuristicResult_t result{};
        return cublas_lt().algo_check(handle, plan.desc.get(), plan.weight.get(), plan.x.get(),
                                      plan.out.get(), plan.out.get(), &algorithm,
                                      &result) == CUBLAS_STATUS_SUCCESS &&
               result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes;
    };
    auto proposals = propose(handle, plan);
    std::erase_if(proposals, [&](const auto& proposal) {
        return proposal.state != CUBLAS_STATUS_SUCCESS || !sums_in_one_piece(proposal.algo) ||
               !takes(proposal.algo, 1) || !takes(proposal.algo, kReferenceRows);
    });
    if (proposals.empty()) return std::nullopt;
    const auto first = std::ranges::find_if(
        proposals, [&](const auto& proposal) { return goes_first(proposal.algo, product, architecture); });
    return first != proposals.end() ? first->algo : proposals.front().algo;
}

}  // namespace

struct Products::State {
    using Key = std::tuple<int64_t, int64_t, DType, bool>;  // inputs, outputs, out_type, residual

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
    void* one() { return static_cast<std::byte*>(memory) + kWorkspaceBytes; }

    Plan& plan_of(const Product& product, int architecture) {
        const Key key{product.inputs, product.outputs, product.out_type, product.residual != nullptr};
        const auto known = plans.find(key);
        if (known != plans.end()) return known->second;
        Plan plan(product.inputs, product.outputs, product.out_type, product.residual != nullptr);
        plan.algorithm = choose_algorithm(handle, plan, product, architecture);
        return plans.emplace(key, std::move(plan)).first->second;
    }

    cublasLtHandle_t handle = nullptr;
    void* memory = nullptr;  // the workspace, then a float32 1
    std::map<Key, Plan> plans;
};

Products::Products() : state_(std::make_unique<State>()) {}
Products::~Products() = default;

// FLOPs: 2 * rows * inputs * outputs, for 8192 rows of the 8B model 1.25e12 (in_proj), 0.55e12
// (out_proj), 1.44e12 (up, down) and 8.80e12 (head). Ideal bytes: 2 * (rows * inputs + inputs * outputs) +
// out (+ residual): 0.52e9 for in_proj, so all of these are bound by arithmetic.
void Products::run(const Context& context, const Product& product) {
    MP_ASSERT(product.out_type == DType::bf16 || product.out_type == DType::f32);
    MP_ASSERT(product.inputs > 0);
    if (product.rows == 0 || product.outputs == 0) return;
    Plan& plan = state_->plan_of(product, context.architecture);
    if (!plan.algorithm) return product_plain(context, product);
    require_aligned(product.x, plan.input_alignment);
    require_aligned(product.weight, plan.input_alignment);
    require_aligned(product.residual, plan.output_alignment);
    require_aligned(product.out, plan.output_alignment);
    plan.set_rows(product.rows);
    const float one = 1, zero = 0;
    const bool adds = product.residual != nullptr;
    const void* const alpha = adds ? state_->one() : &one;
    const void* const beta = adds ? state_->one() : &zero;
    const std::byte* const added = adds ? product.residual : product.out;
    MP_CUBLAS(cublas_lt().matmul(state_->handle, plan.desc.get(), alpha, product.weight, plan.weight.get(),
                                 product.x, plan.x.get(), beta, added, plan.out.get(), product.out,
                                 plan.out.get(), &*plan.algorithm, state_->workspace(), kWorkspaceBytes,
                                 context.stream));
}

}  // namespace minipuzzle::cuda
