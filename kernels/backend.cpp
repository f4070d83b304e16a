#include "kernels/backend.h"

#include <fmt/format.h>

#include <charconv>

#ifdef MINIPUZZLE_HAVE_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif

// The CPU backend's entry points, one per instruction set (kernels/cpu/cpu_backend.cpp). The caller owns.
extern "C" minipuzzle::Backend* minipuzzle_cpu_backend_v1(int compute_type, int threads);
#ifdef MINIPUZZLE_HAVE_V3
extern "C" minipuzzle::Backend* minipuzzle_cpu_backend_v3(int compute_type, int threads);
#endif

namespace minipuzzle {

std::unique_ptr<Backend> make_cpu_backend(DType compute_type, int threads) {
    MP_ASSERT(compute_type == DType::f32 || compute_type == DType::f64);
    if (threads < 0) fail_usage(fmt::format("--threads is {}, expected 0 (every core) or more", threads));
    const int type = static_cast<int>(compute_type);
#ifdef MINIPUZZLE_HAVE_V3
    if (__builtin_cpu_supports("x86-64-v3")) {
        return std::unique_ptr<Backend>(minipuzzle_cpu_backend_v3(type, threads));
    }
#endif
    return std::unique_ptr<Backend>(minipuzzle_cpu_backend_v1(type, threads));
}

namespace {

#ifdef MINIPUZZLE_HAVE_CUDA
constexpr bool kHaveCuda = true;
#else
constexpr bool kHaveCuda = false;
#endif

std::unique_ptr<Backend> make_cuda(int index) {
#ifdef MINIPUZZLE_HAVE_CUDA
    return cuda::make_cuda_backend(index);
#else
    fail_usage(fmt::format("device is cuda:{}, but this build has no CUDA backend: use --device cpu or auto",
                           index));
#endif
}

bool cuda_is_there() {
#ifdef MINIPUZZLE_HAVE_CUDA
    return cuda::device_count() > 0;
#else
    return false;
#endif
}

// "cuda" is cuda:0.
int cuda_index(const std::string& device) {
    if (device == "cuda") return 0;
    const std::string digits = device.substr(std::string("cuda:").size());
    int index = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error != std::errc{} || end != digits.data() + digits.size() || index < 0)
        fail_usage(fmt::format("device is \"{}\", expected cuda:N with N from 0", device));
    return index;
}

}  // namespace

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
    const bool cuda = device == "cuda" || device.starts_with("cuda:");
    if (!cuda && device != "auto" && device != "cpu")
        fail_usage(fmt::format("device is \"{}\", expected auto, cpu, cuda or cuda:N", device));
    if (cuda) return make_cuda(cuda_index(device));
    if (device == "auto" && cuda_is_there()) return make_cuda(0);
    return make_cpu_backend(DType::f32, threads);
}

}  // namespace minipuzzle
