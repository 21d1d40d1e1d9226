#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace headroom::cuda {
namespace {

constexpr size_t kAlignBytes = 256;
constexpr size_t kStagingBytesMin = size_t{256} << 10;

size_t aligned(size_t bytes) { return (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes; }
std::string mebibytes(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

}  // namespace

void throw_cuda_error(cudaError_t error, const char* call) {
  const auto kind = error == cudaErrorMemoryAllocation ? BackendError::Kind::out_of_memory : BackendError::Kind::sticky;
  throw BackendError(kind, std::string("cuda: ") + call + " failed: " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) free_bytes = total_bytes = 0;
    throw BackendError(BackendError::Kind::out_of_memory,
                       "cuda: out of memory: " + mebibytes(bytes) + " were asked for, " + mebibytes(free_bytes) + " of " +
                           mebibytes(total_bytes) + " are free");
  }
  check_cuda(error, "cudaMalloc");
  data_ = static_cast<std::byte*>(memory);
}

DeviceMemory::~DeviceMemory() { static_cast<void>(cudaFree(data_)); }  // fails only on a device that is lost already

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, bytes), "cudaMallocHost");
  data_ = static_cast<std::byte*>(memory);
}

PinnedMemory::~PinnedMemory() { static_cast<void>(cudaFreeHost(data_)); }

std::byte* Workspace::reserve_bytes(size_t bytes, cudaStream_t stream) {
  if (memory_ == nullptr || bytes > memory_->bytes()) {
    memory_.reset();
    memory_ = std::make_unique<DeviceMemory>(aligned(bytes));
    check_cuda(cudaMemsetAsync(memory_->data(), 0, memory_->bytes(), stream), "cudaMemsetAsync");
  }
  return memory_->data();
}

Event::Event() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
Event::~Event() { static_cast<void>(cudaEventDestroy(event_)); }  // fails only on a device that is lost already
void Event::record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
void Event::wait() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

void Staging::begin(cudaStream_t stream) {
  read_[turn_].record(stream);
  turn_ ^= 1;
  read_[turn_].wait();
  if (rooms_.size() > 1) {
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    rooms_.erase(rooms_.begin(), rooms_.end() - 1);
  }
  used_ = 0;
}

void Staging::reserve(size_t bytes) {
  used_ = 0;
  if (rooms_.size() != 1 || rooms_.back()->device.bytes() < bytes) {
    rooms_.clear();
    rooms_.push_back(std::make_unique<Room>(aligned(bytes)));
  }
}

const std::byte* Staging::put_bytes(const void* from, size_t bytes, cudaStream_t stream) {
  if (rooms_.empty() || used_ + bytes > rooms_.back()->device.bytes()) {
    const size_t before = rooms_.empty() ? 0 : rooms_.back()->device.bytes();
    rooms_.push_back(std::make_unique<Room>(std::max({kStagingBytesMin, 2 * before, aligned(bytes)})));
    used_ = 0;
  }
  Room& room = *rooms_.back();
  std::byte* to = room.device.data() + used_;
  if (bytes > 0) {
    std::byte* host = room.hosts[turn_].data() + used_;
    std::memcpy(host, from, bytes);
    check_cuda(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  }
  used_ = aligned(used_ + bytes);
  return to;
}

}  // namespace headroom::cuda
