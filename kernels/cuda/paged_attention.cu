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
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

using namespace attention;

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

template <class S>
HEADROOM_DEVICE void store_rows(const AttentionArgs& args, const Unit<S>& unit,
                                const State<S::kMyDimTiles>& state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = unit.row(half);
    if (row >= unit.rows) continue;
    const float inverse = inverse_or_zero(state.sum[half]);
    const int head = unit.kv_head * args.group + row % args.group;
    const int head_chunks = args.pages.head_dim / kChunkElements;
    const int first_chunk = unit.col_warp * S::kMyDimTiles;
    const RowOut out(args, unit.tile.first_row + row / args.group, head * head_chunks + first_chunk);
    for_each_pair(unit, state, half, [&](int chunk, int pair, float x, float y) {
      if (first_chunk + chunk < head_chunks) out.store(chunk, pair, x * inverse, y * inverse);
    });
  }
}

// The state of one split, for whichever block comes last: [rows][head_dim], then [rows] of (max, sum).
HEADROOM_DEVICE float* partial_state(const AttentionArgs& args, const AttentionTile& tile, int kv_head, int split) {
  const int rows = tile.tokens * args.group;
  const int64_t index = static_cast<int64_t>(split - tile.first_split) * args.pages.kv_heads + kv_head;
  return args.partials + tile.partials_begin + index * partial_floats(rows, args.pages.head_dim);
}

template <class S>
HEADROOM_DEVICE void store_partial(const AttentionArgs& args, const Unit<S>& unit, int split,
                                   const State<S::kMyDimTiles>& state) {
  float* partial = partial_state(args, unit.tile, unit.kv_head, split);
  float2* maxima_sums = reinterpret_cast<float2*>(partial + unit.rows * args.pages.head_dim);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = unit.row(half);
    if (row >= unit.rows) continue;
    if (unit.col_warp == 0 && unit.lane % 4 == 0) maxima_sums[row] = {state.max[half], state.sum[half]};
    const int first_chunk = unit.col_warp * S::kMyDimTiles;
    float* sums = partial + row * args.pages.head_dim + first_chunk * kChunkElements;
    for_each_pair(unit, state, half, [&](int chunk, int pair, float x, float y) {
      if ((first_chunk + chunk) * kChunkElements >= args.pages.head_dim) return;
      *reinterpret_cast<float2*>(sums + chunk * kChunkElements + pair * 2) = {x, y};
    });
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

template <class S>
HEADROOM_DEVICE void attend_unit(const KernelParams& params, const AttentionUnit& work, const AttentionTile& tile, int kv_head) {
  const AttentionArgs& args = params.args;
  const int warp = thread_id() / kWarpLanes;
  const Unit<S> unit{tile,
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
  unsigned char* ring = shared + S::kExchangeBytes + S::kQueryBytes + (several ? S::kMergedBytes : 0);
  const int begin = unit.key_begin > work.first_split * kSplitKeys ? unit.key_begin : work.first_split * kSplitKeys;
  const int end = unit.key_end < work.last_split * kSplitKeys ? unit.key_end : work.last_split * kSplitKeys;
  const int first_block = begin / S::kKeys;
  const int last_block = static_cast<int>(ceil_div(end, S::kKeys));

  Queries<S> queries;
  queries.load(params, unit, shared + S::kExchangeBytes);
  State<S::kMyDimTiles> state;
  state.clear();
  float merged_max[2] = {kMinusInfinity, kMinusInfinity}, merged_sum[2] = {0.0f, 0.0f};
  bool first_split = true;

  int load_slot = 0, slot = 0;
  const auto load_next = [&](int block) {
    if (block < last_block) load_block(params, unit, block, shared_address(ring + load_slot * S::kStageBytes));
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
    unsigned char* stage = ring + slot * S::kStageBytes;
    slot = slot + 1 == stages ? 0 : slot + 1;

    attend_block(params, unit, block, stage, queries, exchange, state);
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

HEADROOM_DEVICE int unit_count(const AttentionArgs& args) {
  return args.recorded_unit_count != nullptr ? *args.recorded_unit_count : args.unit_count;
}

template <DType kType, int kDim, int kRowWarps>
HEADROOM_KERNEL(kThreads, kDim > 128 ? 1 : 2) attention_kernel(HEADROOM_PARAMS KernelParams params) {
  const int kv_heads = params.args.pages.kv_heads;
  for (int i = block_x(); i < unit_count(params.args) * kv_heads; i += grid_x()) {
    const AttentionUnit unit = params.args.units[i / kv_heads];
    attend_unit<Shape<kType, kDim, kRowWarps>>(params, unit, params.args.tiles[unit.tile], i % kv_heads);
  }
}

template <DType kType, int kDim, int kRowWarps>
void launch_shape(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  using S = Shape<kType, kDim, kRowWarps>;
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
  int64_t work = static_cast<int64_t>(args.unit_count) * args.pages.kv_heads;
  if (args.recorded_unit_count != nullptr && work > 0) work = device.grid_blocks;  // later there may be more
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
  switch (kernel_dim(args.pages.head_dim, kType == DType::kI8)) {
    case 64: return launch_dim<kType, 64>(args, device, stream);
    case 96:
      if constexpr (kType != DType::kI8) return launch_dim<kType, 96>(args, device, stream);
      break;
    case 128: return launch_dim<kType, 128>(args, device, stream);
    default: return launch_dim<kType, 256>(args, device, stream);
  }
}

}  // namespace

void paged_attention(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream) {
  switch (args.pages.dtype) {
    case DType::kBF16: return launch_type<DType::kBF16>(args, device, stream);
    case DType::kF16: return launch_type<DType::kF16>(args, device, stream);
    default: return launch_type<DType::kI8>(args, device, stream);
  }
}

}  // namespace headroom::cuda
