// Where everything lies: fragments of mma.m16n8k16, packed weights and activations, swizzled pages in shared memory, the
// order of sums over K. Pure constexpr functions, used by device code and by the host, tested exhaustively on the CPU
// (tests/cuda_on_cpu/layout_test.cc). Element counts are of 16-bit elements unless a name says otherwise.
//
// Fragment maps: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "ldmatrix".
#pragma once

#include <cstddef>
#include <cstdint>

namespace headroom::cuda {

constexpr int kWarpLanes = 32;
constexpr int kMmaRows = 16;    // M: rows of A and of the result
constexpr int kMmaTokens = 8;   // N: columns of B and of the result
constexpr int kMmaDepth = 16;   // K
constexpr int kChunkBytes = 16;    // what cp.async moves, and a row of an ldmatrix tile
constexpr int kChunkElements = 8;  // 16-bit elements of a chunk; columns of a tile of results

struct Coordinate {
  int row;
  int col;
  constexpr bool operator==(const Coordinate&) const = default;
};

// Element `i` of 8 of a lane's A fragment [16, 16]; elements 2r and 2r + 1 share register r.
constexpr Coordinate mma_a(int lane, int i) {
  return {lane / 4 + (i / 2 % 2) * 8, lane % 4 * 2 + i % 2 + (i / 4) * 8};
}
// Element `i` of 4 of a lane's B fragment [16 (K), 8 (N)].
constexpr Coordinate mma_b(int lane, int i) { return {lane % 4 * 2 + i % 2 + (i / 2) * 8, lane / 4}; }
// Element `i` of 4 of a lane's accumulator [16, 8].
constexpr Coordinate mma_c(int lane, int i) { return {lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2}; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- GEMM: weights [N, K] and activations [T, K] are kept as the fragments that the matrix unit takes, so that a warp
// reads a tile as one row of consecutive bytes, from device or from shared memory.

constexpr int kDepthStep = 64;                              // K is padded to a multiple of it with zeros
constexpr int kStepTiles = kDepthStep / kMmaDepth;          // k-tiles that are always taken together
constexpr int kWeightTileElements = kMmaRows * kMmaDepth;   // 8 per lane: one 16-byte load
constexpr int kTokenTileElements = kMmaDepth * kMmaTokens;  // 4 per lane: one 8-byte load
constexpr int kChunksMax = 8;                               // parts of K with a sum of their own

constexpr int64_t depth_tiles(int64_t cols) { return ceil_div(cols, kDepthStep) * kStepTiles; }
constexpr int64_t weight_tiles(int64_t rows) { return ceil_div(rows, kMmaRows); }
constexpr int64_t token_tiles(int64_t rows) { return ceil_div(rows, kMmaTokens); }

// K is summed in chunks of so many k-tiles, k ascending within a chunk, chunks in ascending order. A function of K alone,
// so that an output has the same bits whatever the number of rows, and whichever kernel computes it.
constexpr int64_t chunk_tiles(int64_t cols) {
  return ceil_div(ceil_div(depth_tiles(cols), kChunksMax), kStepTiles) * kStepTiles;
}
constexpr int chunk_count(int64_t cols) { return static_cast<int>(ceil_div(depth_tiles(cols), chunk_tiles(cols))); }

// Place of element (n, k) of a weight of `cols` inputs: tiles [n / 16][k / 16], each [lane][8].
constexpr int64_t weight_offset(int64_t n, int64_t k, int64_t cols) {
  const int64_t tile = n / kMmaRows * depth_tiles(cols) + k / kMmaDepth;
  const int row = static_cast<int>(n % kMmaRows), col = static_cast<int>(k % kMmaDepth);
  const int lane = row % 8 * 4 + col % 8 / 2;
  const int within = lane * 8 + col / 8 * 4 + row / 8 * 2 + col % 2;
  return tile * kWeightTileElements + within;
}

// The rows of gate and up, `half` of each, take turns by eight: a tile has eight of gate and the eight of up that they are multiplied with,
// so that both sums come to the same thread (mma_c). Where row n goes, and the row that is at a place: 2 · half where there is none.
constexpr int kTurnRows = kMmaRows / 2;
constexpr int64_t gate_up_place(int64_t n, int64_t half) {
  const int64_t f = n < half ? n : n - half;
  return f / kTurnRows * kMmaRows + f % kTurnRows + (n < half ? 0 : kTurnRows);
}
constexpr int gate_up_row(int place, int half) {
  const int f = place / kMmaRows * kTurnRows + place % kTurnRows;
  return f >= half ? 2 * half : place % kMmaRows < kTurnRows ? f : half + f;
}

// Place of element (t, k) of activations of `cols` columns: tiles [t / 8][k / 16], each [lane][4].
constexpr int64_t activation_offset(int64_t t, int64_t k, int64_t cols) {
  const int64_t tile = t / kMmaTokens * depth_tiles(cols) + k / kMmaDepth;
  const int row = static_cast<int>(t % kMmaTokens), col = static_cast<int>(k % kMmaDepth);
  const int within = (row * 4 + col % 8 / 2) * 4 + col / 8 * 2 + col % 2;
  return tile * kTokenTileElements + within;
}

// Of element (t, 8 · chunk), from element (t, 0) on; columns 2p and 2p + 1 of the chunk are 4p elements further.
constexpr int activation_chunk_offset(int chunk) { return chunk / 2 * kTokenTileElements + chunk % 2 * 2; }

// ---- Attention: keys and values lie in shared memory as rows of chunks of 16 bytes. A row's chunks are permuted so that the
// eight rows that one ldmatrix tile reads (eight neighbouring keys, the same chunk) fall into different banks: eight chunks cover
// all 32 banks once.
template <int kRowChunks>
constexpr int swizzled_chunk(int key, int chunk) {
  static_assert(kRowChunks % 4 == 0);
  if constexpr (kRowChunks % 8 == 0) return key * kRowChunks + (chunk ^ (key % 8));
  return key * kRowChunks + (chunk ^ (key / 2 % 4));  // rows of 4 modulo 8 chunks: neighbours already differ by half the banks
}

constexpr int kSplitKeys = 512;  // keys of a split, at absolute positions

// Keys that are attended at once. The softmax's maximum moves once per block, so the size is part of the arithmetic.
template <int kDim>
constexpr int block_keys() {
  return kDim > 128 ? 32 : 64;
}

// The narrowest kernel that holds a head of `head_dim`; the rest of the row is zeros. A row of int8 must be a multiple of 4 chunks.
constexpr int kernel_dim(int head_dim, bool int8) {
  return head_dim <= 64 ? 64 : head_dim <= 96 && !int8 ? 96 : head_dim <= 128 ? 128 : 256;
}

// A key's row within a page of [K|V][G][page_tokens][head_dim]; V's rows follow K's, and the scales of int8 pages follow both in
// the same order.
constexpr int64_t page_row(int32_t kv_head, int32_t slot, int32_t page_tokens) {
  return static_cast<int64_t>(kv_head) * page_tokens + slot;
}

// Splits [first, last) that the keys [begin, end) fall into.
constexpr int split_first(int begin) { return begin / kSplitKeys; }
constexpr int split_last(int end) { return static_cast<int>(ceil_div(end, kSplitKeys)); }

}  // namespace headroom::cuda
