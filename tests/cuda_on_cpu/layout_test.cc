// The maps of kernels/cuda/layout.h and the cut of attention into units, exhaustively.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/work_list.h"

namespace headroom::cuda {
namespace {

template <class Map>
void expect_all_once(const Map& map, int elements, int rows, int cols) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < elements; ++i) {
      const Coordinate at = map(lane, i);
      ASSERT_TRUE(at.row >= 0 && at.row < rows && at.col >= 0 && at.col < cols);
      ASSERT_TRUE(seen.insert({at.row, at.col}).second);
    }
  }
}

TEST(Fragments, EveryElementIsHeldOnce) {
  expect_all_once(mma_a, 8, 16, 16);
  expect_all_once(mma_b, 4, 16, 8);
  expect_all_once(mma_c, 4, 16, 8);
}

// A lane's eight weights lie together, and are its A fragment; likewise a lane's four activations, its B fragment.
TEST(Fragments, PackedTilesAreFragments) {
  for (const int64_t cols : {64, 128, 576}) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const Coordinate at = mma_a(lane, i);
        ASSERT_EQ(weight_offset(16 + at.row, 32 + at.col, cols), (depth_tiles(cols) + 2) * 256 + lane * 8 + i);
      }
      for (int i = 0; i < 4; ++i) {
        const Coordinate at = mma_b(lane, i);
        ASSERT_EQ(activation_offset(8 + at.col, 48 + at.row, cols), (depth_tiles(cols) + 3) * 128 + lane * 4 + i);
      }
    }
  }
}

TEST(Packing, EveryElementHasAPlaceOfItsOwn) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {33, 100}, {8, 129}}) {
    std::vector<bool> weight(static_cast<size_t>(weight_tiles(rows) * depth_tiles(cols) * kWeightTileElements));
    std::vector<bool> activation(static_cast<size_t>(token_tiles(rows) * depth_tiles(cols) * kTokenTileElements));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const auto w = static_cast<size_t>(weight_offset(r, c, cols)), a = static_cast<size_t>(activation_offset(r, c, cols));
        ASSERT_LT(w, weight.size());
        ASSERT_LT(a, activation.size());
        ASSERT_FALSE(weight[w] || activation[a]) << r << ", " << c;
        weight[w] = activation[a] = true;
        if (c % 8 == 0) {
          ASSERT_EQ(activation_offset(r, c, cols), activation_offset(r, 0, cols) + activation_chunk_offset(static_cast<int>(c / 8)));
        }
      }
    }
  }
}

TEST(Packing, GateAndUpMeetInATileAndInAThread) {
  for (const int64_t half : {1, 7, 8, 9, 100}) {
    std::set<int64_t> places;
    for (int64_t n = 0; n < 2 * half; ++n) {
      const int64_t place = gate_up_place(n, half);
      ASSERT_LT(place, weight_tiles(2 * half) * kMmaRows);
      ASSERT_TRUE(places.insert(place).second);
      ASSERT_EQ(gate_up_row(static_cast<int>(place), static_cast<int>(half)), n);
      if (n < half) {
        ASSERT_EQ(gate_up_place(n + half, half), place + kTurnRows);
      }
    }
    for (int place = 0; place < weight_tiles(2 * half) * kMmaRows; ++place) {
      ASSERT_EQ(gate_up_row(place, static_cast<int>(half)) < 2 * half, places.contains(place)) << place;
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 2; ++i) {
      ASSERT_EQ(mma_c(lane, i + 2), (Coordinate{mma_c(lane, i).row + kTurnRows, mma_c(lane, i).col}));
    }
  }
}

TEST(Chunks, CoverKOnceInWholeSteps) {
  for (int64_t cols = 1; cols <= 20000; cols += cols < 2000 ? 1 : 97) {
    const int64_t tiles = depth_tiles(cols), size = chunk_tiles(cols);
    ASSERT_EQ(tiles % kStepTiles, 0);
    ASSERT_EQ(size % kStepTiles, 0);
    ASSERT_GE(tiles * kMmaDepth, cols);
    ASSERT_LT(tiles * kMmaDepth, cols + kDepthStep);
    const int chunks = chunk_count(cols);
    ASSERT_GE(chunks, 1);
    ASSERT_LE(chunks, kChunksMax);
    ASSERT_GE(chunks * size, tiles);
    ASSERT_LT((chunks - 1) * size, tiles) << "the last chunk has something";
  }
}

template <int kDim, int kElementBytes>
void check_swizzle() {
  constexpr int kChunks = kDim * kElementBytes / kChunkBytes;
  constexpr int kKeys = block_keys<kDim>();
  std::set<int> seen;
  for (int key = 0; key < kKeys; ++key) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int at = swizzled_chunk<kChunks>(key, chunk);
      ASSERT_EQ(at / kChunks, key) << "a row stays in its place";
      ASSERT_TRUE(seen.insert(at).second);
      // What the kernel's address arithmetic rests on.
      ASSERT_EQ(swizzled_chunk<kChunks>(key + 8, chunk), at + 8 * kChunks);
      ASSERT_EQ(swizzled_chunk<kChunks>(key, chunk + 8), at + 8);
    }
  }
  // Eight lanes of one ldmatrix tile, and eight neighbouring lanes of a cp.async, touch each bank once.
  for (int key = 0; key < kKeys; key += 8) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      std::set<int> banks;
      for (int row = 0; row < 8; ++row) banks.insert(swizzled_chunk<kChunks>(key + row, chunk) % 8);
      ASSERT_EQ(banks.size(), 8u) << "head_dim " << kDim << ", key " << key << ", chunk " << chunk;
    }
  }
}

TEST(Swizzle, IsAPermutationWithoutBankConflicts) {
  check_swizzle<64, 2>();
  check_swizzle<96, 2>();
  check_swizzle<128, 2>();
  check_swizzle<256, 2>();
  check_swizzle<64, 1>();
  check_swizzle<128, 1>();
  check_swizzle<256, 1>();
}

TEST(KernelDim, HoldsEveryHead) {
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    EXPECT_GE(kernel_dim(head_dim, false), head_dim);
    EXPECT_GE(kernel_dim(head_dim, true), head_dim);
  }
  EXPECT_EQ(kernel_dim(64, false), 64);
  EXPECT_EQ(kernel_dim(80, false), 96);
  EXPECT_EQ(kernel_dim(80, true), 128);
  EXPECT_EQ(kernel_dim(128, true), 128);
}

// ---- The work list: every (row, key) that is seen is in exactly one unit.

struct TestBatch {
  std::vector<int32_t> tokens, positions, first_row{0}, tables, table_begin{0};
  void add(int32_t first_position, int32_t count) {
    for (int32_t i = 0; i < count; ++i) positions.push_back(first_position + i);
    tokens.resize(positions.size());
    first_row.push_back(static_cast<int32_t>(positions.size()));
    tables.resize(tables.size() + static_cast<size_t>((first_position + count + 15) / 16));
    table_begin.push_back(static_cast<int32_t>(tables.size()));
  }
  BatchView view() const { return {static_cast<int32_t>(positions.size()), tokens, positions, first_row, tables, table_begin}; }
};

void check_list(const TestBatch& batch, const WorkListOptions& options, const WorkList& list) {
  // Tiles cover the rows once, in order, and never two sequences.
  int32_t next_row = 0;
  for (const AttentionTile& tile : list.tiles) {
    ASSERT_EQ(tile.first_row, next_row);
    ASSERT_GE(tile.tokens, 1);
    ASSERT_LE(tile.tokens * options.group, tile.row_warps * kWarpRows);
    next_row += tile.tokens;
    ASSERT_EQ(batch.positions[static_cast<size_t>(tile.first_row)], tile.first_position);
    ASSERT_EQ(batch.positions[static_cast<size_t>(next_row - 1)], tile.first_position + tile.tokens - 1);
    const auto s = std::upper_bound(batch.first_row.begin(), batch.first_row.end(), tile.first_row) - batch.first_row.begin() - 1;
    ASSERT_LE(next_row, batch.first_row[static_cast<size_t>(s) + 1]);
    ASSERT_EQ(tile.table_begin, batch.table_begin[static_cast<size_t>(s)]);
    const int32_t oldest = options.window_tokens > 0 ? std::max(0, tile.first_position - options.window_tokens + 1) : 0;
    ASSERT_EQ(tile.first_split, oldest / kSplitKeys);
    ASSERT_EQ(tile.last_split, (tile.first_position + tile.tokens + kSplitKeys - 1) / kSplitKeys);
  }
  ASSERT_EQ(next_row, static_cast<int32_t>(batch.positions.size()));
  // Units cover the splits of each tile once: all in one unit, or one each with room for its state.
  std::vector<std::set<int32_t>> covered(list.tiles.size());
  std::vector<std::pair<int64_t, int64_t>> rooms;
  int32_t kind = 0, length = std::numeric_limits<int32_t>::max();
  int32_t of[kRowWarpKinds] = {};
  for (const AttentionUnit& unit : list.units) {
    const AttentionTile& tile = list.tiles[static_cast<size_t>(unit.tile)];
    for (int32_t split = unit.first_split; split < unit.last_split; ++split) {
      ASSERT_TRUE(covered[static_cast<size_t>(unit.tile)].insert(split).second);
    }
    const bool whole = unit.first_split == tile.first_split && unit.last_split == tile.last_split;
    ASSERT_TRUE(whole || unit.last_split == unit.first_split + 1);
    if (!whole) {
      const int64_t one = partial_floats(tile.tokens * options.group, options.head_dim) * options.kv_heads;
      const int64_t begin = tile.partials_begin + (unit.first_split - tile.first_split) * one;
      rooms.emplace_back(begin, begin + one);
    }
    const int32_t this_kind = tile.row_warps == 1 ? 0 : tile.row_warps == 2 ? 1 : 2;
    ASSERT_GE(this_kind, kind);
    if (this_kind != kind) length = std::numeric_limits<int32_t>::max();
    ASSERT_LE(unit.last_split - unit.first_split, length) << "the longest come first";
    kind = this_kind;
    length = unit.last_split - unit.first_split;
    ++of[kind];
  }
  ASSERT_TRUE(std::equal(std::begin(of), std::end(of), std::begin(list.units_of)));
  for (size_t i = 0; i < covered.size(); ++i) {
    ASSERT_EQ(covered[i].size(), static_cast<size_t>(list.tiles[i].last_split - list.tiles[i].first_split));
  }
  std::sort(rooms.begin(), rooms.end());
  for (size_t i = 0; i < rooms.size(); ++i) {
    ASSERT_LE(rooms[i].second, list.partial_floats);
    ASSERT_GE(rooms[i].first, i == 0 ? 0 : rooms[i - 1].second) << "two states in one place";
  }
  ASSERT_LE(list.partial_floats, options.partial_floats_max);
}

TEST(WorkList, CoversEveryRowAndSplitOnce) {
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    TestBatch batch;
    for (uint32_t s = random() % 12; s > 0; --s) {
      const int32_t count = random() % 3 == 0 ? 1 + static_cast<int32_t>(random() % 300) : static_cast<int32_t>(random() % 4);
      batch.add(static_cast<int32_t>(random() % 3000), count);
    }
    WorkListOptions options;
    options.group = 1 + static_cast<int32_t>(random() % 32);
    options.kv_heads = 1 + static_cast<int32_t>(random() % 8);
    options.head_dim = std::vector<int32_t>{8, 64, 80, 128, 256}[random() % 5];
    options.window_tokens = random() % 2 == 0 ? 0 : static_cast<int32_t>(random() % 1500);
    options.grid_blocks = 1 + static_cast<int32_t>(random() % 264);
    options.partial_floats_max = random() % 4 == 0 ? static_cast<int64_t>(random() % 200000) : int64_t{1} << 40;
    WorkList list;
    make_work_list(batch.view(), options, list);
    check_list(batch, options, list);
    if (testing::Test::HasFatalFailure()) FAIL() << "round " << round;
  }
}

TEST(WorkList, FillsTheDeviceWithSplitsAndOnlyThen) {
  TestBatch one, many;
  one.add(8191, 1);
  for (int i = 0; i < 300; ++i) many.add(8191, 1);
  const WorkListOptions options{.group = 4, .kv_heads = 8, .head_dim = 128, .grid_blocks = 264, .partial_floats_max = 1 << 30};
  WorkList list;
  make_work_list(one.view(), options, list);
  EXPECT_EQ(list.units.size(), 16u);
  make_work_list(many.view(), options, list);
  EXPECT_EQ(list.units.size(), 300u);
  EXPECT_EQ(list.partial_floats, 0);
}

}  // namespace
}  // namespace headroom::cuda
