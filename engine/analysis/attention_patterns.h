// Which tokens a head looks at: the attention probabilities of one layer, as the engine's own kernel had them.
//
// How they are read: the prompt runs through the model and its paged cache; at the wanted layer the kernel runs again
// on a copy of the pages in which the values are unit vectors, so that what it writes are the probabilities themselves:
// with V[t] = e_d, out[i][d] is the weight that row i gives to token t. Nothing of the softmax is computed a second
// time, so these are the numbers of the kernel, on any backend, with its window and its page table; the kernel that
// serves is not touched.
//
// Threads: AttentionProbe may be used by several threads; each read() has a backend, a KV pool and activations of its
// own, and shares the weights, which are immutable. It runs on the caller's thread and leaves the engine alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model/config.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace headroom {

struct AttentionPatterns {
  int32_t layer = 0;
  int32_t layers = 0;
  int32_t query_heads = 0;           // Q
  int32_t kv_heads = 0;              // G
  int32_t head_dim = 0;              // K
  int32_t tokens = 0;                // T
  std::vector<float> probabilities;  // [Q, T, T]; zero where the key comes after the row
  // What went into them, as it stood in the step and in the pages.
  std::vector<float> queries;       // [T, Q, K] after norm and RoPE
  std::vector<float> keys, values;  // [T, G, K] read through the page table
  // What each query head gave where the values of one KV head were 1 and those of the others 0: [G, Q], the mean over
  // the rows. 1 where the query head reads that KV head, 0 where it does not. Empty unless asked for.
  std::vector<double> kv_head_share;
  double row_sum_error = 0;  // the largest |sum of a row − 1|

  int32_t group() const { return query_heads / kv_heads; }
  std::span<const float> row(int32_t query_head, int32_t token) const {  // [T]
    const auto t = static_cast<size_t>(tokens);
    return std::span(probabilities).subspan((static_cast<size_t>(query_head) * t + static_cast<size_t>(token)) * t, t);
  }
  // The largest difference between the probabilities of two query heads.
  double head_difference(int32_t a, int32_t b) const;
};

class AttentionProbe {
 public:
  struct Options {
    int32_t served_context_tokens = 0;
    DType kv_dtype = DType::kBF16;
    int32_t page_tokens = 16;
    std::function<std::unique_ptr<Backend>()> make_backend;  // of the kind that holds the weights
  };
  // Thrown by read() when `abandoned` said so.
  class Abandoned : public std::exception {};

  AttentionProbe(ModelConfig config, std::shared_ptr<const ModelWeights> weights, Options options);

  const ModelConfig& config() const { return config_; }

  // REQUIRES: 1 to served_context_tokens ids of the vocabulary; 0 ≤ layer < layers. `with_kv_head_share` costs one more
  // attention for each KV head. `abandoned` is asked once per layer. Takes one forward pass, and memory for it, which
  // is given back.
  AttentionPatterns read(std::span<const int32_t> tokens, int32_t layer, bool with_kv_head_share = false,
                         const std::function<bool()>& abandoned = {}) const;

 private:
  const ModelConfig config_;
  const std::shared_ptr<const ModelWeights> weights_;
  const Options options_;
};

}  // namespace headroom
