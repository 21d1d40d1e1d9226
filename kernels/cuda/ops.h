// The ops of the CUDA backend, one per file of the same name: what a kernel takes, and the function that launches it.
//
// Everything a pointer points to lies in device memory, shapes were checked by the caller (op_checks.h), and what an op does
// happens in the order of its stream. Activations are fp32; what a gemm reads next is kept a second time, rounded to the
// weights' type and in the order of the matrix unit ("packed", layout.h), by the op that made it.
// Errors: a launch that fails throws BackendError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/work_list.h"
#include "kernels/dtype.h"
#include "kernels/sampling.h"

namespace headroom::cuda {

// fp32 [rows, cols], rows `stride` elements apart; rows and columns even numbers of 8 bytes where an op says so.
struct Rows {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// Activations as gemm reads them: layout.h, activation_offset. Null: not wanted.
struct Packed {
  uint16_t* data = nullptr;
  DType dtype = DType::kBF16;  // kBF16 or kF16
  int64_t cols = 0;
};

// A weight [rows, cols] as gemm reads it: layout.h, weight_offset; padded with zeros.
struct PackedWeight {
  const uint16_t* data = nullptr;
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t gate_rows = 0;  // not 0: gate and up, so many rows of each, which lie as gate_up_place says
};

struct PackWeightArgs {
  uint16_t* to;
  const uint16_t* from;  // [rows, cols] as stored
  int64_t first_row;     // of the weight; `from` holds rows [first_row, first_row + rows)
  int64_t rows;
  int64_t cols;
  int64_t gate_rows;     // as PackedWeight has it
};
void pack_weight(const PackWeightArgs& args, cudaStream_t stream);

struct EmbeddingArgs {
  Rows out;
  PackedWeight table;
  const int32_t* tokens;
  const SampleResult* results;  // a token -1 - i is that of results[i], or any where there is none
};
void embedding(const EmbeddingArgs& args, cudaStream_t stream);

struct RmsnormArgs {
  Rows out;
  Packed packed;
  Rows x;
  Rows residual;  // no data: plain rmsnorm of x; else residual += x, and the sum is normed
  const float* weight;
  float eps;
};
void rmsnorm(const RmsnormArgs& args, cudaStream_t stream);

struct RopeTableArgs {
  Rows out;
  const int32_t* positions;
  const float* inv_freq;
  float factor;
};
void rope_table(const RopeTableArgs& args, cudaStream_t stream);

// One layer's pages, as KvLayer says.
struct Pages {
  std::byte* data = nullptr;
  size_t page_stride_bytes = 0;
  DType dtype = DType::kBF16;  // kBF16, kF16 or kI8
  int32_t kv_heads = 0;
  int32_t page_tokens = 0;
  int32_t head_dim = 0;
};

struct RopeKvArgs {
  Rows qkv;
  Rows rope;  // [T, rotary_dim]; no columns: no RoPE
  Pages pages;
  int32_t query_heads;
  const int32_t* row_pages;  // [T] the page that a row's k and v go to; below 0: nowhere
  const int32_t* positions;  // [T]
  const float* q_norm;       // [head_dim] or null
  const float* k_norm;
  float norm_eps;
};
void rope_kv_write(const RopeKvArgs& args, cudaStream_t stream);

struct AttentionArgs {
  Rows out;       // [T, Q·K]
  Packed packed;  // of out
  Rows qkv;       // [T, (Q+2G)·K]; q is read. Rows and stride are even
  Pages pages;
  int32_t group;
  float scale_log2;  // the scale of q·k, times log2(e)
  int32_t window_tokens;
  const int32_t* page_tables;
  const AttentionTile* tiles;
  const AttentionUnit* units;
  int32_t units_of[kRowWarpKinds];  // how many there are with 1, 2 and 4 warps along the rows, in this order
  int32_t unit_count;               // of the launch in hand; paged_attention sets it
  const int32_t* recorded_unit_count = nullptr;  // not null: the launch is recorded, for as many units as stand here when it runs
  float* partials;    // as the work list says
  int32_t* arrivals;  // [tiles · kv_heads], zeros before and after
};
// What a launch takes of the device: shared memory that one block may have, blocks in flight. Neither changes a bit.
struct AttentionDevice {
  int32_t block_shared_bytes = 99 * 1024;
  int32_t grid_blocks = 1;
};
void paged_attention(const AttentionArgs& args, const AttentionDevice& device, cudaStream_t stream);

struct SiluMulArgs {
  Rows out;  // [T, F]
  Packed packed;
  Rows gate_up;  // [T, 2F]
};
void silu_mul(const SiluMulArgs& args, cudaStream_t stream);

struct GatherRowsArgs {
  Rows out;  // no data: pack only
  Packed packed;
  Rows x;
  const int32_t* rows;  // of x; null: all in order
};
void gather_rows(const GatherRowsArgs& args, cudaStream_t stream);

struct SampleArgs {
  const float* logits;  // rows of `vocab`, `stride` apart
  int64_t stride;
  int32_t vocab;
  int32_t count;
  const SampleRow* rows;  // [count]
  SampleResult* results;  // [count]
};
void sample(const SampleArgs& args, cudaStream_t stream);

struct GemmArgs {
  Rows out;                 // [T, N]; with silu_mul [T, N / 2]
  const uint16_t* x;        // packed [T, K], of the weight's type
  PackedWeight weight;      // [N, K]
  const float* bias;        // [N] or null
  bool silu_mul;            // of gate and up: out is silu of the first half of the outputs times the second
  Packed packed;            // of out, with silu_mul
  float* partials;          // gemm_partial_floats(); for the chunks of K when they go to different blocks
  int32_t* arrivals;        // gemm_tiles(), zeros before and after
  int32_t multiprocessors;  // of the device: decides how the work is cut, never a bit
};
void gemm(const GemmArgs& args, cudaStream_t stream);
// What gemm may use for `rows` rows of a weight of `outputs` rows.
int64_t gemm_partial_floats(int64_t rows, int64_t outputs, int64_t cols, int32_t multiprocessors);
int64_t gemm_tiles(int64_t rows, int64_t outputs);

}  // namespace headroom::cuda
