// One sequence on pages of its own, any step of which can be run and timed: what the measurements of FLOPs and of
// decoding share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/analysis/stopwatch.h"
#include "engine/analysis/variants.h"
#include "engine/kv/kv_cache.h"
#include "engine/model/transformer.h"

namespace headroom {

class MeasuredStep {
 public:
  // Pages for `context_tokens`, filled with random numbers: a step at any depth costs what it would after a real
  // prompt.
  MeasuredStep(const VariantModel& model, Backend& backend, DType kv_dtype, int32_t context_tokens, int32_t rows_max);

  // Runs `rows` rows from `first_position` on, and the logits of the last. Returns the seconds.
  double run(int32_t first_position, int32_t rows);

 private:
  static constexpr int32_t kPageTokens = 32;
  void fill();

  Backend& backend_;
  Stopwatch stopwatch_;
  const int32_t vocab_size_;
  KvCache cache_;
  Transformer transformer_;
  std::vector<int32_t> page_table_;
};

}  // namespace headroom
