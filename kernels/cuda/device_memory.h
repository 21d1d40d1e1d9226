// Memory of the device and pinned memory of the host, freed with the object. What cannot be had is thrown as BackendError, with
// what was asked for and what is free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/errors.h"

namespace headroom::cuda {

class DeviceMemory final : public Buffer {
 public:
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory() override;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
};

// Device memory that grows to what the largest call needed, zeros at first. Contents do not survive growth.
class Workspace {
 public:
  template <class T>
  T* reserve(int64_t count, cudaStream_t stream) {
    return reinterpret_cast<T*>(reserve_bytes(static_cast<size_t>(count) * sizeof(T), stream));
  }

 private:
  std::byte* reserve_bytes(size_t bytes, cudaStream_t stream);
  std::unique_ptr<DeviceMemory> memory_;
};

// Pinned memory of the host: what the device copies from and to without a stop.
class PinnedMemory final : public Buffer {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory() override;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
};

// A point in a stream.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream);
  void wait() const;  // until the device has passed the point that was recorded last; not at all before that

 private:
  cudaEvent_t event_ = nullptr;
};

// The small arrays of a step on their way to the device, by way of pinned memory. A copy stays valid until the next begin().
class Staging {
 public:
  // A new step, behind what is at work on the device: it waits for the step before the last one alone.
  void begin(cudaStream_t stream);
  // Room for so many bytes. REQUIRES: the device is done with what was put.
  void reserve(size_t bytes);
  // Where `values` will be on the device, for whatever follows in the stream.
  template <class T>
  const T* put(std::span<const T> values, cudaStream_t stream) {
    return reinterpret_cast<const T*>(put_bytes(values.data(), values.size_bytes(), stream));
  }

 private:
  struct Room {
    explicit Room(size_t bytes) : device(bytes), hosts{PinnedMemory(bytes), PinnedMemory(bytes)} {}
    DeviceMemory device;  // written and read in the order of the stream
    PinnedMemory hosts[2];  // of this step and of the one before
  };
  const std::byte* put_bytes(const void* from, size_t bytes, cudaStream_t stream);

  std::vector<std::unique_ptr<Room>> rooms_;  // the last one is being filled; earlier ones were too small and go at begin()
  size_t used_ = 0;
  Event read_[2];  // what was put in the step of that turn
  size_t turn_ = 0;
};

}  // namespace headroom::cuda
