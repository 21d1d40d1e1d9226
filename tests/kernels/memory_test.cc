#include "kernels/cpu/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace headroom {
namespace {

TEST(CpuMemoryPieces, AreZeroAlignedAndApart) {
  CpuMemoryPieces memory;
  std::vector<CpuMemoryPiece> pieces;
  const std::vector<size_t> sizes = {1, 63, 64, 65, 1 << 20, 300 << 20, 3, 0, 200 << 20, 100 << 20};
  for (size_t i = 0; i < sizes.size(); ++i) {
    pieces.push_back(memory.take(sizes[i]));
    const CpuMemoryPiece& piece = pieces.back();
    EXPECT_EQ(piece.bytes, sizes[i]);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.data) % 64, 0u);
    const size_t looked_at = std::min<size_t>(sizes[i], 4096);
    EXPECT_EQ(std::count(piece.data, piece.data + looked_at, std::byte{0}), static_cast<ptrdiff_t>(looked_at));
    std::memset(piece.data, static_cast<int>(i) + 1, looked_at);
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      EXPECT_TRUE(pieces[i].data + sizes[i] <= pieces[j].data || pieces[j].data + sizes[j] <= pieces[i].data) << i << " and " << j;
    }
    if (sizes[i] > 0) {
      EXPECT_EQ(pieces[i].data[0], static_cast<std::byte>(i + 1));
    }
  }
}

TEST(CpuMemoryPieces, OutliveTheOthersAndWhatTheyCameFrom) {
  CpuMemoryPiece kept;
  {
    CpuMemoryPieces memory;
    const CpuMemoryPiece first = memory.take(1000);
    kept = memory.take(1000);
    EXPECT_EQ(first.mapping, kept.mapping) << "small pieces lie side by side";
    std::memset(kept.data, 7, kept.bytes);
  }
  EXPECT_EQ(std::count(kept.data, kept.data + kept.bytes, std::byte{7}), 1000);
}

}  // namespace
}  // namespace headroom
