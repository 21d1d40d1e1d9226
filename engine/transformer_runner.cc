#include "engine/transformer_runner.h"

namespace headroom {

TransformerRunner::TransformerRunner(std::unique_ptr<Backend> backend, std::unique_ptr<KvCache> cache,
                                     std::unique_ptr<Transformer> transformer, int32_t logits_rows_max)
    : backend_(std::move(backend)),
      cache_(std::move(cache)),
      transformer_(std::move(transformer)),
      logits_rows_max_(logits_rows_max) {
  if (backend_->host_readable()) return;
  const int64_t floats = int64_t{logits_rows_max} * transformer_->config().vocab_size;
  host_logits_ = backend_->allocate_host(static_cast<size_t>(floats) * sizeof(float));
}

Matrix TransformerRunner::logits(std::span<const int32_t> rows) {
  const Matrix result = transformer_->logits(rows);
  if (host_logits_ == nullptr) {
    backend_->synchronize();
    return result;
  }
  const Matrix host(reinterpret_cast<float*>(host_logits_->data()), result.rows, result.cols);
  backend_->copy_out(host_logits_->data(), reinterpret_cast<const std::byte*>(result.data),
                     static_cast<size_t>(result.rows * result.cols) * sizeof(float));
  return host;
}

}  // namespace headroom
