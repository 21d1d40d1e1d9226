#include "engine/analysis/variants.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/op_checks.h"

namespace headroom {

std::vector<int32_t> compared_kv_heads(const ModelConfig& config) {
  std::vector<int32_t> possible;
  for (int32_t heads = config.query_heads; heads > 0; --heads) {
    if (config.query_heads % heads == 0 && config.query_heads / heads <= kQueryGroupMax) possible.push_back(heads);
  }
  const int32_t fewest = possible.back();
  const bool is_between = config.kv_heads != config.query_heads && config.kv_heads != fewest;
  const int32_t between = is_between ? config.kv_heads : possible[possible.size() / 2];
  std::vector<int32_t> chosen = {config.query_heads, between, fewest};
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  return chosen;
}

VariantModel random_variant(const ModelConfig& config, int32_t kv_heads, const BackendMaker& make_backend) {
  CHECK_EQ(config.query_heads % kv_heads, 0);
  VariantModel variant{.backend = make_backend(), .config = config};
  variant.config.kv_heads = kv_heads;
  variant.config.layers = std::min(config.layers, kVariantLayers);
  variant.config.window_layers = std::min(config.window_layers, variant.config.layers);
  variant.config.layer_has_rope.resize(static_cast<size_t>(variant.config.layers));
  variant.config.vocab_size = std::min(config.vocab_size, kVariantVocab);
  variant.weights = random_weights(variant.config, config.dtype, 1, *variant.backend);
  return variant;
}

}  // namespace headroom
