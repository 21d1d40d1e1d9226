// How files store the elements of a tensor's row, and their way to the types that kernels take.
//
// The quantised ones are those of GGML (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h): blocks of 32 or
// 256 elements of a row with their scales. Q8_0 and Q4_0 are what kernels take for int8 and int4, bit for bit; Q4_K and
// Q6_K, whose blocks have scales of scales, are rounded to int8 blocks unless another type is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/dtype.h"

namespace headroom {

struct BlockType {
  std::string_view name;  // as safetensors and GGUF name it
  uint32_t gguf_id = 0;
  int64_t elements = 1;  // of a block
  uint64_t bytes = 0;    // of a block
  DType kept = DType::kF32;  // as what kernels take it, unless something else is asked for
  bool kept_as_stored = true;  // bit for bit
  void (*decode)(const std::byte* row, int64_t cols, float* out) = nullptr;  // whole blocks

  uint64_t row_bytes(int64_t cols) const { return static_cast<uint64_t>(cols / elements) * bytes; }
};

// Values that were read from codes which no block holds: fp32 by element, rounded to int8 blocks unless another type is asked for.
inline constexpr std::string_view kRequantized = "REQUANTIZED";

const BlockType* find_block_type(std::string_view name);     // null: kernels take nothing of the kind
const BlockType* find_gguf_block_type(uint32_t id);          // null: the same
std::string gguf_type_name(uint32_t id);                     // of any type of the format, for errors
std::string gguf_types_supported();                          // "F32, F16, …"

// Rows of `type`, as weights of type `to` ([rows, weight_row_bytes(to, cols)]). Exact where `to` can hold the values.
void convert_rows(const BlockType& type, DType to, const std::byte* source, int64_t rows, int64_t cols, std::byte* destination);

}  // namespace headroom
