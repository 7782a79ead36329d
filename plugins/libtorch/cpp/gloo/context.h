#pragma once

#include <chrono>
#include <memory>

namespace gloo {

namespace transport {
class UnboundBuffer;
}

// The connections of one rank. Only ever held by a shared pointer that libtorch made.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  void closeConnections();
};

}  // namespace gloo
