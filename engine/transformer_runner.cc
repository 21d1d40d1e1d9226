#include "engine/transformer_runner.h"

namespace headroom {

TransformerRunner::TransformerRunner(std::unique_ptr<Backend> backend, std::unique_ptr<KvCache> cache,
                                     std::unique_ptr<Transformer> transformer, int32_t logits_rows_max)
    : backend_(std::move(backend)),
      cache_(std::move(cache)),
      transformer_(std::move(transformer)),
      logits_rows_max_(logits_rows_max) {}

Matrix TransformerRunner::logits(std::span<const int32_t> rows) {
  const Matrix result = transformer_->logits(rows);
  backend_->synchronize();
  return result;
}

}  // namespace headroom
