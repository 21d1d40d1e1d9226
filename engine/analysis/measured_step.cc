#include "engine/analysis/measured_step.h"

#include <numeric>
#include <random>

#include "engine/analysis/kv_rows.h"

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
  fill();
}

void MeasuredStep::fill() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const KvLayer& shape = cache_.layers().front();
  std::vector<std::byte> page(shape.page_bytes());
  std::vector<float> values(static_cast<size_t>(shape.head_dim));
  for (int64_t row = 0; row < 2 * shape.rows(); ++row) {
    for (float& value : values) value = normal(random);
    write_kv_row(shape, page.data(), row, values);
  }
  for (const KvLayer& layer : cache_.layers()) {
    for (int64_t p = 0; p < cache_.pages(); ++p) {
      backend_.copy_in(layer.data + static_cast<size_t>(p) * layer.page_stride_bytes, page.data(), page.size());
    }
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
