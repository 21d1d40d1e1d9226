// What paged_attention works on: a call, its tiles, the memory of a tile in flight. Plain data, the same for all SIMD
// targets.
//
// Threads: a TileMemory belongs to one worker; a call and its tiles are read by all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/backend.h"
#include "kernels/cpu/key_layout.h"

namespace headroom::cpu {

constexpr int kTileQueryRows = 32;  // the largest group
constexpr int kLanesMax = 16;       // floats of a target's widest vector
constexpr int kBlockKeys = 32;
constexpr int32_t kSplitKeys = 512;
constexpr int32_t kAheadKeys = 2 * kBlockKeys;  // what is asked of memory while a block is worked on
static_assert(kAheadKeys % kBlockKeys == 0 && kSplitKeys % kBlockKeys == 0 && kBlockKeys % kChunkKeys == 0);
// From so many tiles per worker on, whole tiles spread evenly enough, and splits need no memory.
constexpr size_t kTilesPerWorker = 8;
// Parts (a split of tiles that are worked on together) per worker from which on they spread evenly enough.
constexpr size_t kPartsPerWorker = 6;
// KV heads whose tiles are worked on together, and rows of a tile up to which they are: more would not fit into L1.
constexpr size_t kHeadsTogether = 4;
constexpr int kRowsTogether = 8;
// Bytes that the states of splits may take before they are merged; more tiles are done in turns. One alone may take more: a state for each
// kSplitKeys of its context.
constexpr size_t kPartialBytesMax = 1 << 20;

// `tokens` rows from `first_row` on, of one sequence and one KV head.
struct AttentionTile {
  const int32_t* page_table;
  int32_t first_row;
  int32_t tokens;
  int32_t kv_head;
  int32_t first_position;

  int32_t last_position() const { return first_position + tokens - 1; }
};

// One attention call, as all its tiles see it.
struct AttentionCall {
  Matrix out;
  Matrix qkv;
  KvLayer layer;
  BatchView batch;
  AttentionParams params;
  bool in_pairs;  // of bf16, where the pages' type allows and the target has them

  int group() const { return params.query_heads / params.kv_heads; }
  int rows(const AttentionTile& tile) const { return tile.tokens * group(); }
  const float* query(const AttentionTile& tile, int row) const {
    const int64_t head = int64_t{tile.kv_head} * group() + row % group();
    return qkv.row(tile.first_row + row / group()) + head * params.head_dim;
  }
  int64_t padded_dim() const {  // a multiple of every target's vector; of pairs, of two
    const int64_t step = in_pairs ? 2 * kLanesMax : kLanesMax;
    return (params.head_dim + step - 1) / step * step;
  }
};

// What one row has of the keys seen so far: the largest score, Σ 2^(score − max), and Σ 2^(score − max) · v.
struct SoftmaxState {
  float* max;          // [kTileQueryRows]
  float* sum;          // [kTileQueryRows]
  float* accumulator;  // [kTileQueryRows, padded_dim]

  SoftmaxState(float* memory) : max(memory), sum(memory + kTileQueryRows), accumulator(memory + 2 * kTileQueryRows) {}
  static size_t floats(int64_t padded_dim) { return static_cast<size_t>(kTileQueryRows * (2 + padded_dim)); }
  void clear(int rows, int64_t padded_dim) {
    std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + rows, 0.0f);
    std::fill(accumulator, accumulator + rows * padded_dim, 0.0f);
  }
};

// A worker's memory for the tile that it works on.
struct TileMemory {
  float* queries;  // [head_dim, rows of the tile]: its queries, transposed; of pairs, [head_dim / 2, rows of the tile]
  float* keys;     // [head_dim, kBlockKeys]: the block's keys, widened
  float* values;   // [kBlockKeys, padded_dim]
  float* weights;  // [kTileQueryRows, kBlockKeys]: scores, then softmax weights
  float* lane_sums;  // [kTileQueryRows, lanes of the target]: what becomes the split's sum
  SoftmaxState split;
  SoftmaxState total;

  TileMemory(float* memory, int64_t padded_dim)
      : queries(memory),
        keys(queries + padded_dim * kTileQueryRows),
        values(keys + padded_dim * kBlockKeys),
        weights(values + padded_dim * kBlockKeys),
        lane_sums(weights + kTileQueryRows * kBlockKeys),
        split(lane_sums + kTileQueryRows * kLanesMax),
        total(split.max + SoftmaxState::floats(padded_dim)) {}
  static size_t floats(int64_t padded_dim) {
    return static_cast<size_t>(padded_dim * (kTileQueryRows + 2 * kBlockKeys) + kTileQueryRows * (kBlockKeys + kLanesMax)) +
           2 * SoftmaxState::floats(padded_dim);
  }
};

// Positions [begin, end).
struct KeyRange {
  int32_t begin;
  int32_t end;
  bool empty() const { return begin >= end; }
  bool operator==(const KeyRange&) const = default;
};

// The keys of [begin, end) that the row at `position` sees.
inline KeyRange visible(int32_t position, int32_t window_tokens, int32_t begin, int32_t end) {
  const int32_t oldest = window_tokens > 0 ? std::max(0, position - window_tokens + 1) : 0;
  return {std::max(begin, oldest), std::min(end, position + 1)};
}

// The keys that some row of the tile sees.
inline KeyRange visible_to_tile(const AttentionTile& tile, int32_t window_tokens) {
  return {visible(tile.first_position, window_tokens, 0, tile.first_position + 1).begin, tile.last_position() + 1};
}

}  // namespace headroom::cpu
