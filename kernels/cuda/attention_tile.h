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

// How four warps share a tile: kRowWarps along the rows, kColWarps along keys and columns.
template <int kDim, int kRowWarps>
struct Shape {
  static constexpr int kColWarps = kWarps / kRowWarps;
  static constexpr int kKeys = block_keys<kDim>();
  static constexpr int kKeyTiles = kKeys / 8;                   // score tiles [16, 8] of a block
  static constexpr int kMyKeyTiles = kKeyTiles / kColWarps;     // that a warp multiplies
  static constexpr int kMyDimTiles = kDim / 8 / kColWarps;      // output tiles [16, 8] of a warp
  static constexpr int kDimSteps = kDim / kMmaDepth;
  // Where queries and sums would take most of a thread's registers, the queries wait in shared memory.
  static constexpr bool kQueriesShared = kDimSteps * 4 + kMyDimTiles * 4 >= 96;
  // Shared memory: a stage of keys and values; in front of the stages the scores that warps exchange, queries, and,
  // in units of several splits, the merged sums.
  static constexpr int kHalfStageBytes = 2 * kKeys * kDim;
  static constexpr int kStageBytes = 2 * kHalfStageBytes;
  static constexpr int kExchangeBytes = kColWarps > 1 ? kRowWarps * kKeyTiles * kWarpLanes * 16 : 0;
  static constexpr int kQueryBytes = kQueriesShared ? kRowWarps * kDimSteps * kWarpLanes * 16 : 0;
  static constexpr int kMergedBytes = kMyDimTiles * 16 * kThreads;
};

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
template <int kDim>
HEADROOM_DEVICE SharedAddress swizzled_ahead(SharedAddress at, int ahead) {
  constexpr int kSwizzled = kDim / kChunkElements % 8 == 0 ? 8 : 4;  // chunks that change places with each other
  return (at ^ static_cast<SharedAddress>(ahead % kSwizzled * 16)) + static_cast<SharedAddress>(ahead / kSwizzled * kSwizzled * 16);
}

// What a thread knows of its unit.
template <int kDim, int kRowWarps>
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

// Brings block `block` of keys and values to `stage`. All threads take part; the caller commits.
template <int kDim, int kRowWarps>
HEADROOM_DEVICE void load_block(const KernelParams& params, const Unit<kDim, kRowWarps>& unit, int block, SharedAddress stage) {
  using S = Shape<kDim, kRowWarps>;
  constexpr int kRowChunks = kDim / kChunkElements;
  static_assert(S::kKeys * kRowChunks % kThreads == 0);
  const Pages& pages = params.args.pages;
  const int64_t v_bytes = page_row_offset(pages.kv_heads, 0, pages.page_tokens, pages.head_dim) * 2;
#pragma unroll 1
  for (int i = 0; i < S::kKeys * kRowChunks / kThreads; ++i) {
    const int key = (i * kThreads + thread_id()) / kRowChunks;
    const int chunk = (i * kThreads + thread_id()) % kRowChunks;
    const int position = block * S::kKeys + key;
    const bool seen = position >= unit.key_begin && position < unit.key_end;
    const bool valid = seen && chunk * kChunkElements < pages.head_dim;
    const std::byte* from = pages.data;
    if (valid) {
      const int page = unit.page_table[position >> params.page_shift];
      const int slot = position & (pages.page_tokens - 1);
      from += static_cast<size_t>(page) * pages.page_stride_bytes +
              (page_row_offset(unit.kv_head, slot, pages.page_tokens, pages.head_dim) + chunk * kChunkElements) * 2;
    }
    const SharedAddress to = stage + static_cast<SharedAddress>(swizzled_chunk<kDim>(key, chunk)) * 16;
    cp_async_16(to, from, valid);
    cp_async_16(to + S::kHalfStageBytes, valid ? from + v_bytes : from, valid);
  }
}

// The A fragments of a warp's sixteen query rows, rounded to the type of the pages: in registers or in shared memory, where the
// warps that share the rows write the same.
template <DType kType, int kDim, int kRowWarps>
struct Queries {
  using S = Shape<kDim, kRowWarps>;
  static constexpr int kRegisterSteps = S::kQueriesShared ? 1 : S::kDimSteps;
  uint32_t registers[kRegisterSteps][4];
  uint4* shared;  // [row_warp][step][lane]

  HEADROOM_DEVICE void load(const KernelParams& params, const Unit<kDim, kRowWarps>& unit, unsigned char* memory) {
    const AttentionArgs& args = params.args;
    shared = reinterpret_cast<uint4*>(memory) + unit.row_warp * S::kDimSteps * kWarpLanes + unit.lane;
    const float* from[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = unit.row(half) < unit.rows ? unit.row(half) : 0;  // rows that are not there repeat the first
      const int head = unit.kv_head * args.group + row % args.group;
      from[half] = args.qkv.data + (unit.tile.first_row + row / args.group) * args.qkv.stride + head * args.pages.head_dim +
                   unit.lane % 4 * 2;
    }
#pragma unroll
    for (int step = 0; step < S::kDimSteps; ++step) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = step * 2 + i / 2;
        float2 pair = {0.0f, 0.0f};
        if (chunk * kChunkElements < args.pages.head_dim) {
          pair = *reinterpret_cast<const float2*>(from[i % 2] + chunk * kChunkElements);
        }
        a[i] = pack_halves<kType>(pair.x, pair.y);
      }
      if constexpr (S::kQueriesShared) {
        shared[step * kWarpLanes] = {a[0], a[1], a[2], a[3]};
      } else {
        for (int i = 0; i < 4; ++i) registers[step][i] = a[i];
      }
    }
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
template <DType kType, int kDim, int kRowWarps>
HEADROOM_DEVICE void multiply_keys(const Unit<kDim, kRowWarps>& unit, SharedAddress keys,
                                   const Queries<kType, kDim, kRowWarps>& queries,
                                   float (&scores)[Shape<kDim, kRowWarps>::kMyKeyTiles][4]) {
  using S = Shape<kDim, kRowWarps>;
#pragma unroll
  for (int i = 0; i < S::kMyKeyTiles; ++i) scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
  // Lane l names row l % 8 of tile l / 8 to ldmatrix: eight keys, four chunks of 8 elements, two steps of 16.
  const int first_key = unit.col_warp * S::kMyKeyTiles * 8 + unit.lane % 8;
  const SharedAddress first = keys + static_cast<SharedAddress>(swizzled_chunk<kDim>(first_key, unit.lane / 8)) * 16;
#pragma unroll
  for (int step = 0; step < S::kDimSteps; step += 2) {
    uint32_t a[2][4];
    queries.get(step, a[0]);
    queries.get(step + 1, a[1]);
#pragma unroll
    for (int i = 0; i < S::kMyKeyTiles; ++i) {
      uint32_t b[4];
      ldmatrix_x4(b, swizzled_ahead<kDim>(first, step * 2) + static_cast<SharedAddress>(i * 8 * kDim * 2));
      mma<kType>(scores[i], a[0], b[0], b[1]);
      mma<kType>(scores[i], a[1], b[2], b[3]);
    }
  }
}

// All the block's scores of a warp's rows, from the warps that share them. Ends with all threads in step.
template <int kDim, int kRowWarps>
HEADROOM_DEVICE void exchange_scores(const Unit<kDim, kRowWarps>& unit, float4* exchange,
                                     const float (&mine)[Shape<kDim, kRowWarps>::kMyKeyTiles][4],
                                     float (&scores)[Shape<kDim, kRowWarps>::kKeyTiles][4]) {
  using S = Shape<kDim, kRowWarps>;
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
template <int kDim, int kRowWarps>
HEADROOM_DEVICE void mask_scores(const KernelParams& params, const Unit<kDim, kRowWarps>& unit, int block,
                                 float (&scores)[Shape<kDim, kRowWarps>::kKeyTiles][4]) {
  using S = Shape<kDim, kRowWarps>;
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
template <int kDim, int kRowWarps>
HEADROOM_DEVICE void weigh_scores(float scale_log2, float (&scores)[Shape<kDim, kRowWarps>::kKeyTiles][4],
                                  State<Shape<kDim, kRowWarps>::kMyDimTiles>& state) {
  using S = Shape<kDim, kRowWarps>;
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
template <DType kType, int kDim, int kRowWarps>
HEADROOM_DEVICE void multiply_values(const Unit<kDim, kRowWarps>& unit, SharedAddress values,
                                     const float (&weights)[Shape<kDim, kRowWarps>::kKeyTiles][4],
                                     State<Shape<kDim, kRowWarps>::kMyDimTiles>& state) {
  using S = Shape<kDim, kRowWarps>;
  uint32_t a[S::kKeyTiles / 2][4];  // two score tiles are one A fragment
#pragma unroll
  for (int step = 0; step < S::kKeyTiles / 2; ++step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[step][i * 2] = pack_halves<kType>(weights[step * 2 + i][0], weights[step * 2 + i][1]);
      a[step][i * 2 + 1] = pack_halves<kType>(weights[step * 2 + i][2], weights[step * 2 + i][3]);
    }
  }
  // 32 keys at a time, a row for each lane; tile i is chunk i of this warp's columns.
  const int first_chunk = unit.col_warp * S::kMyDimTiles;
  const SharedAddress first = values + static_cast<SharedAddress>(swizzled_chunk<kDim>(unit.lane, first_chunk)) * 16;
  const auto column = [&](int i) {
    if constexpr ((S::kMyDimTiles & (S::kMyDimTiles - 1)) == 0) return swizzled_ahead<kDim>(first, i);
    return values + static_cast<SharedAddress>(swizzled_chunk<kDim>(unit.lane, first_chunk + i)) * 16;
  };
#pragma unroll
  for (int step = 0; step < S::kKeyTiles / 2; step += 2) {
#pragma unroll
    for (int i = 0; i < S::kMyDimTiles; ++i) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, column(i) + static_cast<SharedAddress>(step * kMmaDepth * kDim * 2));
      mma<kType>(state.out[i], a[step], b[0], b[1]);
      mma<kType>(state.out[i], a[step + 1], b[2], b[3]);
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
template <DType kType, int kDim, int kRowWarps>
HEADROOM_DEVICE void attend_block(const KernelParams& params, const Unit<kDim, kRowWarps>& unit, int block, SharedAddress stage,
                                  const Queries<kType, kDim, kRowWarps>& queries, float4* exchange,
                                  State<Shape<kDim, kRowWarps>::kMyDimTiles>& state) {
  using S = Shape<kDim, kRowWarps>;
  float scores[S::kKeyTiles][4];
  if constexpr (S::kColWarps == 1) {
    multiply_keys<kType>(unit, stage, queries, scores);
  } else {
    float mine[S::kMyKeyTiles][4];
    multiply_keys<kType>(unit, stage, queries, mine);
    exchange_scores(unit, exchange, mine, scores);
  }
  mask_scores(params, unit, block, scores);
  weigh_scores<kDim, kRowWarps>(params.args.scale_log2, scores, state);
  multiply_values<kType>(unit, stage + S::kHalfStageBytes, scores, state);
}

}  // namespace attention
}  // namespace headroom::cuda
