// Which of the compiled codes the driver chose for this device.
#include "kernels/cuda/device.h"

namespace minipuzzle::cuda {

namespace {

__global__ void tell(int* hopper) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    *hopper = 1;
#else
    *hopper = 0;
#endif
}

}  // namespace

bool runs_hopper_code(cudaStream_t stream) {
    int* on_device = nullptr;
    int hopper = 0;
    MP_CUDA(cudaMalloc(&on_device, sizeof(int)));
    tell<<<1, 1, 0, stream>>>(on_device);
    const cudaError_t launched = cudaGetLastError();
    const cudaError_t copied =
        cudaMemcpyAsync(&hopper, on_device, sizeof(int), cudaMemcpyDeviceToHost, stream);
    const cudaError_t finished = cudaStreamSynchronize(stream);
    cudaFree(on_device);
    MP_CUDA(launched);
    MP_CUDA(copied);
    MP_CUDA(finished);
    return hopper == 1;
}

}  // namespace minipuzzle::cuda
