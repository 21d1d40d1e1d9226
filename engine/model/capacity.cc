#include "engine/model/capacity.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {
namespace {

// K and V of one layer, one token, `heads` KV heads.
int64_t layer_token_bytes(const KvShape& shape, int64_t heads) {
  return 2 * heads * static_cast<int64_t>(kv_row_bytes(shape.dtype, shape.head_dim));
}

// The most tokens, up to the context, whose pages are within the pool. Pages grow with tokens: bisection.
int64_t longest_request(const KvShape& shape, int64_t pool_bytes, int64_t context_tokens) {
  int64_t fits = 0, too_many = pages_for_tokens(context_tokens, shape.page_tokens) + 1;
  while (too_many - fits > 1) {
    const int64_t pages = fits + (too_many - fits) / 2;
    (shape.request_bytes(pages * shape.page_tokens) <= pool_bytes ? fits : too_many) = pages;
  }
  return std::min(fits * shape.page_tokens, context_tokens);
}

}  // namespace

int64_t KvShape::token_bytes() const { return layers * layer_token_bytes(*this, kv_heads); }

int64_t KvShape::mha_token_bytes() const { return layers * layer_token_bytes(*this, query_heads); }

int64_t KvShape::page_bytes() const { return token_bytes() * page_tokens; }

int64_t KvShape::layer_page_bytes() const { return layer_token_bytes(*this, kv_heads) * page_tokens; }

int64_t KvShape::request_pages(int64_t tokens) const { return pages_for_tokens(tokens, page_tokens); }

// The rows of one step see window − 1 + step positions, which may begin anywhere in a page.
int64_t KvShape::window_request_pages(int64_t tokens) const {
  const int64_t seen = int64_t{window_tokens} - 1 + step_tokens;
  return std::min(request_pages(tokens), pages_for_tokens(seen - 1, page_tokens) + 1);
}

int64_t KvShape::request_bytes(int64_t tokens) const {
  int64_t layer_pages = (layers - window_layers) * request_pages(tokens);
  if (window_layers > 0) layer_pages += window_layers * window_request_pages(tokens);
  return layer_pages * layer_page_bytes();
}

KvShape KvShape::with_kv_heads(int32_t heads) const {
  CHECK(heads > 0 && query_heads % heads == 0) << " " << heads;
  KvShape other = *this;
  other.kv_heads = heads;
  return other;
}

KvShape kv_shape(const ModelConfig& config, DType dtype, int32_t page_tokens, int32_t step_tokens) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .query_heads = config.query_heads,
          .head_dim = config.head_dim,
          .dtype = dtype,
          .page_tokens = page_tokens,
          .window_layers = config.window_layers,
          .window_tokens = config.window_tokens,
          .step_tokens = step_tokens};
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
  Capacity capacity;
  capacity.pages = pool_bytes_max / shape.page_bytes();
  capacity.tokens = capacity.pages * shape.page_tokens;
  capacity.pool_bytes = capacity.pages * shape.page_bytes();
  capacity.longest_request_tokens = longest_request(shape, capacity.pool_bytes, context_tokens);
  capacity.full_requests = capacity.pool_bytes / shape.request_bytes(context_tokens);
  const KvShape mha = shape.with_kv_heads(shape.query_heads);
  const int64_t mha_pages = pool_bytes_max / mha.page_bytes();
  capacity.mha_tokens = mha_pages * mha.page_tokens;
  capacity.mha_full_requests = mha_pages * mha.page_bytes() / mha.request_bytes(context_tokens);
  return capacity;
}

}  // namespace headroom
