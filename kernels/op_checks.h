// Shape checks of the ops, with the names of the sizes, once for all backends. A wrong shape is a bug of the caller:
// CHECK.
#pragma once

#include <span>

#include "kernels/backend.h"

namespace headroom {

// The group of query heads that share a KV head is at most this large, head_dim at most kHeadDimMax and a multiple of
// kHeadDimStep.
constexpr int32_t kQueryGroupMax = 32;
constexpr int32_t kHeadDimMax = 256;
constexpr int32_t kHeadDimStep = 8;

void check_load_weight(std::span<const HostWeight> parts);
// `results`: that a token may name (BatchView).
void check_embedding(const Matrix& out, const Weight& table, std::span<const int32_t> tokens, int32_t results = 0);
void check_rmsnorm(const Matrix& out, const Matrix& x, Vector weight);
void check_add_rmsnorm(const Matrix& out, const Matrix& residual, const Matrix& x, Vector weight);
void check_gemm(const Matrix& out, const Matrix& x, const Weight& weight, Vector bias);
void check_rope_table(const Matrix& out, std::span<const int32_t> positions, std::span<const float> inv_freq);
void check_rope_kv_write(const Matrix& qkv, const KvLayer& layer, const BatchView& batch, const RopeKvParams& params);
void check_paged_attention(const Matrix& out, const Matrix& qkv, const KvLayer& layer, const BatchView& batch,
                           const AttentionParams& params);
void check_silu_mul(const Matrix& out, const Matrix& gate_up);
void check_gemm_silu_mul(const Matrix& out, const Matrix& gate_up, const Matrix& x, const Weight& weight, Vector bias);
void check_sample(int32_t first, int32_t count, const Matrix& logits, std::span<const SampleRow> rows);
void check_gather_rows(const Matrix& out, const Matrix& x, std::span<const int32_t> rows);

}  // namespace headroom
