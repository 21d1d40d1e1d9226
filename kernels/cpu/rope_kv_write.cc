// Per head: RMSNorm where the model has it, rotation by the position, then k and v rounded into the row's slot of the
// page.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope_kv_write.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/rmsnorm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

// (a, b) -> (a·cos − b·sin, b·cos + a·sin) for the pairs (i, i + half). Products are rounded before the sum, in every
// lane and in the tail alike.
HWY_INLINE void rotate(float* head, const float* cosines, const float* sines, int64_t half) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VF a = hn::LoadU(d, head + i);
    const VF b = hn::LoadU(d, head + half + i);
    const VF cosine = hn::LoadU(d, cosines + i);
    const VF sine = hn::LoadU(d, sines + i);
    hn::StoreU(hn::Sub(hn::Mul(a, cosine), hn::Mul(b, sine)), d, head + i);
    hn::StoreU(hn::Add(hn::Mul(b, cosine), hn::Mul(a, sine)), d, head + half + i);
  }
  for (; i < half; ++i) {
    const float a = head[i];
    const float b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

void prepare_heads(float* heads, int64_t count, int64_t head_dim, const float* norm, float eps, const float* rope,
                   int64_t rotary_dim) {
  for (int64_t h = 0; h < count; ++h) {
    float* head = heads + h * head_dim;
    if (norm != nullptr) rmsnorm_row(head, head, norm, head_dim, eps);
    if (rotary_dim > 0) rotate(head, rope, rope + rotary_dim / 2, rotary_dim / 2);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>

#include "kernels/cpu/key_layout.h"
#include "kernels/op_checks.h"
#include "kernels/quantize.h"

namespace headroom {
HWY_EXPORT(prepare_heads);

namespace cpu {
namespace {

// `scale`: where the row's scale goes, if its type has one.
void store_rounded(std::byte* to, float* scale, const float* from, int64_t count, DType dtype) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(to);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
      break;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) halves[i] = f32_to_bf16(from[i]);
      break;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) halves[i] = f32_to_f16(from[i]);
      break;
    case DType::kI8:
      *scale = quantize_int8(from, count, reinterpret_cast<int8_t*>(to));
      break;
    case DType::kI4:
      break;  // of weights alone: check_layer
  }
}

// Rounds a row's k and v heads into the slot of its position.
void write_slot(const float* k, const float* v, const KvLayer& layer, int32_t page, int32_t slot) {
  CHECK_GE(page, 0) << "a row's own page must be there";
  const int64_t row_bytes = layer.head_dim * static_cast<int64_t>(dtype_bytes(layer.dtype)), word_bytes = key_word_bytes(layer.dtype);
  std::byte* elements = layer.data + static_cast<size_t>(page) * layer.page_stride_bytes;
  float* scales = reinterpret_cast<float*>(elements + layer.scales_offset());
  alignas(64) std::byte key[kHeadDimMax * sizeof(float)];
  for (int64_t g = 0; g < layer.kv_heads; ++g) {
    const int64_t k_row = g * layer.page_tokens + slot, v_row = layer.rows() + k_row;
    store_rounded(key, scales + k_row, k + g * layer.head_dim, layer.head_dim, layer.dtype);
    std::byte* keys = elements + g * layer.page_tokens * row_bytes;
    for (int64_t word = 0; word < row_bytes / word_bytes; ++word)
      std::memcpy(keys + key_word_offset(layer.dtype, slot, word, row_bytes), key + word * word_bytes, static_cast<size_t>(word_bytes));
    store_rounded(elements + v_row * row_bytes, scales + v_row, v + g * layer.head_dim, layer.head_dim, layer.dtype);
  }
}

}  // namespace

void rope_kv_write(ThreadPool& pool, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                   const RopeKvParams& params) {
  const int64_t q_cols = int64_t{params.query_heads} * params.head_dim;
  const int64_t kv_cols = int64_t{params.kv_heads} * params.head_dim;
  const int64_t rotary_dim = params.rope_table.cols;
  const float* q_norm = params.q_norm.empty() ? nullptr : params.q_norm.data();
  const float* k_norm = params.k_norm.empty() ? nullptr : params.k_norm.data();
  const int64_t sequences = static_cast<int64_t>(batch.sequence_first_row.size()) - 1;
  pool.for_range(qkv.rows, rows_per_worker(qkv.cols * 2), [&](int64_t begin, int64_t end) {
    const auto prepare = HWY_DYNAMIC_DISPATCH(prepare_heads);
    int64_t s = 0;
    for (int64_t t = begin; t < end; ++t) {
      while (s < sequences && batch.sequence_first_row[s + 1] <= t) ++s;
      const float* rope = rotary_dim > 0 ? params.rope_table.row(t) : nullptr;
      float* row = qkv.row(t);
      prepare(row, params.query_heads, params.head_dim, q_norm, params.norm_eps, rope, rotary_dim);
      prepare(row + q_cols, params.kv_heads, params.head_dim, k_norm, params.norm_eps, rope, rotary_dim);
      const int32_t position = batch.positions[t];
      if (position < 0) continue;  // padding
      const int32_t page = batch.page_tables[batch.page_table_begin[s] + position / layer.page_tokens];
      write_slot(row + q_cols, row + q_cols + kv_cols, layer, page, position % layer.page_tokens);
    }
  });
}

}  // namespace cpu
}  // namespace headroom
#endif
