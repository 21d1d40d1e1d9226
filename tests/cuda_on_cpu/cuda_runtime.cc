#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "tests/cuda_on_cpu/include/cuda_runtime_api.h"

using Work = std::vector<std::function<bool()>>;
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUevent_st {
  int64_t at = 0;  // of what was ever put off
};

namespace {

int devices = 1;
size_t memory_bytes = size_t{4} << 30;
size_t used_bytes = 0;
std::map<void*, size_t> allocations;
int calls_before_failure = -1;
cudaError_t failure = cudaSuccess;

std::optional<Work> capture;  // of the one stream that there is
bool capture_is_broken = false;
int launches = 0;
int recorded_work = 0;

bool is_late = false;
std::deque<std::function<bool()>> put_off;
int64_t done = 0;  // of what was ever put off
bool failed_late = false;

// Does what was put off, up to the given place.
cudaError_t catch_up(int64_t place) {
  for (; done < place; ++done) {
    const std::function<bool()> work = std::move(put_off.front());
    put_off.pop_front();
    failed_late = !work() || failed_late;
  }
  return failed_late ? cudaErrorInvalidValue : cudaSuccess;
}
int64_t end_of_stream() { return done + static_cast<int64_t>(put_off.size()); }
cudaError_t catch_up() { return catch_up(end_of_stream()); }

// Of calls that a capture does not allow.
cudaError_t outside_capture() {
  if (!capture) return cudaSuccess;
  capture_is_broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

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
bool do_in_stream(std::function<bool()> work) {
  if (capture) {
    capture->push_back(std::move(work));
    return true;
  }
  if (!is_late) return work();
  put_off.push_back(std::move(work));
  return true;
}
void set_late(bool late) {
  catch_up();
  is_late = late;
}
int graph_launches() { return launches; }
int recorded_launches() { return recorded_work; }
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
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
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
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  catch_up();  // as a device does
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  used_bytes -= found->second;
  allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  *memory = std::malloc(std::max<size_t>(bytes, 1));
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  catch_up();
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  headroom::cuda_on_cpu::do_in_stream([=] { return std::memmove(to, from, bytes) != nullptr; });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  headroom::cuda_on_cpu::do_in_stream([=] { return std::memset(memory, value, bytes) != nullptr; });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  capture.emplace();
  capture_is_broken = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  if (!capture) return cudaErrorInvalidValue;
  recorded_work = static_cast<int>(capture->size());
  *graph = capture_is_broken ? nullptr : new CUgraph_st{std::move(*capture)};
  capture.reset();
  return capture_is_broken ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  ++launches;
  for (const auto& work : exec->work) {
    if (!headroom::cuda_on_cpu::do_in_stream(work)) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return injected();
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  return catch_up();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  event->at = end_of_stream();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = outside_capture(); error != cudaSuccess) return error;
  if (const cudaError_t error = injected(); error != cudaSuccess) return error;
  return catch_up(event->at);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    default: return "cudaErrorInvalidValue";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "injected"; }
