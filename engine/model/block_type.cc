#include "engine/model/block_type.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>

#include "kernels/check.h"
#include "kernels/quantize.h"

namespace headroom {
namespace {

constexpr int64_t kSuperBlock = 256;  // elements of a block of the K types

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

uint32_t byte_at(const std::byte* from, int64_t i) { return static_cast<uint32_t>(from[i]); }

void decode_f32(const std::byte* row, int64_t cols, float* out) { std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float)); }
void decode_bf16(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = bf16_to_f32(load<uint16_t>(row + 2 * i));
}
void decode_f16(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = f16_to_f32(load<uint16_t>(row + 2 * i));
}

void decode_int8(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = quantized_row_element(row, DType::kI8, i);
}
void decode_int4(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = quantized_row_element(row, DType::kI4, i);
}

// fp16 d, fp16 dmin, 8 scales and 8 minima of 6 bits, 256 × 4 bits: d · scale · q − dmin · minimum, in groups of 32.
void decode_q4_k(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; i += kSuperBlock, row += 144) {
    const float d = f16_to_f32(load<uint16_t>(row)), dmin = f16_to_f32(load<uint16_t>(row + 2));
    const std::byte* packed = row + 4;
    const std::byte* quants = row + 16;
    for (int64_t g = 0; g < 8; ++g) {
      uint32_t scale = byte_at(packed, g) & 63, minimum = byte_at(packed, g + 4) & 63;
      if (g >= 4) {
        scale = (byte_at(packed, g + 4) & 15) | (byte_at(packed, g - 4) >> 6 << 4);
        minimum = (byte_at(packed, g + 4) >> 4) | (byte_at(packed, g) >> 6 << 4);
      }
      const float step = d * static_cast<float>(scale), offset = dmin * static_cast<float>(minimum);
      for (int64_t j = 0; j < 32; ++j) {
        const uint32_t q = byte_at(quants, g / 2 * 32 + j) >> (g % 2 * 4) & 15;
        const float product = step * static_cast<float>(q);
        out[i + g * 32 + j] = product - offset;
      }
    }
  }
}

// 256 × the low 4 bits, 256 × the high 2 bits, 16 int8 scales, fp16 d: d · scale · (q − 32), in groups of 16.
void decode_q6_k(const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; i += kSuperBlock, row += 210) {
    const float d = f16_to_f32(load<uint16_t>(row + 208));
    for (int64_t e = 0; e < kSuperBlock; ++e) {
      const int64_t half = e / 128, quarter = e % 128 / 32, j = e % 32;
      const uint32_t low = byte_at(row, half * 64 + quarter % 2 * 32 + j) >> (quarter / 2 * 4) & 15;
      const uint32_t high = byte_at(row, 128 + half * 32 + j) >> (quarter * 2) & 3;
      const float step = d * static_cast<float>(static_cast<int8_t>(row[192 + e / 16]));
      out[i + e] = step * static_cast<float>(static_cast<int32_t>(low | high << 4) - 32);
    }
  }
}

constexpr BlockType kBlockTypes[] = {
    {"F32", 0, 1, 4, DType::kF32, true, decode_f32},
    {"F16", 1, 1, 2, DType::kF16, true, decode_f16},
    {"BF16", 30, 1, 2, DType::kBF16, true, decode_bf16},
    {"Q8_0", 8, kQuantGroup, kInt8GroupBytes, DType::kI8, true, decode_int8},
    {"Q4_0", 2, kQuantGroup, kInt4GroupBytes, DType::kI4, true, decode_int4},
    {"Q4_K", 12, kSuperBlock, 144, DType::kI8, false, decode_q4_k},
    {"Q6_K", 14, kSuperBlock, 210, DType::kI8, false, decode_q6_k},
};

constexpr BlockType kRequantizedType = {kRequantized, 0, 1, 4, DType::kI8, false, decode_f32};  // of no file: has no number

constexpr std::string_view kGgufTypeNames[] = {
    "F32",  "F16",     "Q4_0",   "Q4_1",    "Q4_2",  "Q4_3",   "Q5_0",  "Q5_1",  "Q8_0",   "Q8_1", "Q2_K", "Q3_K", "Q4_K",
    "Q5_K", "Q6_K",    "Q8_K",   "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16",
    "I32",  "I64",     "F64",    "IQ1_M",   "BF16",  "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0"};

void encode_row(DType to, const float* values, int64_t cols, std::byte* out) {
  switch (to) {
    case DType::kF32:
      std::memcpy(out, values, static_cast<size_t>(cols) * sizeof(float));
      return;
    case DType::kBF16:
    case DType::kF16:
      for (int64_t i = 0; i < cols; ++i) {
        const uint16_t half = to == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
        std::memcpy(out + 2 * i, &half, sizeof half);
      }
      return;
    case DType::kI8:
      for (int64_t i = 0; i < cols; i += kQuantGroup, out += kInt8GroupBytes) {
        quantize_int8_group(values + i, std::min(kQuantGroup, cols - i), out);
      }
      return;
    case DType::kI4:
      for (int64_t i = 0; i < cols; i += kQuantGroup, out += kInt4GroupBytes) {
        quantize_int4_group(values + i, std::min(kQuantGroup, cols - i), out);
      }
      return;
  }
}

// The same values in wider places.
void widen_int4_row(const std::byte* row, int64_t cols, std::byte* out) {
  for (int64_t i = 0; i < cols; i += kQuantGroup, row += kInt4GroupBytes, out += kInt8GroupBytes) {
    std::memcpy(out, row, sizeof(uint16_t));  // the scale
    for (int64_t j = 0; j < kQuantGroup; ++j) out[2 + j] = static_cast<std::byte>(int4_group_element(row, j));
  }
}

}  // namespace

const BlockType* find_block_type(std::string_view name) {
  if (name == kRequantized) return &kRequantizedType;
  const auto* found = std::ranges::find(kBlockTypes, name, &BlockType::name);
  return found == std::end(kBlockTypes) ? nullptr : found;
}

const BlockType* find_gguf_block_type(uint32_t id) {
  const auto* found = std::ranges::find(kBlockTypes, id, &BlockType::gguf_id);
  return found == std::end(kBlockTypes) ? nullptr : found;
}

std::string gguf_type_name(uint32_t id) {
  return id < std::size(kGgufTypeNames) ? std::string(kGgufTypeNames[id]) : "number " + std::to_string(id);
}

std::string gguf_types_supported() {
  std::string names;
  for (const BlockType& type : kBlockTypes) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

void convert_rows(const BlockType& type, DType to, const std::byte* source, int64_t rows, int64_t cols, std::byte* destination) {
  CHECK_EQ(cols % type.elements, 0) << "rows of " << type.name;
  const uint64_t from_bytes = type.row_bytes(cols), to_bytes = weight_row_bytes(to, cols);
  if (to == type.kept && type.kept_as_stored) {
    std::memcpy(destination, source, static_cast<uint64_t>(rows) * from_bytes);
    return;
  }
  std::vector<float> values(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r, source += from_bytes, destination += to_bytes) {
    if (type.kept == DType::kI4 && to == DType::kI8) {
      widen_int4_row(source, cols, destination);
      continue;
    }
    type.decode(source, cols, values.data());
    encode_row(to, values.data(), cols, destination);
  }
}

}  // namespace headroom
