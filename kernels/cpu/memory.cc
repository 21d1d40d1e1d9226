#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>

namespace headroom {
namespace {

constexpr size_t kMappingBytes = size_t{256} << 20;  // of pieces; addresses alone until they are written
constexpr size_t kPieceAlignBytes = 64;

}  // namespace

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

CpuMemoryPiece CpuMemoryPieces::take(size_t bytes) {
  const size_t rounded = (bytes + kPieceAlignBytes - 1) / kPieceAlignBytes * kPieceAlignBytes;
  if (mapping_ == nullptr || rounded > mapping_->bytes() - used_bytes_) {
    mapping_ = std::make_shared<CpuMemory>(std::max(rounded, kMappingBytes));
    used_bytes_ = 0;
  }
  CpuMemoryPiece piece{mapping_, mapping_->data() + used_bytes_, bytes};
  used_bytes_ += rounded;
  return piece;
}

}  // namespace headroom
