// A small model on the CUDA backend whose steps are given by hand, and the batches of such steps.
#pragma once

#include <algorithm>
#include <iterator>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/kv/kv_cache.h"
#include "engine/model/transformer.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {

// A decode batch: one row of each sequence, at positions[s], with pages of its own.
struct DecodeBatch {
  std::vector<int32_t> tokens, positions, first_rows, pages, begin;

  DecodeBatch(std::vector<int32_t> at, int32_t page_tokens) : positions(std::move(at)) {
    const auto sequences = static_cast<int32_t>(positions.size());
    first_rows.resize(positions.size() + 1);
    std::iota(first_rows.begin(), first_rows.end(), 0);
    begin.push_back(0);
    for (int32_t s = 0; s < sequences; ++s) {
      tokens.push_back(3 + 5 * s % 50);
      for (int32_t p = 0; p <= positions[static_cast<size_t>(s)] / page_tokens; ++p) pages.push_back(p * sequences + s);
      begin.push_back(static_cast<int32_t>(pages.size()));
    }
  }
  BatchView view() const { return {static_cast<int32_t>(tokens.size()), tokens, positions, first_rows, pages, begin}; }
};

// Sequences of a model that are first filled to some length, and then decoded together.
class ModelRun {
 public:
  static constexpr int32_t kSequences = 9, kPageTokens = 16, kStepTokens = 64;

  ModelRun(bool graphs, DType kv, int32_t window_tokens)
      : config_(TinyLlama{.model_dim = 64, .ffn_dim = 96, .vocab_size = 60, .context_tokens = 1024, .window_tokens = window_tokens}.config()),
        backend_(make_cuda_backend({.graphs = graphs, .multiprocessors = 4})) {
    const TransformerOptions sizes{.step_tokens_max = kStepTokens, .logits_rows_max = kSequences, .served_context_tokens = 1024};
    weights_ = random_weights(config_, DType::kBF16, 3, *backend_);
    transformer_ = std::make_unique<Transformer>(config_, weights_, *backend_, sizes);
    limits_ = step_limits(config_, sizes, kSequences, 1024 / kPageTokens);
    const int64_t before = free_bytes();
    backend_->reserve(limits_);
    reserved_ = before - free_bytes();
    cache_ = std::make_unique<KvCache>(kv_shape(config_, kv, kPageTokens), kSequences * 1024 / kPageTokens, *backend_);
  }

  // Rows [first, first + tokens) of one sequence.
  void prefill(int32_t sequence, int32_t first, int32_t tokens) {
    std::vector<int32_t> ids, positions;
    for (int32_t t = first; t < first + tokens; ++t) {
      ids.push_back((7 * t + 11 * sequence) % 60);
      positions.push_back(t);
    }
    const std::vector<int32_t> first_rows = {0, tokens}, pages = pages_of(sequence, first + tokens), begin = {0, static_cast<int32_t>(pages.size())};
    transformer_->forward({tokens, ids, positions, first_rows, pages, begin}, cache_->layers());
  }
  // Logits of one more token of each of `sequences`, at positions[i].
  std::vector<float> decode(const std::vector<int32_t>& sequences, const std::vector<int32_t>& positions) {
    DecodeBatch batch(positions, kPageTokens);
    batch.pages.clear();
    batch.begin.assign(1, 0);
    std::vector<int32_t> rows;
    for (size_t i = 0; i < sequences.size(); ++i) {
      batch.tokens[i] = (positions[i] + sequences[i]) % 60;
      std::ranges::copy(pages_of(sequences[i], positions[i] + 1), std::back_inserter(batch.pages));
      batch.begin.push_back(static_cast<int32_t>(batch.pages.size()));
      rows.push_back(static_cast<int32_t>(i));
    }
    transformer_->forward(batch.view(), cache_->layers());
    const Matrix logits = transformer_->logits(rows);
    std::vector<float> host(static_cast<size_t>(logits.rows * logits.cols));
    backend_->copy_out(host.data(), reinterpret_cast<const std::byte*>(logits.data), host.size() * sizeof(float));
    return host;
  }

  int32_t layers() const { return config_.layers; }
  int64_t free_bytes() const { return backend_->device_memory()->free_bytes; }
  int64_t reserved() const { return reserved_; }
  int64_t predicted() const { return static_cast<int64_t>(backend_->workspace_bytes(limits_)); }

 private:
  // The pages of a sequence are spread over the pool.
  static std::vector<int32_t> pages_of(int32_t sequence, int32_t tokens) {
    std::vector<int32_t> pages;
    for (int32_t p = 0; p * kPageTokens < tokens; ++p) pages.push_back((p * 37 % 64) * kSequences + sequence);
    return pages;
  }

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
  std::unique_ptr<Transformer> transformer_;
  StepLimits limits_;
  std::unique_ptr<KvCache> cache_;
  int64_t reserved_ = 0;
};

}  // namespace headroom
