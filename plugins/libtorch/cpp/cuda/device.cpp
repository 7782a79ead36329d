// What a GPU says about itself. Called from src/cuda.rs.

#include "../shim.h"

#include <ATen/cuda/CUDAContext.h>

extern "C" {

// Takes no memory of the GPU, as a query of what is free would.
char* cappy_cuda_memory(int device, uint64_t* bytes) {
  return cappy::caught([&] {
    *bytes = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device))->totalGlobalMem;
  });
}

}  // extern "C"
