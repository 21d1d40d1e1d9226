// The real ModelRunner: a transformer and its KV pool on a backend.
#pragma once

#include <memory>

#include "engine/kv/kv_cache.h"
#include "engine/model/transformer.h"
#include "engine/model_runner.h"

namespace headroom {

class TransformerRunner : public ModelRunner {
 public:
  // The backend comes along so that it outlives all memory taken from it.
  TransformerRunner(std::unique_ptr<Backend> backend, std::unique_ptr<KvCache> cache, std::unique_ptr<Transformer> transformer,
                    int32_t logits_rows_max);

  int32_t vocab_size() const override { return transformer_->config().vocab_size; }
  void copy_page(PageId from, PageId to) override { cache_->copy_page(from, to); }
  void run(const BatchView& batch) override { transformer_->forward(batch, cache_->layers()); }
  Matrix logits(std::span<const int32_t> rows) override;
  void sample(std::span<const int32_t> rows, std::span<const SampleRow> samples, std::span<SampleResult> results) override {
    backend_->sample(results, transformer_->logits(rows), samples);
  }
  bool samples() const override { return backend_->samples(); }
  bool samples_ahead() const override { return backend_->samples(); }
  void launch_samples(int place, std::span<const int32_t> rows, std::span<const SampleRow> samples) override;
  std::span<const SampleResult> wait_samples(int place) override { return backend_->wait_samples(place); }
  int32_t logits_rows_max() const override { return logits_rows_max_; }
  uint64_t progress() const override { return transformer_->layers_run(); }

  const KvCache& cache() const { return *cache_; }
  KvCache& cache() { return *cache_; }
  const Transformer& transformer() const { return *transformer_; }
  const Backend& backend() const { return *backend_; }
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Transformer> transformer_;
  int32_t logits_rows_max_;
  std::unique_ptr<Buffer> host_logits_;  // null where the backend's memory is the host's
};

}  // namespace headroom
