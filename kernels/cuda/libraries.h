// The CUDA libraries that are opened at their first use instead of linked, so that the program starts on any
// machine: their functions as tables of pointers, and checked calls.
#pragma once

#include <cublasLt.h>
#include <cudnn.h>

#include <string>

namespace minipuzzle::cuda {

// cuBLASLt of CUDA 13. Error other, naming the file that was looked for, where it is missing.
struct CublasLt {
    decltype(&::cublasLtGetVersion) version;
    decltype(&::cublasLtGetStatusString) status_string;
    decltype(&::cublasLtCreate) create;
    decltype(&::cublasLtDestroy) destroy;
    decltype(&::cublasLtMatmul) matmul;
    decltype(&::cublasLtMatmulDescCreate) desc_create;
    decltype(&::cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&::cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&::cublasLtMatrixLayoutCreate) layout_create;
    decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&::cublasLtMatrixLayoutSetAttribute) layout_set;
    decltype(&::cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&::cublasLtMatmulAlgoGetHeuristic) algo_get_heuristic;
    decltype(&::cublasLtMatmulAlgoCheck) algo_check;
    decltype(&::cublasLtMatmulAlgoConfigGetAttribute) algo_get;
};
const CublasLt& cublas_lt();

// The backend ("graph") interface of cuDNN, any release of version 9. Error other where it is missing.
struct Cudnn {
    decltype(&::cudnnGetVersion) version;
    decltype(&::cudnnGetErrorString) error_string;
    decltype(&::cudnnGetLastErrorString) last_error_string;
    decltype(&::cudnnCreate) create;
    decltype(&::cudnnDestroy) destroy;
    decltype(&::cudnnSetStream) set_stream;
    decltype(&::cudnnBackendCreateDescriptor) backend_create;
    decltype(&::cudnnBackendDestroyDescriptor) backend_destroy;
    decltype(&::cudnnBackendSetAttribute) backend_set;
    decltype(&::cudnnBackendGetAttribute) backend_get;
    decltype(&::cudnnBackendFinalize) backend_finalize;
    decltype(&::cudnnBackendExecute) backend_execute;
};
const Cudnn& cudnn();

// Throw Error: out_of_memory where the library says so, else other; name expression, file and line.
[[noreturn]] void fail_cublas(cublasStatus_t status, const char* expression, const char* file, int line);
[[noreturn]] void fail_cudnn(cudnnStatus_t status, const char* expression, const char* file, int line);

inline void check_cublas(cublasStatus_t status, const char* expression, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) fail_cublas(status, expression, file, line);
}
inline void check_cudnn(cudnnStatus_t status, const char* expression, const char* file, int line) {
    if (status != CUDNN_STATUS_SUCCESS) fail_cudnn(status, expression, file, line);
}
#define MP_CUBLAS(expression) ::minipuzzle::cuda::check_cublas((expression), #expression, __FILE__, __LINE__)
#define MP_CUDNN(expression) ::minipuzzle::cuda::check_cudnn((expression), #expression, __FILE__, __LINE__)

}  // namespace minipuzzle::cuda
