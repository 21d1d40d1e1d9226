// In place of kernels/cuda where the build has no CUDA.
#include <stdexcept>

#include "kernels/cuda/cuda_backend.h"

namespace headroom {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions&) {
  throw std::runtime_error("this build has no CUDA backend: build it with cmake --preset cuda-release");
}

}  // namespace headroom
