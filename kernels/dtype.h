// Element types of weights, activations and KV pages, and their exact conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace headroom {

// Whole numbers with a scale (quantize.h): kI8 in KV pages has one fp32 scale for each token and head; kI8 and kI4 weights
// have one fp16 scale for each kQuantGroup elements of a row. kI4 is for weights alone.
enum class DType : uint8_t { kF32, kBF16, kF16, kI8, kI4 };

// Of one element, without scales. kI4 has no whole number of them: weight_row_bytes.
constexpr size_t dtype_bytes(DType type) {
  if (type == DType::kF32) return 4;
  return type == DType::kBF16 || type == DType::kF16 ? 2 : 1;
}

constexpr bool is_quantized(DType type) { return type == DType::kI8 || type == DType::kI4; }

constexpr int64_t kQuantGroup = 32;      // elements of a weight's row that share a scale
constexpr size_t kInt8GroupBytes = 34;   // the scale, then 32 int8: a group as checkpoints store it
constexpr size_t kInt4GroupBytes = 18;   // the scale, then 16 bytes: elements 0 … 15 in their low halves, 16 … 31 in the high, each + 8

// Of a row of a weight as a checkpoint stores it. The last group of a row may be partly used.
constexpr size_t weight_row_bytes(DType type, int64_t cols) {
  const auto groups = static_cast<size_t>((cols + kQuantGroup - 1) / kQuantGroup);
  if (type == DType::kI8) return groups * kInt8GroupBytes;
  if (type == DType::kI4) return groups * kInt4GroupBytes;
  return static_cast<size_t>(cols) * dtype_bytes(type);
}

// Bytes of a page that K, or V, of one token and head take: the elements and, where the type has one, their scale.
constexpr size_t kv_row_bytes(DType type, int32_t head_dim) {
  return static_cast<size_t>(head_dim) * dtype_bytes(type) + (type == DType::kI8 ? sizeof(float) : 0);
}

// Names as users write them: --kv bf16.
constexpr std::string_view dtype_name(DType type) {
  switch (type) {
    case DType::kF32: return "fp32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "fp16";
    case DType::kI8: return "int8";
    case DType::kI4: return "int4";
  }
  return "?";
}

constexpr float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: mantissa · 2^-24, exact in fp32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Round to nearest, ties to even; overflow gives infinity, NaN stays NaN.
constexpr uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // ≥ 65520 rounds to infinity
  if (magnitude < 0x38800000u) {                                              // below 2^-14: subnormal half
    // Adding 0.5 aligns the mantissa so that the hardware rounds at 2^-24.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

}  // namespace headroom
