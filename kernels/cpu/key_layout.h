// How the CPU keeps the keys of a head in a page: in chunks of kChunkKeys neighbouring tokens, each [word][token]. A word is what is widened
// best at once: one element of fp32 or fp16, two of bf16, four of int8. A vector then has the same word of as many keys, as q·kᵀ wants it:
// nothing is transposed when keys are read, which each of them is for every token that follows it. Values are rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

namespace headroom::cpu {

constexpr int32_t kChunkKeys = 16;  // the smallest page
constexpr int64_t key_word_bytes(DType type) { return type == DType::kF16 ? 2 : 4; }

// Where word `word` of the key in `slot` lies, in bytes from the head's first key in the page. `row_bytes`: of a token's row.
inline int64_t key_word_offset(DType type, int32_t slot, int64_t word, int64_t row_bytes) {
  return slot / kChunkKeys * kChunkKeys * row_bytes + (word * kChunkKeys + slot % kChunkKeys) * key_word_bytes(type);
}

// See Backend::key_element.
inline int64_t key_element(const KvLayer& layer, int64_t row, int64_t i) {
  const auto element_bytes = static_cast<int64_t>(dtype_bytes(layer.dtype)), word_bytes = key_word_bytes(layer.dtype);
  const int64_t row_bytes = layer.head_dim * element_bytes, at = i * element_bytes, slot = row % layer.page_tokens;
  const int64_t offset = key_word_offset(layer.dtype, static_cast<int32_t>(slot), at / word_bytes, row_bytes) + at % word_bytes;
  return ((row - slot) * row_bytes + offset) / element_bytes;
}

}  // namespace headroom::cpu
