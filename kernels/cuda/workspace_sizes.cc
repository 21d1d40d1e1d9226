#include "kernels/cuda/workspace_sizes.h"

#include <algorithm>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"

namespace headroom::cuda {
namespace {

constexpr int32_t kPageTokensMax = 64;
constexpr int64_t kStagingSlackBytes = int64_t{64} << 10;  // alignment, and small arrays

void add_gemm(int32_t rows_max, const std::pair<int64_t, int64_t>& weight, int32_t multiprocessors, WorkspaceSizes& sizes) {
  const auto [outputs, cols] = weight;
  const int64_t packed = token_tiles(rows_max) * depth_tiles(cols) * kTokenTileElements;
  sizes.packed = std::max(sizes.packed, static_cast<size_t>(packed) * sizeof(uint16_t));
  for (int64_t rows = 1; rows <= rows_max; ++rows) {  // neither grows with the rows alone
    const int64_t partials = gemm_partial_floats(rows, outputs, cols, multiprocessors), arrivals = gemm_tiles(rows, outputs);
    sizes.gemm_partials = std::max(sizes.gemm_partials, static_cast<size_t>(partials) * sizeof(float));
    sizes.gemm_arrivals = std::max(sizes.gemm_arrivals, static_cast<size_t>(arrivals) * sizeof(int32_t));
  }
}

}  // namespace

WorkspaceSizes workspace_sizes(const StepLimits& limits, int32_t multiprocessors) {
  WorkspaceSizes sizes;
  for (const auto& weight : limits.weights) add_gemm(limits.rows, weight, multiprocessors, sizes);
  add_gemm(limits.logits_rows, limits.output_weight, multiprocessors, sizes);

  // A row has a state for each split of its context, of each query head; each unit that is cut has one at least.
  const int64_t splits = split_last(limits.sequence_pages * kPageTokensMax);
  const int64_t row_floats = partial_floats(limits.query_heads, limits.head_dim);
  const int64_t partials = std::min(kPartialFloatsMax, limits.rows * splits * row_floats);
  const int64_t cut_units = partials / row_floats;
  sizes.attention_partials = static_cast<size_t>(partials) * sizeof(float);
  sizes.attention_arrivals = static_cast<size_t>(limits.rows) * static_cast<size_t>(limits.kv_heads) * sizeof(int32_t);

  const int64_t page_entries = int64_t{limits.sequences} * limits.sequence_pages;
  const int64_t staged = int64_t{limits.rows} * static_cast<int64_t>(3 * sizeof(int32_t) + sizeof(AttentionTile) + sizeof(AttentionUnit)) +
                         cut_units * static_cast<int64_t>(sizeof(AttentionUnit)) +
                         (page_entries + limits.logits_rows) * static_cast<int64_t>(sizeof(int32_t)) +
                         int64_t{limits.sequences} * static_cast<int64_t>(sizeof(SampleRow)) + kStagingSlackBytes;
  sizes.staging = static_cast<size_t>(staged);
  sizes.samples = static_cast<size_t>(limits.sequences) * sizeof(SampleResult);

  int32_t bucket = decode_bucket(std::min(limits.sequences, kDecodeRowsMax));
  if (bucket > limits.rows) bucket = limits.rows;
  sizes.decode = {.rows = bucket, .page_entries = page_entries, .units = bucket + std::min(cut_units, bucket * splits)};
  return sizes;
}

}  // namespace headroom::cuda
