#include "engine/analysis/parameters.h"

#include "kernels/check.h"

namespace headroom {
namespace {

int64_t size(const ParameterVector& vector) { return static_cast<int64_t>(vector.view().size()); }
int64_t size(const Weight& weight) { return weight.rows() * weight.cols(); }

}  // namespace

AttentionParameters attention_parameters(int32_t model_dim, int32_t query_heads, int32_t kv_heads, int32_t head_dim) {
  CHECK_GT(kv_heads, 0);
  CHECK_EQ(query_heads % kv_heads, 0);
  const int64_t query = int64_t{model_dim} * query_heads * head_dim, kv = int64_t{model_dim} * kv_heads * head_dim;
  return {.kv_heads = kv_heads, .q = query, .k = kv, .v = kv, .o = query};
}

ParameterSaving parameter_saving(const AttentionParameters& mha, const AttentionParameters& fewer) {
  const auto saved = [](int64_t of, int64_t left) { return 1 - static_cast<double>(left) / static_cast<double>(of); };
  return {.of_all_projections = saved(mha.all(), fewer.all()),
          .of_kv_projections = saved(mha.kv(), fewer.kv()),
          .cache_factor = static_cast<double>(mha.kv_heads) / fewer.kv_heads};
}

LoadedParameters loaded_parameters(const ModelConfig& config, const ModelWeights& weights) {
  LoadedParameters loaded{.bytes = static_cast<int64_t>(weights.bytes)};
  loaded.count = size(*weights.embedding) + size(weights.final_norm) + (weights.lm_head ? size(*weights.lm_head) : 0);
  for (const LayerWeights& layer : weights.layers) {
    const int64_t kv_rows = layer.qkv->rows() - int64_t{config.query_heads} * config.head_dim;
    loaded.attention_kv += kv_rows * layer.qkv->cols();
    loaded.attention += size(*layer.qkv) + size(*layer.o);
    loaded.count += size(*layer.qkv) + size(*layer.o) + size(*layer.gate_up) + size(*layer.down);
    for (const ParameterVector* vector : {&layer.attention_norm, &layer.qkv_bias, &layer.q_norm, &layer.k_norm,
                                          &layer.o_bias, &layer.ffn_norm, &layer.gate_up_bias, &layer.down_bias}) {
      loaded.count += size(*vector);
    }
  }
  return loaded;
}

}  // namespace headroom
