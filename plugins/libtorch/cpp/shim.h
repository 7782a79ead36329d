// What the C functions of this folder have in common.
//
// Each function that can fail returns null, or the reason as text to be freed with `cappy_text_free`. No exception
// leaves it. A tensor is an `at::Tensor*`, as tch's `Tensor::as_ptr` gives it.

#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

// The ranks' meeting place: keys and values, served by rank 0.
struct CappyStore {
  c10::intrusive_ptr<c10d::Store> store;
};

// What exchanges tensors: one backend for those in the CPU's memory, and one for those of a GPU, if there is NCCL.
struct Exchanges {
  c10::intrusive_ptr<c10d::Backend> of_cpu;
  c10::intrusive_ptr<c10d::Backend> of_cuda;
  // End what waits for peers; for good.
  std::function<void()> sever_cpu;
  std::function<void()> sever_cuda;

  // Runs `body` with the backend of a device.
  template <typename Body>
  auto start(const at::Device& device, Body&& body) {
    if (!device.is_cuda()) {
      return body(*of_cpu);
    }
    // NCCL that was severed would connect anew, and wait for peers who do not. No lock: who waits in `body` is freed by
    // another thread's `end_cuda`.
    if (!of_cuda || cuda_severed) {
      throw std::runtime_error("this group's GPUs are not connected, or no longer");
    }
    return body(*of_cuda);
  }

  // Ends what waits on the GPU. Returns when that has ended, whoever asked first: a process that ends before does not.
  void end_cuda() {
    cuda_severed = true;
    std::call_once(cuda_ended, [this] {
      if (sever_cuda) {
        sever_cuda();
      }
    });
  }

 private:
  std::atomic<bool> cuda_severed{false};
  std::once_flag cuda_ended;
};

struct CappyGroup {
  std::shared_ptr<Exchanges> exchanges;
};

// An exchange that goes on in the background. It keeps its tensors alive.
struct CappyWork {
  c10::intrusive_ptr<c10d::Work> work;
  // It runs on a stream of the GPU.
  bool cuda;
};

namespace cappy {

inline char* text(const std::string& from) {
  auto* copy = static_cast<char*>(std::malloc(from.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, from.c_str(), from.size() + 1);
  }
  return copy;
}

// Starts an exchange of a tensor where that is.
template <typename Body>
CappyWork* work(CappyGroup& group, const at::Tensor& tensor, Body&& body) {
  return new CappyWork{group.exchanges->start(tensor.device(), body), tensor.is_cuda()};
}

// Runs `body`; what it throws becomes the text that is returned.
template <typename Body>
char* caught(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return text(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return text(error.what());
  } catch (...) {
    return text("an exception of an unknown type");
  }
}

}  // namespace cappy
