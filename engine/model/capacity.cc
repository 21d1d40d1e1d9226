#include "engine/model/capacity.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {
namespace {

// K and V of one layer, one token, `heads` KV heads.
int64_t layer_token_bytes(const KvShape& shape, int64_t heads) {
  return 2 * heads * shape.head_dim * static_cast<int64_t>(dtype_bytes(shape.dtype));
}

}  // namespace

int64_t KvShape::token_bytes() const { return layers * layer_token_bytes(*this, kv_heads); }

int64_t KvShape::mha_token_bytes() const { return layers * layer_token_bytes(*this, query_heads); }

int64_t KvShape::page_bytes() const { return token_bytes() * page_tokens; }

int64_t KvShape::layer_page_bytes() const { return layer_token_bytes(*this, kv_heads) * page_tokens; }

KvShape kv_shape(const ModelConfig& config, DType dtype, int32_t page_tokens) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .query_heads = config.query_heads,
          .head_dim = config.head_dim,
          .dtype = dtype,
          .page_tokens = page_tokens};
}

int64_t pages_for_tokens(int64_t tokens, int32_t page_tokens) {
  CHECK_GE(tokens, 0);
  CHECK_GT(page_tokens, 0);
  return tokens / page_tokens + (tokens % page_tokens != 0 ? 1 : 0);
}

Capacity plan_capacity(const KvShape& shape, int64_t pool_bytes_max, int64_t context_tokens) {
  CHECK_GT(shape.page_bytes(), 0);
  CHECK_GE(pool_bytes_max, 0);
  CHECK_GT(context_tokens, 0);
  const int64_t request_pages = pages_for_tokens(context_tokens, shape.page_tokens);
  const int64_t mha_pages = pool_bytes_max / (shape.mha_token_bytes() * shape.page_tokens);
  Capacity capacity;
  capacity.pages = pool_bytes_max / shape.page_bytes();
  capacity.tokens = capacity.pages * shape.page_tokens;
  capacity.pool_bytes = capacity.pages * shape.page_bytes();
  capacity.longest_request_tokens = std::min(capacity.tokens, context_tokens);
  capacity.full_requests = capacity.pages / request_pages;
  capacity.mha_tokens = mha_pages * shape.page_tokens;
  capacity.mha_full_requests = mha_pages / request_pages;
  return capacity;
}

}  // namespace headroom
