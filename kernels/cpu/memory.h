// Anonymous memory of the CPU backend: zero until written, not resident until touched, in huge pages where the system
// has them.
#pragma once

#include <cstddef>
#include <memory>

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

// A piece of a mapping that others have pieces of too; the mapping lives as long as any of them.
struct CpuMemoryPiece {
  std::shared_ptr<CpuMemory> mapping;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// Pieces side by side in large mappings: a piece of less than a huge page, or one that begins in the middle of one, lies in huge pages
// too, as it would not in a mapping of its own. One thread at a time.
class CpuMemoryPieces {
 public:
  // 64-byte aligned, zero. Throws as CpuMemory does.
  CpuMemoryPiece take(size_t bytes);

 private:
  std::shared_ptr<CpuMemory> mapping_;  // of the latest piece
  size_t used_bytes_ = 0;               // of it
};

}  // namespace headroom
