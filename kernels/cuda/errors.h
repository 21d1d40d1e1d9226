// Every call of the CUDA runtime goes through check_cuda: what fails is thrown as BackendError, with the call's name.
#pragma once

#include <cuda_runtime_api.h>

namespace headroom::cuda {

// Throws BackendError: out_of_memory where the device had no room, sticky for everything else.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call);

inline void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw_cuda_error(error, call);
}

}  // namespace headroom::cuda
