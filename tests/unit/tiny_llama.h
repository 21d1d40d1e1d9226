// The configuration of a Llama small enough for tests to run thousands of steps of it.
#pragma once

#include <vector>

#include "engine/model/config.h"

namespace headroom {

struct TinyLlama {
  int32_t layers = 2;
  int32_t model_dim = 32;
  int32_t query_heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 16;
  int32_t ffn_dim = 48;
  int32_t vocab_size = 64;
  int32_t context_tokens = 256;
  int32_t window_tokens = 0;  // in every layer; 0: none

  ModelConfig config() const {
    ModelConfig config;
    config.architecture = "LlamaForCausalLM";
    config.layers = layers;
    config.model_dim = model_dim;
    config.query_heads = query_heads;
    config.kv_heads = kv_heads;
    config.head_dim = head_dim;
    config.ffn_dim = ffn_dim;
    config.vocab_size = vocab_size;
    config.context_tokens = context_tokens;
    config.norm_eps = 1e-5f;
    config.tied_embeddings = true;
    config.window_tokens = window_tokens;
    config.window_layers = window_tokens > 0 ? layers : 0;
    config.layer_has_rope.assign(static_cast<size_t>(layers), true);
    config.rope.rotary_dim = head_dim;
    return config;
  }
};

}  // namespace headroom
