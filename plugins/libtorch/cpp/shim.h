// What the C functions of this folder have in common.
//
// Each function that can fail returns null, or the reason as text to be freed with `cappy_text_free`. No exception
// leaves it. A tensor is an `at::Tensor*`, as tch's `Tensor::as_ptr` gives it.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

// The ranks' meeting place: keys and values, served by rank 0.
struct CappyStore {
  c10::intrusive_ptr<c10d::Store> store;
};

// What exchanges tensors. The backend of one kind of device.
struct CappyGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  // Closes the connections under whatever waits on them; may be empty.
  std::function<void()> sever;
};

// An exchange that goes on in the background. It keeps its tensors alive.
struct CappyWork {
  c10::intrusive_ptr<c10d::Work> work;
};

namespace cappy {

inline char* text(const std::string& from) {
  auto* copy = static_cast<char*>(std::malloc(from.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, from.c_str(), from.size() + 1);
  }
  return copy;
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
