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
static_assert(kSplitKeys % kBlockKeys == 0 && kBlockKeys % kChunkKeys == 0);
// From so many tiles per worker on, whole tiles spread evenly enough, and splits need no memory.
constexpr size_t kTilesPerWorker = 8;
// Parts (a split of tiles that are worked on together) per worker from which on they spread evenly enough.
constexpr size_t kPartsPerWorker = 6;
// KV heads whose tiles are worked on together, rows of a tile up to which they are, and bytes that a block of theirs may have: it is asked
// for a block ahead, and L2 holds both.
constexpr size_t kHeadsTogether = 16;
constexpr int kRowsTogether = 8;
constexpr size_t kTogetherBytesMax = 256 << 10;
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

// What each of up to `rows_max` rows has of the keys seen so far: the largest score, Σ 2^(score − max), and Σ 2^(score − max) · v.
struct SoftmaxState {
  float* max;          // [rows_max]
  float* sum;          // [rows_max]
  float* accumulator;  // [rows_max, padded_dim]

  SoftmaxState(float* memory, int rows_max) : max(memory), sum(memory + rows_max), accumulator(memory + 2 * rows_max) {}
  static size_t floats(int rows_max, int64_t padded_dim) { return static_cast<size_t>(rows_max * (2 + padded_dim)); }
  void clear(int rows, int64_t padded_dim) {
    std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + rows, 0.0f);
    std::fill(accumulator, accumulator + rows * padded_dim, 0.0f);
  }
};

// A worker's memory for a tile in flight, of up to `rows_max` rows. What a block leaves nothing in, tiles that are worked on together share.
struct TileMemory {
  float* keys;       // [head_dim, kBlockKeys]: the block's keys, widened. Shared
  float* values;     // [kBlockKeys, padded_dim]. Shared
  float* weights;    // [rows_max, kBlockKeys]: scores, then softmax weights. Shared
  float* queries;    // [head_dim, rows of the tile]: its queries, transposed; of pairs, [head_dim / 2, rows of the tile]
  float* lane_sums;  // [rows_max, lanes of the target]: what becomes the split's sum
  SoftmaxState split;
  SoftmaxState total;

  TileMemory(float* shared, float* own, int rows_max, int64_t padded_dim)
      : keys(shared),
        values(keys + padded_dim * kBlockKeys),
        weights(values + padded_dim * kBlockKeys),
        queries(own),
        lane_sums(queries + padded_dim * rows_max),
        split(lane_sums + rows_max * kLanesMax, rows_max),
        total(split.max + SoftmaxState::floats(rows_max, padded_dim), rows_max) {}
  static size_t shared_floats(int rows_max, int64_t padded_dim) {
    return static_cast<size_t>(padded_dim * 2 * kBlockKeys + rows_max * kBlockKeys);
  }
  static size_t own_floats(int rows_max, int64_t padded_dim) {
    return static_cast<size_t>(rows_max * (padded_dim + kLanesMax)) + 2 * SoftmaxState::floats(rows_max, padded_dim);
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
