// A token's row is a column of lanes in its panel: the tied output matrix serves as the embedding table, stored once.
#include "kernels/cpu/ops.h"

namespace headroom::cpu {
namespace {

template <class T, class ToF32>
void copy_row(float* out, const PackedWeight& table, int32_t token, const ToF32& to_f32) {
  const int64_t together = table.in_pairs() ? 2 : 1;
  const T* lane = reinterpret_cast<const T*>(table.panel(token / kPanelRows)) + token % kPanelRows * together;
  for (int64_t k = 0; k < table.cols(); ++k) out[k] = to_f32(lane[k / together * together * kPanelRows + k % together]);
}

void copy_quantized_row(float* out, const PackedWeight& table, int32_t token) {
  const int64_t row = token % kPanelRows;
  const std::byte* group = table.panel(token / kPanelRows);
  for (int64_t k = 0; k < table.cols(); ++k) {
    if (k > 0 && k % kQuantGroup == 0) group += panel_group_bytes(table.dtype());
    const float scale = f16_to_f32(reinterpret_cast<const uint16_t*>(group)[row]);
    const auto [at, shift] = quant_place(table.dtype(), table.in_pairs(), row, k % kQuantGroup);
    const auto byte = static_cast<int8_t>(group[kPanelScaleBytes + at]);
    if (table.dtype() == DType::kI8) {
      out[k] = scale * byte;
    } else {
      const int bits = byte >> shift & 15;
      out[k] = scale * static_cast<float>(table.in_pairs() ? bits - kInt4PairsZero : (bits ^ 8) - 8);
    }
  }
}

}  // namespace

void embedding(ThreadPool& pool, Matrix out, const PackedWeight& table, std::span<const int32_t> tokens) {
  pool.for_range(out.rows, rows_per_worker(out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      switch (table.dtype()) {
        case DType::kF32:
          copy_row<float>(out.row(t), table, tokens[t], [](float value) { return value; });
          break;
        case DType::kBF16:
          copy_row<uint16_t>(out.row(t), table, tokens[t], bf16_to_f32);
          break;
        case DType::kF16:
          copy_row<uint16_t>(out.row(t), table, tokens[t], f16_to_f32);
          break;
        case DType::kI8:
        case DType::kI4:
          copy_quantized_row(out.row(t), table, tokens[t]);
          break;
      }
    }
  });
}

}  // namespace headroom::cpu
