// Sums gradients over ranks in buckets, each as soon as its last gradient is there. Called from src/group/gradients.rs,
// which says what is meant by it.

#include "shim.h"

#include <mutex>

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace {

struct Bucket {
  // Of parameters, in the order in which they lie in `flat`.
  std::vector<size_t> members;
  // Members whose gradient is not there yet.
  size_t pending = 0;
  // The gradients one after the other, then a number a member: how many ranks have a gradient of it.
  at::Tensor flat;
  c10::intrusive_ptr<c10d::Work> work;
};

struct State {
  std::shared_ptr<Exchanges> exchanges;
  // From where gradients are exchanged: the GPU that has them, or the CPU's memory.
  at::Device from = at::kCPU;
  std::vector<at::Tensor> parameters;
  // Bucket of each parameter.
  std::vector<size_t> bucket_of;
  std::vector<Bucket> buckets;
  std::vector<bool> ready;
  // Buckets before it are on their way: every rank sends them in this order.
  size_t next = 0;
  bool armed = false;
  // What went wrong in a backward pass, told by `flush`.
  std::exception_ptr error;
  // The autograd engine may run on threads of its own.
  std::mutex mutex;

  void reset() {
    ready.assign(parameters.size(), false);
    for (auto& bucket : buckets) {
      bucket.pending = bucket.members.size();
      bucket.flat = at::Tensor();
      bucket.work.reset();
    }
    next = 0;
    armed = false;
    error = nullptr;
  }

  void send(Bucket& bucket) {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> parts;
    auto options = parameters[bucket.members[0]].options().requires_grad(false);
    auto present = at::zeros({static_cast<int64_t>(bucket.members.size())}, options.device(at::kCPU));
    for (size_t i = 0; i < bucket.members.size(); ++i) {
      const auto& parameter = parameters[bucket.members[i]];
      const auto& gradient = parameter.grad();
      if (gradient.defined()) {
        parts.push_back(gradient.reshape({-1}));
        present[static_cast<int64_t>(i)] = 1;
      } else {
        parts.push_back(at::zeros({parameter.numel()}, options));
      }
    }
    parts.push_back(present.to(options.device()));
    bucket.flat = at::cat(parts).to(from);
    std::vector<at::Tensor> tensors{bucket.flat};
    bucket.work = exchanges->start(from, [&](c10d::Backend& backend) { return backend.allreduce(tensors); });
  }

  void arrived(size_t parameter) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!armed || ready[parameter] || error) {
      return;
    }
    ready[parameter] = true;
    --buckets[bucket_of[parameter]].pending;
    try {
      while (next < buckets.size() && buckets[next].pending == 0) {
        send(buckets[next++]);
      }
    } catch (...) {
      error = std::current_exception();
    }
  }
};

struct Hook : torch::autograd::PostAccumulateGradHook {
  Hook(std::weak_ptr<State> state, size_t parameter) : state(std::move(state)), parameter(parameter) {}

  void operator()(const torch::autograd::Variable&) override {
    if (auto shared = state.lock()) {
      shared->arrived(parameter);
    }
  }

  std::weak_ptr<State> state;
  size_t parameter;
};

}  // namespace

struct CappyGradients {
  std::shared_ptr<State> state;
};

extern "C" {

// `order` lists every parameter once, bucket after bucket; `sizes` says how many each bucket takes.
char* cappy_gradients_open(
    CappyGroup* group,
    at::Tensor** parameters,
    size_t count,
    const size_t* order,
    const size_t* sizes,
    size_t buckets,
    CappyGradients** out) {
  return cappy::caught([&] {
    auto state = std::make_shared<State>();
    for (size_t i = 0; i < count; ++i) {
      state->parameters.push_back(*parameters[i]);
    }
    if (group->exchanges->of_cuda && count > 0) {
      state->from = parameters[0]->device();
    }
    state->exchanges = group->exchanges;
    state->bucket_of.resize(count);
    for (size_t b = 0; b < buckets; ++b) {
      Bucket bucket;
      for (size_t i = 0; i < sizes[b]; ++i, ++order) {
        bucket.members.push_back(*order);
        state->bucket_of[*order] = b;
      }
      state->buckets.push_back(std::move(bucket));
    }
    state->reset();
    for (size_t i = 0; i < count; ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(
          state->parameters[i], std::make_unique<Hook>(std::weak_ptr<State>(state), i));
    }
    *out = new CappyGradients{std::move(state)};
  });
}

void cappy_gradients_arm(CappyGradients* gradients) {
  auto& state = *gradients->state;
  std::lock_guard<std::mutex> lock(state.mutex);
  state.reset();
  state.armed = true;
}

void cappy_gradients_reset(CappyGradients* gradients) {
  auto& state = *gradients->state;
  std::lock_guard<std::mutex> lock(state.mutex);
  state.reset();
}

// Sends what is not on its way yet. `sent` buckets were, before.
char* cappy_gradients_flush(CappyGradients* gradients, size_t* sent) {
  return cappy::caught([&] {
    auto& state = *gradients->state;
    std::lock_guard<std::mutex> lock(state.mutex);
    *sent = state.next;
    state.armed = false;
    if (state.error) {
      std::rethrow_exception(state.error);
    }
    while (state.next < state.buckets.size()) {
      state.send(state.buckets[state.next++]);
    }
  });
}

// The exchange of a bucket that was sent.
CappyWork* cappy_gradients_work(CappyGradients* gradients, size_t bucket) {
  return new CappyWork{gradients->state->buckets[bucket].work, gradients->state->from.is_cuda()};
}

// Puts the sums of a bucket whose exchange is over in place of the gradients. A parameter without a gradient on any
// rank stays without one.
char* cappy_gradients_take(CappyGradients* gradients, size_t bucket) {
  return cappy::caught([&] {
    at::NoGradGuard no_grad;
    auto& state = *gradients->state;
    auto& from = state.buckets[bucket];
    const auto& members = from.members;
    auto total = from.flat.numel() - static_cast<int64_t>(members.size());
    auto present = from.flat.narrow(0, total, static_cast<int64_t>(members.size())).to(at::kCPU);
    int64_t at = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      auto& parameter = state.parameters[members[i]];
      auto sum = from.flat.narrow(0, at, parameter.numel()).view(parameter.sizes());
      at += parameter.numel();
      if (present[static_cast<int64_t>(i)].item<double>() == 0) {
        continue;
      }
      if (parameter.grad().defined()) {
        parameter.mutable_grad().copy_(sum);
      } else {
        parameter.mutable_grad() = sum.clone();
      }
    }
    from.flat = at::Tensor();
    from.work.reset();
  });
}

void cappy_gradients_close(CappyGradients* gradients) {
  for (const auto& parameter : gradients->state->parameters) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }
  delete gradients;
}

}  // extern "C"
