// Adds NCCL to a group, for tensors of a GPU. Called from src/cuda.rs.

#include "../shim.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" {

// Connects this rank's GPU `device` with those of all others, who do the same at the same time.
char* cappy_nccl_open(
    CappyStore* store,
    int rank,
    int world,
    int device,
    int64_t timeout_ms,
    CappyGroup* group) {
  return cappy::caught([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", store->store);
    auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(prefixed, rank, world, options);
    try {
      // Otherwise the first exchange connects, and fails in the place of this.
      nccl->eagerConnectSingleDevice(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    } catch (...) {
      nccl->abort();
      throw;
    }
    group->exchanges->of_cuda = nccl;
    // Kernels that wait for a peer end; its threads too.
    group->exchanges->sever_cuda = [nccl] { nccl->abort(); };
    // Never destroyed, only aborted: the destructor calls CUDA, and throws when the process is about to end.
    new c10::intrusive_ptr<c10d::Backend>(std::move(nccl));
  });
}

}  // extern "C"
