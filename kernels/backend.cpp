#include "kernels/backend.h"

#include <fmt/format.h>

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

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
    if (device == "auto" || device == "cpu") return make_cpu_backend(DType::f32, threads);
    if (device == "cuda" || device.starts_with("cuda:")) {
        fail_usage(fmt::format("device is {}, but this build has no CUDA backend: use --device cpu or auto",
                               device));
    }
    fail_usage(fmt::format("device is \"{}\", expected auto, cpu, cuda or cuda:N", device));
}

}  // namespace minipuzzle
