#include "engine/analysis/kv_rows.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/quantize.h"

namespace headroom {

void write_kv_row(const KvLayer& layer, std::byte* page, int64_t row, std::span<const float> values) {
  std::byte* at = page + static_cast<size_t>(row * layer.head_dim) * dtype_bytes(layer.dtype);
  const auto write = [&](const auto& convert) {
    for (size_t i = 0; i < values.size(); ++i) {
      const auto bits = convert(values[i]);
      std::memcpy(at + i * sizeof bits, &bits, sizeof bits);
    }
  };
  switch (layer.dtype) {
    case DType::kF32:
      return write([](float value) { return value; });
    case DType::kBF16:
      return write(f32_to_bf16);
    case DType::kF16:
      return write(f32_to_f16);
    case DType::kI8: {
      const float scale = quantize_int8(values.data(), layer.head_dim, reinterpret_cast<int8_t*>(at));
      std::memcpy(page + layer.scales_offset() + static_cast<size_t>(row) * sizeof scale, &scale, sizeof scale);
      return;
    }
    case DType::kI4:
      CHECK(false) << "a type of weights";
  }
}

float kv_element(const KvLayer& layer, const std::byte* page, int64_t row, int64_t element) {
  const std::byte* at = page + static_cast<size_t>(element) * dtype_bytes(layer.dtype);
  switch (layer.dtype) {
    case DType::kF32:
      return *reinterpret_cast<const float*>(at);
    case DType::kBF16:
      return bf16_to_f32(*reinterpret_cast<const uint16_t*>(at));
    case DType::kF16:
      return f16_to_f32(*reinterpret_cast<const uint16_t*>(at));
    case DType::kI8:
      return *reinterpret_cast<const int8_t*>(at) * reinterpret_cast<const float*>(page + layer.scales_offset())[row];
    case DType::kI4:
      CHECK(false) << "a type of weights";
  }
  return 0.0f;
}

}  // namespace headroom
