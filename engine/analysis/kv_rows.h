// Rows of a KV page on the host, in any of its types: K or V of one token and head. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.h"

namespace headroom {

// Row `row` of a page of `layer`: those of K, [G][page_tokens], then those of V. REQUIRES: head_dim values. A backend may have an order of its
// own in K's part: what is written there lands in several keys.
void write_kv_row(const KvLayer& layer, std::byte* page, int64_t row, std::span<const float> values);
// Element `element` of the page, which is one of row `row`: row · head_dim + i, or of a key Backend::key_element.
float kv_element(const KvLayer& layer, const std::byte* page, int64_t row, int64_t element);

}  // namespace headroom
