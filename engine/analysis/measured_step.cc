#include "engine/analysis/measured_step.h"

#include <cstring>
#include <numeric>
#include <random>

namespace headroom {

MeasuredStep::MeasuredStep(const VariantModel& model, Backend& backend, DType kv_dtype, int32_t context_tokens,
                           int32_t rows_max)
    : backend_(backend),
      vocab_size_(model.config.vocab_size),
      cache_(kv_shape(model.config, kv_dtype, kPageTokens), pages_for_tokens(context_tokens, kPageTokens), backend),
      transformer_(
          model.config, model.weights, backend,
          {.step_tokens_max = rows_max, .logits_rows_max = 1, .served_context_tokens = model.config.context_tokens}),
      page_table_(static_cast<size_t>(cache_.pages())) {
  std::iota(page_table_.begin(), page_table_.end(), 0);
  fill(kv_dtype);
}

void MeasuredStep::fill(DType kv_dtype) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> page(cache_.layers().front().page_stride_bytes);
  const size_t width = dtype_bytes(kv_dtype);
  for (size_t at = 0; at < page.size(); at += width) {
    const float value = normal(random);
    const uint16_t half = kv_dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(&page[at], kv_dtype == DType::kF32 ? static_cast<const void*>(&value) : &half, width);
  }
  for (const KvLayer& layer : cache_.layers()) {
    for (int64_t p = 0; p < cache_.pages(); ++p)
      backend_.copy_in(layer.data + static_cast<size_t>(p) * page.size(), page.data(), page.size());
  }
}

double MeasuredStep::run(int32_t first_position, int32_t rows) {
  std::vector<int32_t> tokens, positions;
  for (int32_t row = 0; row < rows; ++row) {
    positions.push_back(first_position + row);
    tokens.push_back(positions.back() % vocab_size_);
  }
  const int32_t first_rows[] = {0, rows}, table_begin[] = {0, static_cast<int32_t>(page_table_.size())},
                last[] = {rows - 1};
  backend_.synchronize();
  stopwatch_.start();
  transformer_.forward({.rows = rows,
                        .tokens = tokens,
                        .positions = positions,
                        .sequence_first_row = first_rows,
                        .page_tables = page_table_,
                        .page_table_begin = table_begin},
                       cache_.layers());
  transformer_.logits(last);
  backend_.synchronize();
  return stopwatch_.seconds();
}

}  // namespace headroom
