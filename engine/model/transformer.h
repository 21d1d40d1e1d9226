// The forward pass, written once against kernels/backend.h for every supported family.
// Owned and called by the engine thread alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace headroom {

struct TransformerOptions {
  int32_t step_tokens_max = 0;      // T: rows of one forward() at most
  int32_t logits_rows_max = 0;      // S: rows of one logits() at most
  int32_t served_context_tokens = 0;
};

// What the backend needs to know of steps of such a model. `sequence_pages`: of the longest page table.
StepLimits step_limits(const ModelConfig& config, const TransformerOptions& options, int32_t sequences_max, int32_t sequence_pages);

class Transformer {
 public:
  // Allocates the activations once, for the largest step.
  Transformer(ModelConfig config, std::shared_ptr<const ModelWeights> weights, Backend& backend, const TransformerOptions& options);
  ~Transformer();

  // Of the activations of such a transformer.
  static size_t predicted_activation_bytes(const ModelConfig& config, const TransformerOptions& options);

  const ModelConfig& config() const;
  size_t weight_bytes() const;
  size_t activation_bytes() const;

  // Runs `batch` through all layers, writing its K and V to `kv_layers` [layers], up to the last layer's residual stream.
  void forward(const BatchView& batch, std::span<const KvLayer> kv_layers);
  // Logits [S, V] of the rows `rows` (indices into the latest batch's rows, at most logits_rows_max), through the final norm and the
  // output weight. May be called several times per forward(); the result is valid until the next call of either.
  Matrix logits(std::span<const int32_t> rows);

  // Grows with every layer that was run; from any thread. Standing still for long, with work at hand, means that the backend hangs.
  uint64_t layers_run() const { return layers_run_.load(std::memory_order_relaxed); }

 private:
  struct Activations;
  bool is_recorded_pool(std::span<const KvLayer> kv_layers) const;
  // All layers, for the rows of `batch`, which begin_step has.
  void run_layers(const BatchView& batch, std::span<const KvLayer> kv_layers);

  ModelConfig config_;
  std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  TransformerOptions options_;
  std::unique_ptr<Activations> activations_;
  std::pair<KvLayer, KvLayer> recorded_kv_;  // the first and the last layer of the pool that program_ writes to
  uint64_t program_ = 0;                     // names the ops of forward() for the backend: these weights, activations and pool
  std::atomic<uint64_t> layers_run_{0};
};

}  // namespace headroom
