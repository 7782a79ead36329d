// c10d's TCPStore and ProcessGroupGloo as C functions. Called from src/group/ffi.rs, which documents them.

#include "shim.h"

#include <chrono>
#include <thread>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

// Threads that carry out exchanges: buckets of gradients overlap each other.
constexpr int kThreads = 2;

// How long a wait for a GPU asks again and again, and how often afterwards.
constexpr auto kSpin = std::chrono::milliseconds(1);
constexpr auto kPause = std::chrono::microseconds(100);

class Gloo : public c10d::ProcessGroupGloo {
 public:
  using ProcessGroupGloo::ProcessGroupGloo;

  // Whoever waits for a peer in this process is told that the connection is closed.
  void sever() {
    for (auto& context : contexts_) {
      context->closeConnections();
    }
  }
};

std::vector<uint8_t> bytes(const char* value) {
  return {value, value + std::strlen(value)};
}

}  // namespace

extern "C" {

void cappy_text_free(char* text) { std::free(text); }

char* cappy_store_open(
    const char* host,
    uint16_t port,
    int server,
    int listener,
    int64_t timeout_ms,
    CappyStore** out) {
  return cappy::caught([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    if (listener >= 0) {
      options.masterListenFd = listener;
    }
    *out = new CappyStore{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

char* cappy_store_set(CappyStore* store, const char* key, const char* value) {
  return cappy::caught([&] { store->store->set(key, bytes(value)); });
}

char* cappy_store_check(CappyStore* store, const char* key, int* there) {
  return cappy::caught([&] { *there = store->store->check({key}) ? 1 : 0; });
}

char* cappy_store_get(CappyStore* store, const char* key, char** value) {
  return cappy::caught([&] {
    auto found = store->store->get(key);
    *value = cappy::text(std::string(found.begin(), found.end()));
  });
}

void cappy_store_close(CappyStore* store) { delete store; }

char* cappy_group_open(
    CappyStore* store,
    const char* host,
    int rank,
    int world,
    int64_t timeout_ms,
    CappyGroup** out) {
  return cappy::caught([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->threads = kThreads;
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo", store->store);
    auto gloo = c10::make_intrusive<Gloo>(prefixed, rank, world, options);
    auto exchanges = std::make_shared<Exchanges>();
    exchanges->of_cpu = gloo;
    exchanges->sever_cpu = [gloo] { gloo->sever(); };
    *out = new CappyGroup{std::move(exchanges)};
  });
}

// Ends what runs on the GPU. Another thread may do the same.
char* cappy_group_sever_cuda(CappyGroup* group) {
  return cappy::caught([&] { group->exchanges->end_cuda(); });
}

// Ends everything.
char* cappy_group_sever(CappyGroup* group) {
  return cappy::caught([&] {
    group->exchanges->end_cuda();
    group->exchanges->sever_cpu();
  });
}

// Whether exchanges on the GPU have failed, as far as that was noticed.
int cappy_group_failed_cuda(CappyGroup* group) {
  const auto& nccl = group->exchanges->of_cuda;
  return nccl && nccl->getError() != c10d::ErrorType::SUCCESS ? 1 : 0;
}

// Waits for exchanges that still go on.
void cappy_group_close(CappyGroup* group) { delete group; }

char* cappy_group_all_reduce(CappyGroup* group, at::Tensor* tensor, CappyWork** out) {
  return cappy::caught([&] {
    std::vector<at::Tensor> tensors{*tensor};
    *out = cappy::work(*group, *tensor, [&](c10d::Backend& backend) { return backend.allreduce(tensors); });
  });
}

char* cappy_group_all_gather(
    CappyGroup* group,
    at::Tensor* tensor,
    at::Tensor** into,
    size_t count,
    CappyWork** out) {
  return cappy::caught([&] {
    std::vector<at::Tensor> from{*tensor};
    std::vector<std::vector<at::Tensor>> to(1);
    for (size_t i = 0; i < count; ++i) {
      to[0].push_back(*into[i]);
    }
    *out = cappy::work(*group, *tensor, [&](c10d::Backend& backend) { return backend.allgather(to, from); });
  });
}

char* cappy_group_broadcast(CappyGroup* group, at::Tensor* tensor, int root, CappyWork** out) {
  return cappy::caught([&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{*tensor};
    *out = cappy::work(*group, *tensor, [&](c10d::Backend& backend) { return backend.broadcast(tensors, options); });
  });
}

// What is computed next on the GPU comes after the exchange. Does not wait; nothing to do for the CPU.
char* cappy_work_order(CappyWork* work) {
  return cappy::caught([&] {
    if (work->cuda) {
      work->work->synchronize();
    }
  });
}

// `done` is 0 when the time was up first.
char* cappy_work_wait(CappyWork* work, int64_t timeout_ms, int* done) {
  *done = 0;
  return cappy::caught([&] {
    const auto timeout = std::chrono::milliseconds(timeout_ms);
    if (!work->cuda) {
      try {
        work->work->wait(timeout);
        *done = 1;
      } catch (...) {
        // The wait's own time, or the exchange's failure.
        if (work->work->isCompleted()) {
          throw;
        }
      }
      return;
    }
    // NCCL's own wait takes the time being up for the end of the group.
    const auto start = std::chrono::steady_clock::now();
    while (!work->work->isCompleted()) {
      const auto waited = std::chrono::steady_clock::now() - start;
      if (waited >= timeout) {
        return;
      }
      // Most exchanges take microseconds; a thread that sleeps is woken later than that.
      if (waited < kSpin) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kPause);
      }
    }
    if (auto failure = work->work->exception()) {
      std::rethrow_exception(failure);
    }
    work->work->synchronize();
    *done = 1;
  });
}

void cappy_work_free(CappyWork* work) { delete work; }

}  // extern "C"
