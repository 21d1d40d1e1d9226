// Analysis 1: what fewer KV heads save in parameters, and what of a loaded model is attention. Pure functions.
#pragma once

#include <cstdint>

#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace headroom {

// The attention projections of one layer, without biases.
struct AttentionParameters {
  int32_t kv_heads = 0;
  int64_t q = 0, k = 0, v = 0, o = 0;
  int64_t kv() const { return k + v; }
  int64_t all() const { return q + k + v + o; }
};
AttentionParameters attention_parameters(int32_t model_dim, int32_t query_heads, int32_t kv_heads, int32_t head_dim);

// What `fewer` saves of `all`, as shares of 1.
struct ParameterSaving {
  double of_all_projections = 0;
  double of_kv_projections = 0;  // the same share of the KV cache
  double cache_factor = 0;       // how many times smaller the cache is
};
ParameterSaving parameter_saving(const AttentionParameters& mha, const AttentionParameters& fewer);

// Counted in the weights as they lie in the backend's memory.
struct LoadedParameters {
  int64_t count = 0;         // elements of all weights and vectors
  int64_t attention_kv = 0;  // of them, in the projections to K and V
  int64_t attention = 0;     // in all four attention projections
  int64_t bytes = 0;         // as loaded: vectors widened to fp32, matrices padded to the backend's panels
};
LoadedParameters loaded_parameters(const ModelConfig& config, const ModelWeights& weights);

}  // namespace headroom
