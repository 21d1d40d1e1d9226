// Analysis 2: the bytes of the KV cache, predicted by engine/model/capacity and then found in a running engine, in
// three ways that do not know of each other: what was allocated, what the scheduler held, and which bytes the kernels
// wrote.
#pragma once

#include <cstdint>

#include "engine/analysis/variants.h"
#include "kernels/dtype.h"

namespace headroom {

struct CacheMeasurement {
  int32_t kv_heads = 0;
  int32_t tokens = 0;       // positions that were computed
  int64_t token_bytes = 0;  // predicted, of all layers
  int64_t mha_token_bytes = 0;
  int64_t pool_bytes = 0, pool_bytes_allocated = 0;  // predicted; measured
  int64_t request_pages = 0, request_pages_held = 0;
  int64_t page_bytes = 0;
  int64_t written_bytes_predicted = 0;  // tokens · token_bytes
  int64_t written_bytes = 0;            // counted: bytes of the pool that are no longer what they were filled with

  bool is_as_predicted() const {
    return pool_bytes == pool_bytes_allocated && request_pages == request_pages_held &&
           written_bytes_predicted == written_bytes;
  }
};

// Runs one request of `tokens` positions through an engine of the model's own. REQUIRES: 1 < tokens < the model's
// context; no window (pages would be given back). Throws std::runtime_error where the request fails.
CacheMeasurement measure_cache(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                               int32_t page_tokens, int32_t tokens);

}  // namespace headroom
