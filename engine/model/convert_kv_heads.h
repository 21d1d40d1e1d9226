// The same model with another number of KV heads, as a new checkpoint.
//
// More heads repeat each one for the query heads that shared it: exact, up to multi-head attention. Fewer heads are the
// mean of those that are merged, K and V alike, as in Ainslie et al., "GQA: Training Generalized Multi-Query
// Transformer Models from Multi-Head Checkpoints" (2023), section 2.1; what such a model answers is worse until it is
// trained further.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>

namespace headroom {

struct ConvertOptions {
  int32_t kv_heads = 0;
  bool force = false;  // merge heads of a model with k_norm all the same
};

// Writes `out` from the model directory `in`: config.json with the new number, the weights in the same files and
// element types, and copies of whatever else is beside them (tokenizer, chat template). `out` appears whole or not at
// all; it must not exist, or be empty. Holds the heads that become one, or 16 MiB, at a time. Throws
// std::runtime_error: one line that says what would do.
void convert_kv_heads(const std::filesystem::path& in, const std::filesystem::path& out, const ConvertOptions& options,
                      const std::function<void(size_t done_bytes, size_t total_bytes)>& progress = {});

}  // namespace headroom
