#include "kernels/cuda/cuda_backend.h"
#include "tests/sim/bit_exact.h"

namespace headroom {

std::vector<BitExactVariant> bit_exact_variants() {
  return {{"bf16", DType::kBF16},
          {"fp16", DType::kF16, 0, DType::kF16},
          {"bf16_window", DType::kBF16, 40},
          {"int8", DType::kI8}};
}

// The reference runs op by op; the others replay what they recorded, and cut the work for smaller devices.
std::vector<std::unique_ptr<Backend>> bit_exact_backends(const BitExactVariant&) {
  std::vector<std::unique_ptr<Backend>> backends;
  for (const CudaBackendOptions& options : {CudaBackendOptions{.graphs = false}, CudaBackendOptions{.graphs = true},
                                            CudaBackendOptions{.graphs = true, .multiprocessors = 7, .attention_blocks = 3}}) {
    backends.push_back(make_cuda_backend(options));
  }
  return backends;
}

}  // namespace headroom
