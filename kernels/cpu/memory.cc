#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>

namespace headroom {

CpuMemory::CpuMemory(size_t bytes) : bytes_(bytes) {
  void* mapped = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw BackendError(BackendError::Kind::out_of_memory,
                       "the system refused " + std::to_string(bytes) + " bytes of memory");
  }
  data_ = static_cast<std::byte*>(mapped);
  // Fewer TLB misses when panels or pages stream by. Only a hint: without huge pages everything still works.
  madvise(mapped, bytes, MADV_HUGEPAGE);
}

CpuMemory::~CpuMemory() { munmap(data_, std::max<size_t>(bytes_, 1)); }

}  // namespace headroom
