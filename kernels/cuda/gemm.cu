// out = x · weightᵀ + bias on the matrix unit: weights are the operand of 16 rows, tokens the one of 8 columns. Both are
// packed as its fragments (layout.h), so a tile of either is one run of bytes, read without a detour or a swizzle.
//
// Two kernels, one arithmetic. Every output is the sum, in ascending order, of at most eight chunks of K, each one chain of
// matrix products over k ascending from zero. The chunks are a function of K alone.
//   few rows (up to 16): a block has 16 outputs; each of its eight warps takes a chunk straight from memory to registers,
//     and the sums meet in shared memory. Bound by the weights' bytes.
//   more rows: a block has 128 outputs × 32, 64 or 128 rows, whose tiles come to shared memory by cp.async and are shared by
//     its eight warps. A block takes all chunks one after another, or, where that would leave multiprocessors idle, one chunk,
//     and the last block to finish adds them up.
// So the same row has the same bits in every batch.
//
// Of gate and up a thread has both sums that belong together, and may leave silu(gate) · up instead of them: the same sums, rounded
// where silu_mul would read them, and its arithmetic.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packed_store.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/silu.h"

namespace headroom::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpLanes;
static_assert(kWarps >= kChunksMax);

// The k-tiles of one chunk.
struct TileRange {
  int begin;
  int end;
};
HEADROOM_DEVICE TileRange chunk_range(int chunk, int chunk_tiles, int depth) {
  const int begin = chunk * chunk_tiles;
  const int end = begin + chunk_tiles;
  return {begin < depth ? begin : depth, end < depth ? end : depth};
}

struct Params {
  GemmArgs args;
  int32_t depth;        // k-tiles
  int32_t chunk_tiles;  // of a chunk
  int32_t chunks;
  int32_t token_tiles;   // of all rows
  int32_t weight_tiles;  // of all outputs
  int32_t chunks_per_block;
};

// The output that a row of the packed weight is of; past the last one where it is none.
HEADROOM_DEVICE int output_at(const PackedWeight& weight, int row) {
  return weight.gate_rows == 0 ? row : gate_up_row(row, static_cast<int>(weight.gate_rows));
}

HEADROOM_DEVICE void store_output(const GemmArgs& args, int64_t token, int64_t output, float sum) {
  if (args.bias != nullptr) sum += args.bias[output];
  args.out.data[token * args.out.stride + output] = sum;
}
HEADROOM_DEVICE void store_silu_mul(const GemmArgs& args, int64_t token, int64_t output, float gate, float up) {
  if (args.bias != nullptr) {
    gate += args.bias[output];
    up += args.bias[output + args.weight.gate_rows];
  }
  const float value = silu(gate) * up;
  args.out.data[token * args.out.stride + output] = value;
  store_packed(args.packed, token, output, value);
}
// The zeros behind the tokens [first, first + tokens), by one of all blocks that have them.
HEADROOM_DEVICE void store_padding(const GemmArgs& args, int64_t first, int tokens) {
  if (!args.silu_mul || block_x() != 0 || block_z() != 0) return;
  for (int64_t token = first; token < first + tokens && token < args.out.rows; ++token) store_packed_padding(args.packed, token, kThreads);
}

// ---- Few rows.

constexpr int kFewTokenTilesMax = 2;

template <DType kType, int kTokenTiles>
HEADROOM_KERNEL(kThreads, kTokenTiles == 1 ? 4 : 3) few_rows_kernel(HEADROOM_PARAMS Params params) {
  const int lane = thread_id() % kWarpLanes;
  const int warp = thread_id() / kWarpLanes;
  const int weight_tile = block_x();
  float sums[kTokenTiles][4] = {};
  const TileRange range = chunk_range(warp, params.chunk_tiles, params.depth);
  const uint4* weight = reinterpret_cast<const uint4*>(params.args.weight.data) +
                        (static_cast<int64_t>(weight_tile) * params.depth + range.begin) * kWarpLanes + lane;
  const uint2* x = reinterpret_cast<const uint2*>(params.args.x) + range.begin * kWarpLanes + lane;

  uint4 next[kStepTiles];  // the weights of the step ahead: many bytes under way are what bandwidth takes
#pragma unroll
  for (int i = 0; i < kStepTiles; ++i) next[i] = range.begin < range.end ? load_once(weight + i * kWarpLanes) : uint4{};
  for (int step = range.begin; step < range.end; step += kStepTiles) {
    uint4 now[kStepTiles];
    weight += kStepTiles * kWarpLanes;
#pragma unroll
    for (int i = 0; i < kStepTiles; ++i) {
      now[i] = next[i];
      if (step + kStepTiles < range.end) next[i] = load_once(weight + i * kWarpLanes);
    }
#pragma unroll
    for (int i = 0; i < kStepTiles; ++i) {
      const uint32_t a[4] = {now[i].x, now[i].y, now[i].z, now[i].w};
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const uint2 b = x[(t * params.depth + i) * kWarpLanes];
        mma<kType>(sums[t], a, b.x, b.y);
      }
    }
    x += kStepTiles * kWarpLanes;
  }

  constexpr int kOutputs = kMmaRows * kTokenTiles * kMmaTokens;
  float* parts = reinterpret_cast<float*>(shared_memory());  // [warp][token][output]
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Coordinate at = mma_c(lane, i);
      parts[warp * kOutputs + (t * kMmaTokens + at.col) * kMmaRows + at.row] = sums[t][i];
    }
  }
  block_sync();
  const GemmArgs& args = params.args;
  const auto sum_at = [&](int i) {
    float sum = parts[i];
    for (int chunk = 1; chunk < params.chunks; ++chunk) sum += parts[chunk * kOutputs + i];
    return sum;
  };
  for (int i = thread_id(); i < kOutputs; i += kThreads) {
    const int token = i / kMmaRows, row = i % kMmaRows;
    const int output = output_at(args.weight, weight_tile * kMmaRows + row);
    if (token >= args.out.rows || output >= args.weight.rows) continue;
    if (!args.silu_mul) {
      store_output(args, token, output, sum_at(i));
    } else if (row < kTurnRows) {
      store_silu_mul(args, token, output, sum_at(i), sum_at(i + kTurnRows));
    }
  }
  store_padding(args, 0, kTokenTiles * kMmaTokens);
}

// ---- More rows. Of a block's 128 outputs × 32 · kRowTiles rows, a warp has 16 · kRowTiles outputs × 32 rows.

constexpr int kBlockWeightTiles = 8;
constexpr int kWarpTokenTiles = 4;
constexpr int kStages = 3;

template <int kRowTiles>
struct Shape {
  static constexpr int kColWarps = kRowTiles;            // warps along the tokens
  static constexpr int kBlockTokenTiles = kColWarps * kWarpTokenTiles;
  static constexpr int kWeightBytes = kBlockWeightTiles * kStepTiles * kWeightTileElements * 2;
  static constexpr int kTokenBytes = kBlockTokenTiles * kStepTiles * kTokenTileElements * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
};

// Brings one step of k-tiles of the block's weights and tokens to `stage`; tiles past the end are zeros.
template <int kRowTiles>
HEADROOM_DEVICE void load_step(const Params& params, int step, SharedAddress stage) {
  using S = Shape<kRowTiles>;
  constexpr int kWeightChunks = kStepTiles * kWeightTileElements * 2 / 16;  // of a weight tile's step: one run of bytes
  constexpr int kTokenChunks = kStepTiles * kTokenTileElements * 2 / 16;
#pragma unroll 1
  for (int i = thread_id(); i < kBlockWeightTiles * kWeightChunks; i += kThreads) {
    const int tile = block_x() * kBlockWeightTiles + i / kWeightChunks;
    const bool valid = tile < params.weight_tiles;
    const int64_t from = ((valid ? static_cast<int64_t>(tile) * params.depth : 0) + step) * kWeightTileElements;
    cp_async<16>(stage + static_cast<SharedAddress>(i * 16), params.args.weight.data + from + i % kWeightChunks * 8, valid);
  }
#pragma unroll 1
  for (int i = thread_id(); i < S::kBlockTokenTiles * kTokenChunks; i += kThreads) {
    const int tile = block_y() * S::kBlockTokenTiles + i / kTokenChunks;
    const bool valid = tile < params.token_tiles;
    const int64_t from = ((valid ? static_cast<int64_t>(tile) * params.depth : 0) + step) * kTokenTileElements;
    cp_async<16>(stage + static_cast<SharedAddress>(S::kWeightBytes + i * 16), params.args.x + from + i % kTokenChunks * 8, valid);
  }
}

template <DType kType, int kRowTiles>
HEADROOM_DEVICE void multiply_step(const unsigned char* stage, int row_warp, int col_warp, int lane,
                                   float (&sums)[kRowTiles][kWarpTokenTiles][4]) {
  using S = Shape<kRowTiles>;
  const uint4* weights = reinterpret_cast<const uint4*>(stage) + row_warp * kRowTiles * kStepTiles * kWarpLanes + lane;
  const uint2* tokens = reinterpret_cast<const uint2*>(stage + S::kWeightBytes) +
                        col_warp * kWarpTokenTiles * kStepTiles * kWarpLanes + lane;
#pragma unroll
  for (int k = 0; k < kStepTiles; ++k) {
    uint2 b[kWarpTokenTiles];
#pragma unroll
    for (int t = 0; t < kWarpTokenTiles; ++t) b[t] = tokens[(t * kStepTiles + k) * kWarpLanes];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const uint4 tile = weights[(r * kStepTiles + k) * kWarpLanes];
      const uint32_t a[4] = {tile.x, tile.y, tile.z, tile.w};
#pragma unroll
      for (int t = 0; t < kWarpTokenTiles; ++t) mma<kType>(sums[r][t], a, b[t].x, b[t].y);
    }
  }
}

// Calls body(token, output, r, t, i) for every sum of a thread that is part of the result.
template <int kRowTiles, class Body>
HEADROOM_DEVICE void for_each_output(const Params& params, int row_warp, int col_warp, int lane, const Body& body) {
  using S = Shape<kRowTiles>;
  const int first_output = (block_x() * kBlockWeightTiles + row_warp * kRowTiles) * kMmaRows;
  const int first_token = (block_y() * S::kBlockTokenTiles + col_warp * kWarpTokenTiles) * kMmaTokens;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int t = 0; t < kWarpTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = output_at(params.args.weight, first_output + r * kMmaRows + mma_c(lane, i).row);
        const int token = first_token + t * kMmaTokens + mma_c(lane, i).col;
        if (token < params.args.out.rows && output < params.args.weight.rows) body(token, output, r, t, i);
      }
    }
  }
}

// Leaves the chunk of this block in memory; true for the last block of a tile to arrive, which gets the sums of all of them.
// `flag` is in shared memory.
template <int kRowTiles>
HEADROOM_DEVICE bool add_chunks_if_last(const Params& params, int row_warp, int col_warp, int lane,
                                        float (&sums)[kRowTiles][kWarpTokenTiles][4], int* flag) {
  const GemmArgs& args = params.args;
  const int64_t chunk_floats = args.out.rows * args.weight.rows;
  for_each_output<kRowTiles>(params, row_warp, col_warp, lane, [&](int64_t token, int output, int r, int t, int i) {
    args.partials[block_z() * chunk_floats + token * args.weight.rows + output] = sums[r][t][i];
  });
  device_fence();
  block_sync();
  if (thread_id() == 0) {
    int32_t* arrivals = args.arrivals + block_y() * ceil_div(params.weight_tiles, kBlockWeightTiles) + block_x();
    const int before = atomic_add(arrivals, 1);
    if (before == params.chunks - 1) atomic_add(arrivals, -params.chunks);  // zero again, for the next launch
    *flag = before == params.chunks - 1;
  }
  block_sync();
  device_fence();
  if (*flag == 0) return false;
  for_each_output<kRowTiles>(params, row_warp, col_warp, lane, [&](int64_t token, int output, int r, int t, int i) {
    const float* parts = args.partials + token * args.weight.rows + output;
    float sum = load_shared_result(parts);
#pragma unroll 1
    for (int chunk = 1; chunk < params.chunks; ++chunk) sum += load_shared_result(parts + chunk * chunk_floats);
    sums[r][t][i] = sum;
  });
  return true;
}

template <DType kType, int kRowTiles>
HEADROOM_KERNEL(kThreads, kRowTiles == 4 ? 1 : 2) more_rows_kernel(HEADROOM_PARAMS Params params) {
  using S = Shape<kRowTiles>;
  const GemmArgs& args = params.args;
  const int lane = thread_id() % kWarpLanes;
  const int row_warp = thread_id() / kWarpLanes / S::kColWarps;
  const int col_warp = thread_id() / kWarpLanes % S::kColWarps;
  const int first_chunk = block_z() * params.chunks_per_block;
  const int begin = chunk_range(first_chunk, params.chunk_tiles, params.depth).begin;
  const int end = chunk_range(first_chunk + params.chunks_per_block - 1, params.chunk_tiles, params.depth).end;
  unsigned char* shared = shared_memory();
  const SharedAddress ring = shared_address(shared);

  float total[kRowTiles][kWarpTokenTiles][4] = {};
  float sums[kRowTiles][kWarpTokenTiles][4] = {};
  int load_step_tile = begin, load_slot = 0, slot = 0;
  const auto load_next = [&] {
    if (load_step_tile < end) load_step<kRowTiles>(params, load_step_tile, ring + static_cast<SharedAddress>(load_slot * S::kStageBytes));
    cp_async_commit();
    load_step_tile += kStepTiles;
    load_slot = load_slot + 1 == kStages ? 0 : load_slot + 1;
  };
  for (int i = 0; i + 1 < kStages; ++i) load_next();
  for (int step = begin; step < end; step += kStepTiles) {
    cp_async_wait<kStages - 2>();
    block_sync();  // the step is there for all, and nobody reads the stage that comes next
    load_next();
    multiply_step<kType, kRowTiles>(shared + slot * S::kStageBytes, row_warp, col_warp, lane, sums);
    slot = slot + 1 == kStages ? 0 : slot + 1;
    if ((step + kStepTiles) % params.chunk_tiles != 0 && step + kStepTiles < end) continue;
    const bool first = step < begin + params.chunk_tiles;  // the end of a chunk
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kWarpTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[r][t][i] = first ? sums[r][t][i] : total[r][t][i] + sums[r][t][i];
          sums[r][t][i] = 0.0f;
        }
      }
    }
  }
  cp_async_wait<0>();
  store_padding(args, int64_t{block_y()} * S::kBlockTokenTiles * kMmaTokens, S::kBlockTokenTiles * kMmaTokens);
  if (params.chunks_per_block < params.chunks) {
    block_sync();  // the ring is read; its first word becomes the flag
    if (!add_chunks_if_last<kRowTiles>(params, row_warp, col_warp, lane, total, reinterpret_cast<int*>(shared))) return;
  }
  for_each_output<kRowTiles>(params, row_warp, col_warp, lane, [&](int64_t token, int output, int r, int t, int i) {
    if (!args.silu_mul) {
      store_output(args, token, output, total[r][t][i]);
    } else if (i < 2) {
      store_silu_mul(args, token, output, total[r][t][i], total[r][t][i + 2]);
    }
  });
}

// ---- Launch.

constexpr int64_t kFewRowsMax = kFewTokenTilesMax * kMmaTokens;
constexpr int64_t kBlockOutputs = kBlockWeightTiles * kMmaRows;

int row_tiles_for(int64_t rows) { return rows <= 32 ? 1 : rows <= 64 ? 2 : 4; }
int64_t block_rows(int64_t rows) { return row_tiles_for(rows) * kWarpTokenTiles * kMmaTokens; }

// One block for all chunks where there are enough tiles to keep the device busy.
bool chunks_apart(int64_t rows, int64_t outputs, int64_t cols, int32_t multiprocessors) {
  return rows > kFewRowsMax && chunk_count(cols) > 1 && gemm_tiles(rows, outputs) < 2 * int64_t{multiprocessors};
}

template <DType kType>
void launch_type(const Params& params, cudaStream_t stream) {
  const GemmArgs& args = params.args;
  const int64_t rows = args.out.rows;
  if (rows <= kFewRowsMax) {
    const int tiles = static_cast<int>(params.token_tiles);
    const size_t shared_bytes = sizeof(float) * kWarps * kMmaRows * kMmaTokens * static_cast<size_t>(tiles);
    const Grid grid{params.weight_tiles};
    if (tiles == 1) return launch("gemm", few_rows_kernel<kType, 1>, grid, kThreads, shared_bytes, stream, params);
    return launch("gemm", few_rows_kernel<kType, 2>, grid, kThreads, shared_bytes, stream, params);
  }
  const Grid grid{ceil_div(args.weight.rows, kBlockOutputs), ceil_div(rows, block_rows(rows)),
                  params.chunks / params.chunks_per_block};
  switch (row_tiles_for(rows)) {
    case 1: return launch("gemm", more_rows_kernel<kType, 1>, grid, kThreads, kStages * Shape<1>::kStageBytes, stream, params);
    case 2: return launch("gemm", more_rows_kernel<kType, 2>, grid, kThreads, kStages * Shape<2>::kStageBytes, stream, params);
    default: return launch("gemm", more_rows_kernel<kType, 4>, grid, kThreads, kStages * Shape<4>::kStageBytes, stream, params);
  }
}

}  // namespace

int64_t gemm_tiles(int64_t rows, int64_t outputs) {
  return rows <= kFewRowsMax ? 0 : ceil_div(outputs, kBlockOutputs) * ceil_div(rows, block_rows(rows));
}

int64_t gemm_partial_floats(int64_t rows, int64_t outputs, int64_t cols, int32_t multiprocessors) {
  return chunks_apart(rows, outputs, cols, multiprocessors) ? rows * outputs * chunk_count(cols) : 0;
}

void gemm(const GemmArgs& args, cudaStream_t stream) {
  const int64_t cols = args.weight.cols;
  const int chunks = chunk_count(cols);
  const bool apart = chunks_apart(args.out.rows, args.weight.rows, cols, args.multiprocessors);
  const Params params{.args = args,
                      .depth = static_cast<int32_t>(depth_tiles(cols)),
                      .chunk_tiles = static_cast<int32_t>(chunk_tiles(cols)),
                      .chunks = chunks,
                      .token_tiles = static_cast<int32_t>(token_tiles(args.out.rows)),
                      .weight_tiles = static_cast<int32_t>(weight_tiles(args.weight.rows)),
                      .chunks_per_block = apart ? 1 : chunks};
  if (args.out.rows == 0) return;
  if (args.weight.dtype == DType::kBF16) {
    launch_type<DType::kBF16>(params, stream);
  } else {
    launch_type<DType::kF16>(params, stream);
  }
}

}  // namespace headroom::cuda
