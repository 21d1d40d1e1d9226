#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/cuda_on_cpu/include/cuda_runtime_api.h"

namespace {

int devices = 1;
size_t memory_bytes = size_t{4} << 30;
size_t used_bytes = 0;
std::map<void*, size_t> allocations;
int calls_before_failure = -1;
cudaError_t failure = cudaSuccess;

// What this call returns, if an injected error is due.
cudaError_t injected() {
  if (calls_before_failure < 0) return cudaSuccess;
  if (calls_before_failure > 0) {
    --calls_before_failure;
    return cudaSuccess;
  }
  if (failure == cudaErrorMemoryAllocation) calls_before_failure = -1;
  return failure;
}

}  // namespace

namespace headroom::cuda_on_cpu {
void set_devices(int count) { devices = count; }
void set_memory_bytes(size_t bytes) { memory_bytes = bytes; }
void fail_after(int calls, cudaError_t error) {
  calls_before_failure = calls;
  failure = error;
}
}  // namespace headroom::cuda_on_cpu

cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices;
  return devices > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"CPU test layer", 4, size_t{227} * 1024, 9, 0};
  return injected();
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = memory_bytes - used_bytes;
  *total_bytes = memory_bytes;
  return cudaSuccess;
}

// Fresh memory is NaN in every element type.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  if (bytes > memory_bytes - used_bytes) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xFF, bytes);
  allocations[*memory] = bytes;
  used_bytes += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  used_bytes -= found->second;
  allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  *memory = std::malloc(std::max<size_t>(bytes, 1));
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return injected();
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return injected(); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "cudaErrorInvalidValue";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "injected"; }
