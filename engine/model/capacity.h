// How many bytes a token costs, and what fits. The one place where KV bytes are computed: the pool, the planner, the
// metrics and every response's usage call these functions.
#pragma once

#include <cstdint>

#include "engine/model/config.h"
#include "kernels/dtype.h"

namespace headroom {

inline constexpr int32_t kStepTokensDefault = 512;  // rows of one step, where nothing else is asked for

struct KvShape {
  int32_t layers = 0;
  int32_t kv_heads = 0;     // G
  int32_t query_heads = 0;  // Q, what MHA would cache
  int32_t head_dim = 0;     // K
  DType dtype = DType::kBF16;
  int32_t page_tokens = 16;
  int32_t window_layers = 0;  // of `layers`, those that see the last window_tokens alone and give older pages back
  int32_t window_tokens = 0;
  int32_t step_tokens = kStepTokensDefault;  // rows of one step: a window layer holds what all of them see

  // 2 · layers · G · (K · bytes per element + bytes of the scale that int8 has)
  int64_t token_bytes() const;
  int64_t mha_token_bytes() const;   // the same with G = Q
  int64_t page_bytes() const;        // token_bytes · page_tokens
  int64_t layer_page_bytes() const;  // one layer's share of a page

  // The most that one sequence of `tokens` holds at a time: pages of a layer that sees everything, and of one with a
  // window; bytes of all layers.
  int64_t request_pages(int64_t tokens) const;
  int64_t window_request_pages(int64_t tokens) const;
  int64_t request_bytes(int64_t tokens) const;

  KvShape with_kv_heads(int32_t heads) const;  // REQUIRES: heads divides Q
};

KvShape kv_shape(const ModelConfig& config, DType dtype, int32_t page_tokens, int32_t step_tokens = kStepTokensDefault);

int64_t pages_for_tokens(int64_t tokens, int32_t page_tokens);  // rounded up

struct Capacity {
  int64_t pages = 0;
  int64_t tokens = 0;                  // pages · page_tokens
  int64_t pool_bytes = 0;              // pages · page_bytes: exactly what is allocated
  int64_t longest_request_tokens = 0;  // at most the context
  int64_t full_requests = 0;           // requests of the whole context that fit at once
  int64_t mha_tokens = 0;              // tokens that the same bytes would hold with G = Q
  int64_t mha_full_requests = 0;
};

// What `pool_bytes_max` bytes hold. Pages are whole; the rest of the budget stays unused.
Capacity plan_capacity(const KvShape& shape, int64_t pool_bytes_max, int64_t context_tokens);

}  // namespace headroom
