// Causal attention over pages on the matrix unit, prefill and decode alike, with an online softmax (Milakov & Gimelshein
// 2018; the register layout that turns scores into the next product's operand is FlashAttention-2's, Dao 2023).
//
// A block of four warps takes a unit of the work list: up to 64 rows (query token, query head of the group) and the keys of
// one or more splits of one KV head. Keys and values of a block of keys come to shared memory once for all rows. Warps lie
// along the rows first; where there are fewer than 64, the warps that share 16 rows divide the keys when they multiply q·kᵀ,
// exchange the scores, and divide the columns when they multiply the weights with v. So every warp does the same arithmetic
// for a row, however many share it.
// Bits: blocks of keys and splits lie at absolute positions; a block or split of which a row sees nothing leaves its state as
// it is, to the bit; splits are merged in ascending order. Hence prefill ≡ decode, and no batch, page or grid shows.
// NaN: slots of a page that hold no key of the tile are not read (zeros instead), and scores are masked by selection. A NaN
// that a sequence wrote itself reaches all rows of a tile, also earlier ones: 0 · NaN is NaN on the matrix unit.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

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

// Where a finished row goes, from one of its 8-column chunks on.
struct RowOut {
  float* out;
  uint16_t* packed;  // of the row's first chunk in the tile of tokens
  int chunk;         // of the row
  DType packed_type;

  HEADROOM_DEVICE RowOut(const AttentionArgs& args, int64_t row, int first_chunk)
      : out(args.out.data + row * args.out.stride + first_chunk * kChunkElements),
        packed(args.packed.data == nullptr ? nullptr : args.packed.data + activation_offset(row, 0, args.packed.cols)),
        chunk(first_chunk),
        packed_type(args.packed.dtype) {}

  // Columns 2 · pair and the next of the chunk that is `ahead` after the first.
  HEADROOM_DEVICE void store(int ahead, int pair, float x, float y) const {
    *reinterpret_cast<float2*>(out + ahead * kChunkElements + pair * 2) = {x, y};
    if (packed == nullptr) return;
    const uint32_t halves = packed_type == DType::kBF16 ? pack_halves<DType::kBF16>(x, y) : pack_halves<DType::kF16>(x, y);
    *reinterpret_cast<uint32_t*>(packed + activation_chunk_offset(chunk + ahead) + pair * 4) = halves;
  }
};

// A row that saw no key is zeros.
HEADROOM_DEVICE float inverse_or_zero(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

template <int kDim, int kRowWarps>
HEADROOM_DEVICE void store_rows(const AttentionArgs& args, const Unit<kDim, kRowWarps>& unit,
                                const State<Shape<kDim, kRowWarps>::kMyDimTiles>& state) {
  using S = Shape<kDim, kRowWarps>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = unit.row(half);
    if (row >= unit.rows) continue;
    const float inverse = inverse_or_zero(state.sum[half]);
    const int head = unit.kv_head * args.group + row % args.group;
    const int head_chunks = args.pages.head_dim / kChunkElements;
    const int first_chunk = unit.col_warp * S::kMyDimTiles;
    const RowOut out(args, unit.tile.first_row + row / args.group, head * head_chunks + first_chunk);
#pragma unroll
    for (int i = 0; i < S::kMyDimTiles; ++i) {
      if (first_chunk + i >= head_chunks) break;
      out.store(i, unit.lane % 4, state.out[i][half * 2] * inverse, state.out[i][half * 2 + 1] * inverse);
    }
  }
}

// The state of one split, for whichever block comes last: [rows][head_dim], then [rows] of (max, sum).
HEADROOM_DEVICE float* partial_state(const AttentionArgs& args, const AttentionTile& tile, int kv_head, int split) {
  const int rows = tile.tokens * args.group;
  const int64_t index = static_cast<int64_t>(split - tile.first_split) * args.pages.kv_heads + kv_head;
  return args.partials + tile.partials_begin + index * partial_floats(rows, args.pages.head_dim);
}

template <int kDim, int kRowWarps>
HEADROOM_DEVICE void store_partial(const AttentionArgs& args, const Unit<kDim, kRowWarps>& unit, int split,
                                   const State<Shape<kDim, kRowWarps>::kMyDimTiles>& state) {
  using S = Shape<kDim, kRowWarps>;
  float* partial = partial_state(args, unit.tile, unit.kv_head, split);
  float2* maxima_sums = reinterpret_cast<float2*>(partial + unit.rows * args.pages.head_dim);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = unit.row(half);
    if (row >= unit.rows) continue;
    if (unit.col_warp == 0 && unit.lane % 4 == 0) maxima_sums[row] = {state.max[half], state.sum[half]};
    const int first_chunk = unit.col_warp * S::kMyDimTiles;
    float* sums = partial + row * args.pages.head_dim + first_chunk * kChunkElements + unit.lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::kMyDimTiles; ++i) {
      if ((first_chunk + i) * kChunkElements >= args.pages.head_dim) break;
      *reinterpret_cast<float2*>(sums + i * kChunkElements) = {state.out[i][half * 2], state.out[i][half * 2 + 1]};
    }
  }
}

// Merges the states of all splits of a tile, as end_split does, two columns of a row at a time.
HEADROOM_DEVICE void merge_partials(const AttentionArgs& args, const AttentionTile& tile, int kv_head) {
  const int rows = tile.tokens * args.group;
  const int pairs = args.pages.head_dim / 2;
  const int64_t state_floats = partial_floats(rows, args.pages.head_dim) * args.pages.kv_heads;
  const float* first = partial_state(args, tile, kv_head, tile.first_split);
  for (int i = thread_id(); i < rows * pairs; i += kThreads) {
    const int row = i / pairs;
    const int col = i % pairs * 2;
    const float* sums = first + row * args.pages.head_dim + col;
    const float2* maximum = reinterpret_cast<const float2*>(first + rows * args.pages.head_dim) + row;
    float2 total = load_shared_result(reinterpret_cast<const float2*>(sums));
    float2 max_sum = load_shared_result(maximum);
#pragma unroll 8
    for (int split = 1; split < tile.last_split - tile.first_split; ++split) {
      const float2 next = load_shared_result(reinterpret_cast<const float2*>(sums + split * state_floats));
      const float2 next_max_sum =
          load_shared_result(reinterpret_cast<const float2*>(reinterpret_cast<const float*>(maximum) + split * state_floats));
      const MergeFactors factors = merge_factors(max_sum.x, next_max_sum.x);
      max_sum = {factors.max, merge(max_sum.y, next_max_sum.y, factors)};
      total = {merge(total.x, next.x, factors), merge(total.y, next.y, factors)};
    }
    const float inverse = inverse_or_zero(max_sum.y);
    const int head = kv_head * args.group + row % args.group;
    const RowOut out(args, tile.first_row + row / args.group, (head * args.pages.head_dim + col) / kChunkElements);
    out.store(0, col % kChunkElements / 2, total.x * inverse, total.y * inverse);
  }
}

// True for all threads of the block that finishes a tile's last split. `flag` is in shared memory.
HEADROOM_DEVICE bool is_last_to_arrive(const AttentionArgs& args, const AttentionUnit& unit, const AttentionTile& tile, int kv_head,
                                       int* flag) {
  device_fence();
  block_sync();  // what all threads wrote is out
  if (thread_id() == 0) {
    int32_t* arrivals = args.arrivals + static_cast<int64_t>(unit.tile) * args.pages.kv_heads + kv_head;
    const int splits = tile.last_split - tile.first_split;
    const int before = atomic_add(arrivals, 1);
    if (before == splits - 1) atomic_add(arrivals, -splits);  // zero again, for the next launch
    *flag = before == splits - 1;
  }
  block_sync();
  device_fence();
  return *flag != 0;
}

template <DType kType, int kDim, int kRowWarps>
HEADROOM_DEVICE void attend_unit(const KernelParams& params, const AttentionUnit& work, const AttentionTile& tile, int kv_head) {
  using S = Shape<kDim, kRowWarps>;
  const AttentionArgs& args = params.args;
  const int warp = thread_id() / kWarpLanes;
  const Unit<kDim, kRowWarps> unit{tile,
                                   kv_head,
                                   tile.tokens * args.group,
                                   thread_id() % kWarpLanes,
                                   warp / S::kColWarps,
                                   warp % S::kColWarps,
                                   visible_begin(tile.first_position, args.window_tokens),
                                   visible_end(tile.first_position, tile.tokens),
                                   args.page_tables + tile.table_begin};
  const bool several = work.last_split - work.first_split > 1;
  const int stages = several ? params.merged_stages : params.split_stages;
  unsigned char* shared = shared_memory();
  float4* exchange = reinterpret_cast<float4*>(shared);
  float* merged = reinterpret_cast<float*>(shared + S::kExchangeBytes + S::kQueryBytes);
  const SharedAddress ring = shared_address(shared) + static_cast<SharedAddress>(S::kExchangeBytes + S::kQueryBytes + (several ? S::kMergedBytes : 0));
  const int begin = unit.key_begin > work.first_split * kSplitKeys ? unit.key_begin : work.first_split * kSplitKeys;
  const int end = unit.key_end < work.last_split * kSplitKeys ? unit.key_end : work.last_split * kSplitKeys;
  const int first_block = begin / S::kKeys;
  const int last_block = static_cast<int>(ceil_div(end, S::kKeys));

  Queries<kType, kDim, kRowWarps> queries;
  queries.load(params, unit, shared + S::kExchangeBytes);
  State<S::kMyDimTiles> state;
  state.clear();
  float merged_max[2] = {kMinusInfinity, kMinusInfinity}, merged_sum[2] = {0.0f, 0.0f};
  bool first_split = true;

  int load_slot = 0, slot = 0;
  const auto load_next = [&](int block) {
    if (block < last_block) load_block(params, unit, block, ring + static_cast<SharedAddress>(load_slot * S::kStageBytes));
    cp_async_commit();
    load_slot = load_slot + 1 == stages ? 0 : load_slot + 1;
  };
  for (int i = 0; i + 1 < stages; ++i) load_next(first_block + i);
  for (int block = first_block; block < last_block; ++block) {
    if (stages == 1) {  // no room to load ahead
      block_sync();
      load_next(block);
    }
    if (stages > 2) {
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    block_sync();  // the block is there for all, and nobody reads the stage that comes next
    if (stages > 1) load_next(block + stages - 1);
    const SharedAddress keys = ring + static_cast<SharedAddress>(slot * S::kStageBytes);
    slot = slot + 1 == stages ? 0 : slot + 1;

    float scores[S::kKeyTiles][4];
    if constexpr (S::kColWarps == 1) {
      multiply_keys<kType>(unit, keys, queries, scores);
    } else {
      float mine[S::kMyKeyTiles][4];
      multiply_keys<kType>(unit, keys, queries, mine);
      exchange_scores(unit, exchange, mine, scores);
    }
    mask_scores(params, unit, block, scores);
    weigh_scores<kDim, kRowWarps>(args.scale_log2, scores, state);
    multiply_values<kType>(unit, keys + S::kHalfStageBytes, scores, state);

    const bool last = block + 1 == last_block;
    if (last || (block + 1) * S::kKeys % kSplitKeys == 0) {
      end_split(state, merged_max, merged_sum, merged, first_split, last);
      first_split = false;
    }
  }
  cp_async_wait<0>();
  if (several || tile.last_split - tile.first_split <= 1) {
    store_rows(args, unit, state);
  } else {
    store_partial(args, unit, work.first_split, state);
    if (is_last_to_arrive(args, work, tile, kv_head, reinterpret_cast<int*>(shared))) merge_partials(args, tile, kv_head);
  }
  block_sync();  // shared memory is free for the next unit
}

template <DType kType, int kDim, int kRowWarps>
HEADROOM_KERNEL(kThreads, kDim > 128 ? 1 : 2) attention_kernel(HEADROOM_PARAMS KernelParams params) {
  const int kv_heads = params.args.pages.kv_heads;
  for (int i = block_x(); i < params.args.unit_count * kv_heads; i += grid_x()) {
    const AttentionUnit unit = params.args.units[i / kv_heads];
    attend_unit<kType, kDim, kRowWarps>(params, unit, params.args.tiles[unit.tile], i % kv_heads);
  }
}

template <DType kType, int kDim, int kRowWarps>
void launch_shape(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  using S = Shape<kDim, kRowWarps>;
  constexpr int kStagesMax = 3;
  constexpr int kFixedBytes = S::kExchangeBytes + S::kQueryBytes;
  const auto stages = [&](int taken_bytes, int most) {
    const int fit = (device.block_shared_bytes - taken_bytes) / S::kStageBytes;
    CHECK_GE(fit, 1) << device.block_shared_bytes << " bytes of shared memory are too few for head_dim " << args.pages.head_dim;
    return fit < most ? fit : most;
  };
  KernelParams params{args, 0, stages(kFixedBytes, kStagesMax), stages(kFixedBytes + S::kMergedBytes, kStagesMax - 1)};
  while ((1 << params.page_shift) < args.pages.page_tokens) ++params.page_shift;
  const int split_bytes = kFixedBytes + params.split_stages * S::kStageBytes;
  const int merged_bytes = kFixedBytes + S::kMergedBytes + params.merged_stages * S::kStageBytes;
  const int64_t work = static_cast<int64_t>(args.unit_count) * args.pages.kv_heads;
  launch("paged_attention", attention_kernel<kType, kDim, kRowWarps>, Grid{work < device.grid_blocks ? work : device.grid_blocks},
         kThreads, static_cast<size_t>(split_bytes > merged_bytes ? split_bytes : merged_bytes), stream, params);
}

// The units of each number of warps along the rows are neighbours in the list: one launch for each that occurs.
template <DType kType, int kDim>
void launch_dim(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  AttentionArgs part = args;
  for (int i = 0; i < kRowWarpKinds; ++i) {
    part.unit_count = args.units_of[i];
    if constexpr (kDim > 128) {
      if (i == 1) launch_shape<kType, kDim, 2>(part, device, stream);
    } else {
      if (i == 0) launch_shape<kType, kDim, 1>(part, device, stream);
      if (i == 1) launch_shape<kType, kDim, 2>(part, device, stream);
      if (i == 2) launch_shape<kType, kDim, 4>(part, device, stream);
    }
    part.units += args.units_of[i];
  }
}

template <DType kType>
void launch_type(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  switch (kernel_dim(args.pages.head_dim)) {
    case 64: return launch_dim<kType, 64>(args, device, stream);
    case 96: return launch_dim<kType, 96>(args, device, stream);
    case 128: return launch_dim<kType, 128>(args, device, stream);
    default: return launch_dim<kType, 256>(args, device, stream);
  }
}

}  // namespace

void paged_attention(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  if (args.pages.dtype == DType::kBF16) {
    launch_type<DType::kBF16>(args, device, stream);
  } else {
    launch_type<DType::kF16>(args, device, stream);
  }
}

}  // namespace headroom::cuda
