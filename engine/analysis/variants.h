// The same model with other numbers of KV heads, for measurements that compare them: random weights, since neither
// bytes nor operations depend on what the weights are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace headroom {

using BackendMaker = std::function<std::unique_ptr<Backend>()>;

// A model that is loaded. The backend holds the weights; others of its kind may read them.
struct VariantModel {
  std::unique_ptr<Backend> backend;
  ModelConfig config;
  std::shared_ptr<const ModelWeights> weights;
};

// As many as query heads, as the model has, and one; where two of these are the same, one between. Descending.
std::vector<int32_t> compared_kv_heads(const ModelConfig& config);

// REQUIRES: kv_heads divides config.query_heads. At most kVariantLayers layers and kVariantVocab tokens of vocabulary,
// so that variants of a large model fit beside it: what is measured grows with the layers and does not depend on the
// vocabulary.
constexpr int32_t kVariantLayers = 4;
constexpr int32_t kVariantVocab = 8192;
VariantModel random_variant(const ModelConfig& config, int32_t kv_heads, const BackendMaker& make_backend);

}  // namespace headroom
