#include "kernels/cuda/libraries.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include "kernels/check.h"

namespace minipuzzle::cuda {

namespace {

// Where CUDA's own installer puts its libraries without telling the loader.
constexpr const char* kToolkitFolder = "/usr/local/cuda/lib64";

// An opened library; it stays open until the process ends, because its own threads and exit handlers may run
// until then.
class Library {
  public:
    Library(const char* file, const char* remedy) : file_(file) {
        handle_ = dlopen(file, RTLD_NOW | RTLD_LOCAL);
        if (handle_) return;
        const std::string first = last_error();
        handle_ = dlopen(fmt::format("{}/{}", kToolkitFolder, file).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_) return;
        throw Error(
            ErrorKind::other,
            fmt::format("cannot open {}, neither where the loader looks ({}) nor in {}: {}, or put its "
                        "folder on LD_LIBRARY_PATH, or use --device cpu",
                        file, first, kToolkitFolder, remedy));
    }

    template <class Function>
    void resolve(Function& function, const char* name) const {
        function = reinterpret_cast<Function>(dlsym(handle_, name));
        if (!function)
            throw Error(ErrorKind::other,
                        fmt::format("{} has no function {}: expected a release for CUDA 13; "
                                    "install one or take it off LD_LIBRARY_PATH",
                                    file_, name));
    }

  private:
    static std::string last_error() {
        const char* text = dlerror();
        return text ? text : "no reason given";
    }

    const char* file_;
    void* handle_ = nullptr;
};

CublasLt open_cublas_lt() {
    const Library library("libcublasLt.so.13", "install cuBLAS of CUDA 13");
    CublasLt table;
    library.resolve(table.version, "cublasLtGetVersion");
    library.resolve(table.status_string, "cublasLtGetStatusString");
    library.resolve(table.create, "cublasLtCreate");
    library.resolve(table.destroy, "cublasLtDestroy");
    library.resolve(table.matmul, "cublasLtMatmul");
    library.resolve(table.desc_create, "cublasLtMatmulDescCreate");
    library.resolve(table.desc_destroy, "cublasLtMatmulDescDestroy");
    library.resolve(table.desc_set, "cublasLtMatmulDescSetAttribute");
    library.resolve(table.layout_create, "cublasLtMatrixLayoutCreate");
    library.resolve(table.layout_destroy, "cublasLtMatrixLayoutDestroy");
    library.resolve(table.layout_set, "cublasLtMatrixLayoutSetAttribute");
    library.resolve(table.preference_create, "cublasLtMatmulPreferenceCreate");
    library.resolve(table.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    library.resolve(table.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    library.resolve(table.algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
    library.resolve(table.algo_check, "cublasLtMatmulAlgoCheck");
    library.resolve(table.algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
    return table;
}

Cudnn open_cudnn() {
    const Library library("libcudnn.so.9", "install cuDNN 9 for CUDA 13");
    Cudnn table;
    library.resolve(table.version, "cudnnGetVersion");
    library.resolve(table.error_string, "cudnnGetErrorString");
    library.resolve(table.last_error_string, "cudnnGetLastErrorString");
    library.resolve(table.create, "cudnnCreate");
    library.resolve(table.destroy, "cudnnDestroy");
    library.resolve(table.set_stream, "cudnnSetStream");
    library.resolve(table.backend_create, "cudnnBackendCreateDescriptor");
    library.resolve(table.backend_destroy, "cudnnBackendDestroyDescriptor");
    library.resolve(table.backend_set, "cudnnBackendSetAttribute");
    library.resolve(table.backend_get, "cudnnBackendGetAttribute");
    library.resolve(table.backend_finalize, "cudnnBackendFinalize");
    library.resolve(table.backend_execute, "cudnnBackendExecute");
    return table;
}

}  // namespace

const CublasLt& cublas_lt() {
    static const CublasLt table = open_cublas_lt();
    return table;
}

const Cudnn& cudnn() {
    static const Cudnn table = open_cudnn();
    return table;
}

void fail_cublas(cublasStatus_t status, const char* expression, const char* file, int line) {
    const ErrorKind kind = status == CUBLAS_STATUS_ALLOC_FAILED ? ErrorKind::out_of_memory : ErrorKind::other;
    throw Error(kind, fmt::format("cuBLASLt {}: {} ({}) at {}:{}", cublas_lt().version(),
                                  cublas_lt().status_string(status), expression, file, line));
}

void fail_cudnn(cudnnStatus_t status, const char* expression, const char* file, int line) {
    char detail[256] = "";
    cudnn().last_error_string(detail, sizeof detail);
    std::string text = detail;
    for (char& c : text)
        if (c == '\n' || c == '\r') c = ' ';
    const bool memory = status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
                        status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
    throw Error(memory ? ErrorKind::out_of_memory : ErrorKind::other,
                fmt::format("cuDNN {}: {}{}{} ({}) at {}:{}", cudnn().version(), cudnn().error_string(status),
                            text.empty() ? "" : ": ", text, expression, file, line));
}

}  // namespace minipuzzle::cuda
