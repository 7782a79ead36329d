#pragma once

namespace gloo {
namespace transport {

// Where a rank listens. Opaque.
class Device;

// Memory in flight. Opaque.
class UnboundBuffer;

}  // namespace transport
}  // namespace gloo
