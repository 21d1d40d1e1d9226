// How one attention call is cut: tiles of rows, and the units that blocks take. Made on the host once per step, the same for
// all layers. Plain functions of the batch, no device needed: tests/cuda_on_cpu/work_list_test.cc.
//
// A tile is up to 64 rows (query token, query head of the group) of one sequence and, in turn, each KV head. A tile is one
// unit where there are enough tiles to fill the device; otherwise each of its splits is, and the last block to finish a
// split merges them. Either way a row's arithmetic is: blocks in order within a split, splits merged in ascending order.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace headroom::cuda {

struct AttentionTile {
  int32_t first_row;       // of the batch
  int32_t tokens;
  int32_t first_position;  // of the first token
  int32_t table_begin;     // where the sequence's page table begins in page_tables
  int32_t row_warps;       // warps along the rows: 1, 2 or 4 times 16 rows
  int32_t first_split;     // splits [first_split, last_split) hold the keys that some row sees
  int32_t last_split;
  int32_t partials_begin;  // floats: states [split][kv_head][rows][head_dim + 2] of this tile, where it is cut
  bool operator==(const AttentionTile&) const = default;
};

// For each KV head: the splits [first_split, last_split) of a tile.
struct AttentionUnit {
  int32_t tile;
  int32_t first_split;
  int32_t last_split;
  bool operator==(const AttentionUnit&) const = default;
};

constexpr int kRowWarpKinds = 3;  // 1, 2 and 4 warps along the rows

struct WorkList {
  std::vector<AttentionTile> tiles;
  std::vector<AttentionUnit> units;       // by row_warps, then the longest first
  int32_t units_of[kRowWarpKinds] = {};  // how many there are of each
  int64_t partial_floats = 0;
};

struct WorkListOptions {
  int32_t group = 1;
  int32_t kv_heads = 1;
  int32_t head_dim = 128;
  int32_t window_tokens = 0;
  int32_t grid_blocks = 1;            // that run at the same time
  int64_t partial_floats_max = 0;     // room for states; tiles whose states do not fit are not cut
  bool operator==(const WorkListOptions&) const = default;
};

// Replaces the contents of `list`.
void make_work_list(const BatchView& batch, const WorkListOptions& options, WorkList& list);

constexpr int32_t kWarpRows = 16;
constexpr int32_t kTileRowsMax = 64;
// At head_dim > 128 two warps share each row's output, which leaves rows for two.
constexpr int32_t tile_rows_max(int32_t head_dim) { return head_dim > 128 ? 32 : kTileRowsMax; }
constexpr int32_t row_warps(int32_t rows, int32_t head_dim) {
  if (head_dim > 128) return 2;
  return rows <= kWarpRows ? 1 : rows <= 2 * kWarpRows ? 2 : 4;
}
// The keys [begin, end) that some row of a tile sees.
constexpr int32_t visible_begin(int32_t first_position, int32_t window_tokens) {
  return window_tokens > 0 && first_position >= window_tokens ? first_position - window_tokens + 1 : 0;
}
constexpr int32_t visible_end(int32_t first_position, int32_t tokens) { return first_position + tokens; }

// Floats of one state: per row the sums, then its maximum and its sum of weights.
constexpr int64_t partial_floats(int32_t rows, int32_t head_dim) { return static_cast<int64_t>(rows) * (head_dim + 2); }

}  // namespace headroom::cuda
