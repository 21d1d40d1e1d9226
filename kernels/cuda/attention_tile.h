// What one block does with one block of keys: pages to shared memory, q·kᵀ, the online softmax, weights · v. The parts of
// paged_attention.cu, which has the whole story.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace attention {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr float kMinusInfinity = -__builtin_huge_valf();

struct KernelParams {
  AttentionArgs args;
  int32_t page_shift;     // log2 of page_tokens
  int32_t split_stages;   // blocks of keys in shared memory: of a unit of one split, and of a unit of several,
  int32_t merged_stages;  // which keeps the merged sums there as well
};

// Pages of `kPageType`, and how four warps share a tile: kRowWarps_ along the rows, kColWarps along keys and columns.
//
// int8 pages are widened to bf16 in registers, on their way from shared memory to the matrix unit. ldmatrix moves pairs of bytes,
// so a lane gets four neighbouring elements of a key, and of values a pair of columns for each of two keys. The matrix unit does
// not mind in which order it sums over dimensions or where a column stands, so they are taken as they come: queries are loaded in
// the order of the keys, and of two output tiles the first has the even columns.
template <DType kPageType, int kHeadDim, int kRowWarps_>
struct Shape {
  static constexpr bool kInt8 = kPageType == DType::kI8;
  static constexpr DType kType = kPageType == DType::kF16 ? DType::kF16 : DType::kBF16;  // what is multiplied
  static constexpr int kElementBytes = kInt8 ? 1 : 2;
  static constexpr int kDim = kHeadDim;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kColWarps = kWarps / kRowWarps;
  static constexpr int kKeys = block_keys<kDim>();
  static constexpr int kKeyTiles = kKeys / 8;                   // score tiles [16, 8] of a block
  static constexpr int kMyKeyTiles = kKeyTiles / kColWarps;     // that a warp multiplies
  static constexpr int kMyDimTiles = kDim / 8 / kColWarps;      // output tiles [16, 8] of a warp
  static constexpr int kDimSteps = kDim / kMmaDepth;
  static constexpr int kRowBytes = kDim * kElementBytes;
  static constexpr int kRowChunks = kRowBytes / kChunkBytes;    // of a key or a value
  static constexpr int kChunkTiles = kInt8 ? 2 : 1;             // output tiles that a chunk of values makes
  // Where queries and sums would take most of a thread's registers, the queries wait in shared memory.
  static constexpr bool kQueriesShared = kDimSteps * 4 + kMyDimTiles * 4 >= 96;
  // Shared memory: a stage of keys and values, and their scales; in front of the stages the scores that warps exchange, queries,
  // and, in units of several splits, the merged sums.
  static constexpr int kHalfStageBytes = kKeys * kRowBytes;
  static constexpr int kScaleBytes = kInt8 ? kKeys * 4 : 0;     // of the keys; as many of the values follow
  static constexpr int kStageBytes = 2 * (kHalfStageBytes + kScaleBytes);
  static constexpr int kExchangeBytes = kColWarps > 1 ? kRowWarps * kKeyTiles * kWarpLanes * 16 : 0;
  static constexpr int kQueryBytes = kQueriesShared ? kRowWarps * kDimSteps * kWarpLanes * 16 : 0;
  static constexpr int kMergedBytes = kMyDimTiles * 16 * kThreads;
};

// Bytes 0 and 2 of four int8 as bf16, exactly: 128 + the low seven bits, minus 128, or 256 where the sign is set.
HEADROOM_DEVICE uint32_t even_bytes_to_bf16(uint32_t bytes) {
  const uint32_t raised = (bytes & 0x007F007Fu) | 0x43004300u;
  const uint32_t minus = (bytes & 0x00800080u) | 0xC300C300u;
  constexpr uint32_t kOnes = 0x3F803F80u;
  return fma_bf16x2(raised, kOnes, minus);
}

// A thread's part of the state of two rows, lane / 4 and that plus 8 of its warp's sixteen: the largest score, Σ 2^(score −
// max), Σ 2^(score − max) · v. `sum` is the thread's own share until a split ends.
template <int kTiles>
struct State {
  float max[2];
  float sum[2];
  float out[kTiles][4];

  HEADROOM_DEVICE void clear() {
    max[0] = max[1] = kMinusInfinity;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
  }
};

// Factors that bring two states with these maxima to their common one. An empty state has the factor 0.
struct MergeFactors {
  float max;
  float older;
  float newer;
};
HEADROOM_DEVICE MergeFactors merge_factors(float older, float newer) {
  const float max = fmaxf(older, newer);
  const float finite = max == kMinusInfinity ? 0.0f : max;
  return {max, exp2_fast(older - finite), exp2_fast(newer - finite)};
}
HEADROOM_DEVICE float merge(float older, float newer, const MergeFactors& factors) {
  return fmaf(newer, factors.newer, older * factors.older);
}

// The address of the chunk `ahead` chunks after the one at `at`, in the same row. The chunk at `at` is a multiple of the power
// of two above every `ahead` that it is asked for.
template <int kRowChunks>
HEADROOM_DEVICE SharedAddress swizzled_ahead(SharedAddress at, int ahead) {
  constexpr int kSwizzled = kRowChunks % 8 == 0 ? 8 : 4;  // chunks that change places with each other
  return (at ^ static_cast<SharedAddress>(ahead % kSwizzled * 16)) + static_cast<SharedAddress>(ahead / kSwizzled * kSwizzled * 16);
}

// What a thread knows of its unit.
template <class S>
struct Unit {
  AttentionTile tile;
  int kv_head;
  int rows;          // of the tile
  int lane;
  int row_warp;      // which sixteen rows
  int col_warp;      // which part of keys and columns
  int key_begin;     // keys that some row of the tile sees
  int key_end;
  const int32_t* page_table;

  HEADROOM_DEVICE int row(int half) const { return row_warp * kWarpRows + half * 8 + lane / 4; }
};

// Where the page of a key begins, from `pages.data` on, and which row of it the key is.
template <class S>
HEADROOM_DEVICE size_t page_offset(const KernelParams& params, const Unit<S>& unit, int position, int64_t* row) {
  const Pages& pages = params.args.pages;
  *row = page_row(unit.kv_head, position & (pages.page_tokens - 1), pages.page_tokens);
  return static_cast<size_t>(unit.page_table[position >> params.page_shift]) * pages.page_stride_bytes;
}

// Brings block `block` of keys and values to `stage`. All threads take part; the caller commits.
template <class S>
HEADROOM_DEVICE void load_block(const KernelParams& params, const Unit<S>& unit, int block, SharedAddress stage) {
  static_assert(S::kKeys * S::kRowChunks % kThreads == 0);
  const Pages& pages = params.args.pages;
  const int row_bytes = pages.head_dim * S::kElementBytes;
  const int64_t rows = page_row(pages.kv_heads, 0, pages.page_tokens);  // of K, before those of V
  const auto seen = [&](int position) { return position >= unit.key_begin && position < unit.key_end; };
#pragma unroll 1
  for (int i = 0; i < S::kKeys * S::kRowChunks / kThreads; ++i) {
    const int key = (i * kThreads + thread_id()) / S::kRowChunks;
    const int chunk = (i * kThreads + thread_id()) % S::kRowChunks;
    const int position = block * S::kKeys + key;
    const bool valid = seen(position) && chunk * kChunkBytes < row_bytes;
    const std::byte* from = pages.data;
    if (valid) {
      int64_t row;
      from += page_offset(params, unit, position, &row);
      from += row * row_bytes + chunk * kChunkBytes;
    }
    const SharedAddress to = stage + static_cast<SharedAddress>(swizzled_chunk<S::kRowChunks>(key, chunk)) * kChunkBytes;
    cp_async<16>(to, from, valid);
    cp_async<16>(to + S::kHalfStageBytes, valid ? from + rows * row_bytes : from, valid);
  }
  if constexpr (S::kInt8) {  // a thread each: scales of keys, then of values
    static_assert(2 * S::kKeys <= kThreads);
    if (thread_id() >= 2 * S::kKeys) return;
    const int position = block * S::kKeys + thread_id() % S::kKeys;
    const bool valid = seen(position);
    const std::byte* from = pages.data;
    if (valid) {
      int64_t row;
      from += page_offset(params, unit, position, &row);
      from += 2 * rows * row_bytes + (thread_id() < S::kKeys ? row : rows + row) * 4;
    }
    cp_async<4>(stage + static_cast<SharedAddress>(2 * S::kHalfStageBytes + thread_id() * 4), from, valid);
  }
}

// The A fragments of a warp's sixteen query rows, rounded to the type of the pages: in registers or in shared memory, where the
// warps that share the rows write the same.
template <class S>
struct Queries {
  static constexpr int kRegisterSteps = S::kQueriesShared ? 1 : S::kDimSteps;
  uint32_t registers[kRegisterSteps][4];
  uint4* shared;  // [row_warp][step][lane]

  HEADROOM_DEVICE void load(const KernelParams& params, const Unit<S>& unit, unsigned char* memory) {
    const AttentionArgs& args = params.args;
    shared = reinterpret_cast<uint4*>(memory) + unit.row_warp * S::kDimSteps * kWarpLanes + unit.lane;
    const float* from[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = unit.row(half) < unit.rows ? unit.row(half) : 0;  // rows that are not there repeat the first
      const int head = unit.kv_head * args.group + row % args.group;
      from[half] = args.qkv.data + (unit.tile.first_row + row / args.group) * args.qkv.stride + head * args.pages.head_dim;
    }
#pragma unroll
    for (int step = 0; step < S::kDimSteps; ++step) {
      uint32_t a[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 pairs[2];  // the fragment's columns 2 · (lane % 4) and the next, and those 8 further
        pair_of_columns(from[half], args.pages.head_dim, step * kMmaDepth, unit.lane % 4, pairs);
        a[half] = pack_halves<S::kType>(pairs[0].x, pairs[0].y);
        a[2 + half] = pack_halves<S::kType>(pairs[1].x, pairs[1].y);
      }
      if constexpr (S::kQueriesShared) {
        shared[step * kWarpLanes] = {a[0], a[1], a[2], a[3]};
      } else {
        for (int i = 0; i < 4; ++i) registers[step][i] = a[i];
      }
    }
  }

  // int8 keys: four neighbours, the first and the third of them a pair.
  HEADROOM_DEVICE static void pair_of_columns(const float* head, int head_dim, int first, int lane, float2 (&pairs)[2]) {
    constexpr int kPairsApart = S::kInt8 ? 2 : 8;
    const int col = first + lane * (S::kInt8 ? 4 : 2);
    float2 read[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (col + i * kPairsApart < head_dim) read[i] = *reinterpret_cast<const float2*>(head + col + i * kPairsApart);
    }
    pairs[0] = S::kInt8 ? float2{read[0].x, read[1].x} : read[0];
    pairs[1] = S::kInt8 ? float2{read[0].y, read[1].y} : read[1];
  }

  HEADROOM_DEVICE void get(int step, uint32_t (&a)[4]) const {
    if constexpr (S::kQueriesShared) {
      const uint4 fragment = shared[step * kWarpLanes];
      a[0] = fragment.x;
      a[1] = fragment.y;
      a[2] = fragment.z;
      a[3] = fragment.w;
    } else {
      for (int i = 0; i < 4; ++i) a[i] = registers[step][i];
    }
  }
};

// scores = q · kᵀ of the key tiles that are this warp's, [16, 8] each.
template <class S>
HEADROOM_DEVICE void multiply_keys(const Unit<S>& unit, SharedAddress keys, const float* key_scales, const Queries<S>& queries,
                                   float (&scores)[S::kMyKeyTiles][4]) {
  constexpr int kSteps = S::kInt8 ? 4 : 2;  // of 16 dimensions that four chunks have
#pragma unroll
  for (int i = 0; i < S::kMyKeyTiles; ++i) scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
  // Lane l names row l % 8 of tile l / 8 to ldmatrix: eight keys, four chunks.
  const int first_tile = unit.col_warp * S::kMyKeyTiles;
  const int first_chunk = swizzled_chunk<S::kRowChunks>(first_tile * 8 + unit.lane % 8, unit.lane / 8);
  const SharedAddress first = keys + static_cast<SharedAddress>(first_chunk) * kChunkBytes;
#pragma unroll
  for (int step = 0; step < S::kDimSteps; step += kSteps) {
    uint32_t a[kSteps][4];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) queries.get(step + j, a[j]);
#pragma unroll
    for (int i = 0; i < S::kMyKeyTiles; ++i) {
      uint32_t b[4];
      ldmatrix_x4(b, swizzled_ahead<S::kRowChunks>(first, step / kSteps * 4) + static_cast<SharedAddress>(i * 8 * S::kRowBytes));
      if constexpr (S::kInt8) {
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<S::kType>(scores[i], a[j], even_bytes_to_bf16(b[j]), even_bytes_to_bf16(b[j] >> 8));
      } else {
        mma<S::kType>(scores[i], a[0], b[0], b[1]);
        mma<S::kType>(scores[i], a[1], b[2], b[3]);
      }
    }
  }
  if constexpr (S::kInt8) {
#pragma unroll
    for (int i = 0; i < S::kMyKeyTiles; ++i) {
      const float2 scale = *reinterpret_cast<const float2*>(key_scales + (first_tile + i) * 8 + unit.lane % 4 * 2);
      scores[i][0] *= scale.x;
      scores[i][1] *= scale.y;
      scores[i][2] *= scale.x;
      scores[i][3] *= scale.y;
    }
  }
}

// All the block's scores of a warp's rows, from the warps that share them. Ends with all threads in step.
template <class S>
HEADROOM_DEVICE void exchange_scores(const Unit<S>& unit, float4* exchange,
                                     const float (&mine)[S::kMyKeyTiles][4],
                                     float (&scores)[S::kKeyTiles][4]) {
  float4* rows = exchange + unit.row_warp * S::kKeyTiles * kWarpLanes;
#pragma unroll
  for (int i = 0; i < S::kMyKeyTiles; ++i) {
    rows[(unit.col_warp * S::kMyKeyTiles + i) * kWarpLanes + unit.lane] = {mine[i][0], mine[i][1], mine[i][2], mine[i][3]};
  }
  block_sync();
#pragma unroll
  for (int i = 0; i < S::kKeyTiles; ++i) {
    const float4 tile = rows[i * kWarpLanes + unit.lane];
    scores[i][0] = tile.x;
    scores[i][1] = tile.y;
    scores[i][2] = tile.z;
    scores[i][3] = tile.w;
  }
}

// Scores of keys that a row does not see become −infinity.
template <class S>
HEADROOM_DEVICE void mask_scores(const KernelParams& params, const Unit<S>& unit, int block,
                                 float (&scores)[S::kKeyTiles][4]) {
  const int begin = block * S::kKeys;
  const int window = params.args.window_tokens;
  const int last_position = unit.tile.first_position + unit.tile.tokens - 1;
  // The first token sees the fewest keys ahead, the last the fewest behind.
  if (begin + S::kKeys <= unit.tile.first_position + 1 && begin >= visible_begin(last_position, window)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int position = unit.tile.first_position + unit.row(half) / params.args.group;
    const int first = visible_begin(position, window);
#pragma unroll
    for (int i = 0; i < S::kKeyTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int key = begin + i * 8 + unit.lane % 4 * 2 + j;
        const bool seen = key >= first && key <= position;
        scores[i][half * 2 + j] = seen ? scores[i][half * 2 + j] : kMinusInfinity;
      }
    }
  }
}

// Scores become weights 2^(score − max); the state moves to the new maximum.
template <class S>
HEADROOM_DEVICE void weigh_scores(float scale_log2, float (&scores)[S::kKeyTiles][4],
                                  State<S::kMyDimTiles>& state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float max = state.max[half];
#pragma unroll
    for (int i = 0; i < S::kKeyTiles; ++i) {
      scores[i][half * 2] *= scale_log2;
      scores[i][half * 2 + 1] *= scale_log2;
      max = fmaxf(max, fmaxf(scores[i][half * 2], scores[i][half * 2 + 1]));
    }
    max = fmaxf(max, shuffle_xor(max, 1));  // the four lanes that hold the row
    max = fmaxf(max, shuffle_xor(max, 2));
    const float finite = max == kMinusInfinity ? 0.0f : max;
    const float decay = exp2_fast(state.max[half] - finite);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < S::kKeyTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = scores[i][half * 2 + j];
        score = exp2_fast(score - finite);
        sum += score;
      }
    }
    state.max[half] = max;
    state.sum[half] = fmaf(state.sum[half], decay, sum);
#pragma unroll
    for (int i = 0; i < S::kMyDimTiles; ++i) {
      state.out[i][half * 2] *= decay;
      state.out[i][half * 2 + 1] *= decay;
    }
  }
}

// out += weights · v for the columns that are this warp's.
template <class S>
HEADROOM_DEVICE void multiply_values(const Unit<S>& unit, SharedAddress values, const float* value_scales,
                                     const float (&weights)[S::kKeyTiles][4], State<S::kMyDimTiles>& state) {
  uint32_t a[S::kKeyTiles / 2][4];  // two score tiles are one A fragment
#pragma unroll
  for (int tile = 0; tile < S::kKeyTiles; ++tile) {
    float2 scale = {1.0f, 1.0f};
    if constexpr (S::kInt8) scale = *reinterpret_cast<const float2*>(value_scales + tile * 8 + unit.lane % 4 * 2);
    const float(&w)[4] = weights[tile];
    a[tile / 2][tile % 2 * 2] = pack_halves<S::kType>(w[0] * scale.x, w[1] * scale.y);
    a[tile / 2][tile % 2 * 2 + 1] = pack_halves<S::kType>(w[2] * scale.x, w[3] * scale.y);
  }
  // 32 keys at a time, a row for each lane.
  constexpr int kMyChunks = S::kMyDimTiles / S::kChunkTiles;
  const int first_chunk = unit.col_warp * kMyChunks;
  const auto address = [&](int chunk) {
    return values + static_cast<SharedAddress>(swizzled_chunk<S::kRowChunks>(unit.lane, chunk)) * kChunkBytes;
  };
  const SharedAddress first = address(first_chunk);
  const auto column = [&](int i) {
    if constexpr ((kMyChunks & (kMyChunks - 1)) == 0) return swizzled_ahead<S::kRowChunks>(first, i);
    return address(first_chunk + i);
  };
#pragma unroll
  for (int step = 0; step < S::kKeyTiles / 2; step += 2) {
#pragma unroll
    for (int i = 0; i < kMyChunks; ++i) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, column(i) + static_cast<SharedAddress>(step * kMmaDepth * S::kRowBytes));
      if constexpr (S::kInt8) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float(&out)[4] = state.out[2 * i + j];
          mma<S::kType>(out, a[step], even_bytes_to_bf16(b[0] >> 8 * j), even_bytes_to_bf16(b[1] >> 8 * j));
          mma<S::kType>(out, a[step + 1], even_bytes_to_bf16(b[2] >> 8 * j), even_bytes_to_bf16(b[3] >> 8 * j));
        }
      } else {
        mma<S::kType>(state.out[i], a[step], b[0], b[1]);
        mma<S::kType>(state.out[i], a[step + 1], b[2], b[3]);
      }
    }
  }
}

// Calls body(chunk, pair, x, y) for what a thread has of a row's output: columns 2 · pair and the next of a chunk of 8 columns,
// chunks counted from the warp's first.
template <class S, class Body>
HEADROOM_DEVICE void for_each_pair(const Unit<S>& unit, const State<S::kMyDimTiles>& state, int half, const Body& body) {
  const int lane = unit.lane % 4;
#pragma unroll
  for (int i = 0; i < S::kMyDimTiles; i += S::kChunkTiles) {
    const float* first = state.out[i] + half * 2;
    if constexpr (S::kInt8) {
      const float* second = state.out[i + 1] + half * 2;
      body(i + lane / 2, lane % 2 * 2, first[0], second[0]);
      body(i + lane / 2, lane % 2 * 2 + 1, first[1], second[1]);
    } else {
      body(i, lane, first[0], first[1]);
    }
  }
}

// The end of a split: sums over the four lanes of a row; then the splits before it, which wait in `merged`, come in front.
template <int kTiles>
HEADROOM_DEVICE void end_split(State<kTiles>& state, float (&merged_max)[2], float (&merged_sum)[2], float* merged, bool first,
                               bool last) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    state.sum[half] += shuffle_xor(state.sum[half], 1);
    state.sum[half] += shuffle_xor(state.sum[half], 2);
    if (first) continue;
    const MergeFactors factors = merge_factors(merged_max[half], state.max[half]);
    state.max[half] = factors.max;
    state.sum[half] = merge(merged_sum[half], state.sum[half], factors);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = half * 2; j < half * 2 + 2; ++j) {
        state.out[i][j] = merge(merged[(i * 4 + j) * kThreads + thread_id()], state.out[i][j], factors);
      }
    }
  }
  if (last) return;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) merged[(i * 4 + j) * kThreads + thread_id()] = state.out[i][j];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    merged_max[half] = state.max[half];
    merged_sum[half] = state.sum[half];
  }
  state.clear();
}

// Takes the block of keys and values at `stage` into the state.
template <class S>
HEADROOM_DEVICE void attend_block(const KernelParams& params, const Unit<S>& unit, int block, unsigned char* stage,
                                  const Queries<S>& queries, float4* exchange, State<S::kMyDimTiles>& state) {
  const SharedAddress keys = shared_address(stage);
  const float* key_scales = reinterpret_cast<const float*>(stage + 2 * S::kHalfStageBytes);
  float scores[S::kKeyTiles][4];
  if constexpr (S::kColWarps == 1) {
    multiply_keys(unit, keys, key_scales, queries, scores);
  } else {
    float mine[S::kMyKeyTiles][4];
    multiply_keys(unit, keys, key_scales, queries, mine);
    exchange_scores(unit, exchange, mine, scores);
  }
  mask_scores(params, unit, block, scores);
  weigh_scores<S>(params.args.scale_log2, scores, state);
  multiply_values(unit, keys + S::kHalfStageBytes, key_scales + S::kKeys, scores, state);
}

}  // namespace attention
}  // namespace headroom::cuda
