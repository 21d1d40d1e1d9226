#include "engine/transformer_runner.h"

#include <algorithm>
#include <vector>

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

// Logits come in blocks of rows; a block's samples are neighbours.
void TransformerRunner::launch_samples(int place, std::span<const int32_t> rows, std::span<const SampleRow> samples) {
  const auto count = static_cast<int32_t>(samples.size());
  std::vector<SampleRow> block;
  size_t next = 0;
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(logits_rows_max_)) {
    const size_t end = std::min(rows.size(), begin + static_cast<size_t>(logits_rows_max_));
    const size_t first = next;
    block.clear();
    for (; next < samples.size() && static_cast<size_t>(samples[next].logits_row) < end; ++next) {
      block.push_back(samples[next]);
      block.back().logits_row -= static_cast<int32_t>(begin);
    }
    backend_->launch_sample(static_cast<int32_t>(first), count, transformer_->logits(rows.subspan(begin, end - begin)), block);
  }
  backend_->send_samples(place, count);
}

}  // namespace headroom
