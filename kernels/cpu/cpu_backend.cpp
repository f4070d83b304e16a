#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

constexpr int64_t kAlignment = 256;

// Copies at once: operations here have ended when the call returns.
class ImmediateCopies final : public CopyQueue {
  public:
    Ticket copy(std::byte* to, const std::byte* from, int64_t bytes) override {
        if (bytes > 0) std::memmove(to, from, bytes);
        return 0;
    }
    Ticket copy_back(std::byte* to, const std::byte* from, int64_t bytes) override {
        return copy(to, from, bytes);
    }
    void copies_wait(Ticket) override {}
    void operations_wait(Ticket) override {}
    void host_wait(Ticket) override {}
};

}  // namespace

template <class T>
CpuBackend<T>::CpuBackend(int threads) : pool_(threads) {
    // Eigen blocks its products by the caches it finds; fixed sizes keep the bits the same on every machine.
    Eigen::setCpuCacheSizes(32 << 10, 1 << 20, 8 << 20);
}

template <class T>
std::string CpuBackend<T>::name() const {
#if defined(__x86_64__) && defined(__AVX2__)
    return "cpu (x86-64-v3)";
#elif defined(__x86_64__)
    return "cpu (x86-64)";
#else
    return "cpu";
#endif
}

template <class T>
std::byte* CpuBackend<T>::allocate(int64_t bytes) {
    MP_ASSERT(bytes >= 0);
    const int64_t rounded = div_up(std::max<int64_t>(bytes, 1), kAlignment) * kAlignment;
    void* memory = std::aligned_alloc(kAlignment, rounded);
    if (!memory) {
        throw Error(ErrorKind::out_of_memory,
                    fmt::format("the host has no {} bytes of memory left: use a smaller batch, sequence "
                                "length or model",
                                bytes));
    }
    return static_cast<std::byte*>(memory);
}

template <class T>
void CpuBackend<T>::free(std::byte* memory) noexcept {
    std::free(memory);
}

template <class T>
void CpuBackend<T>::copy(std::byte* to, const std::byte* from, int64_t bytes) {
    if (bytes > 0) std::memmove(to, from, bytes);
}

template <class T>
std::unique_ptr<CopyQueue> CpuBackend<T>::make_copy_queue() {
    return std::make_unique<ImmediateCopies>();
}

template <class T>
void CpuBackend<T>::zero(const Tensor& tensor) {
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
}

template <class T>
double CpuBackend<T>::elapsed_ms(const std::function<void()>& operations) {
    const auto start = std::chrono::steady_clock::now();
    operations();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

template class CpuBackend<float>;
template class CpuBackend<double>;

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu

#define MINIPUZZLE_JOIN(a, b) a##b
#define MINIPUZZLE_FACTORY(isa) MINIPUZZLE_JOIN(minipuzzle_cpu_backend_, isa)

// The one symbol by which this instruction set's code is reached (see kernels/CMakeLists.txt). Caller owns.
extern "C" minipuzzle::Backend* MINIPUZZLE_FACTORY(MINIPUZZLE_ISA)(int compute_type, int threads) {
    const auto dtype = static_cast<minipuzzle::DType>(compute_type);
    if (dtype == minipuzzle::DType::f64) return new minipuzzle::cpu::CpuBackend<double>(threads);
    MP_ASSERT(dtype == minipuzzle::DType::f32);
    return new minipuzzle::cpu::CpuBackend<float>(threads);
}
