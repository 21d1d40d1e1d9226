// The CUDA backend and what decides whether it can be had. Callable on a machine without a driver or a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace headroom {

struct CudaBackendOptions {
  bool graphs = true;  // decode steps are recorded once and replayed
  // Tests set these; 0: as the device has them. Neither changes a bit.
  int32_t multiprocessors = 0;
  int32_t attention_blocks = 0;  // in flight
};

// Throws std::runtime_error with one line that says why when there is no usable device, BackendError when one fails.
std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options);

}  // namespace headroom
