// Anonymous memory of the CPU backend: zero until written, not resident until touched, in huge pages where the system
// has them.
#pragma once

#include <cstddef>

#include "kernels/backend.h"

namespace headroom {

class CpuMemory final : public Buffer {
 public:
  // Throws BackendError out_of_memory, naming the bytes, where the system refuses them.
  explicit CpuMemory(size_t bytes);
  ~CpuMemory() override;
  CpuMemory(const CpuMemory&) = delete;
  CpuMemory& operator=(const CpuMemory&) = delete;

  std::byte* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace headroom
