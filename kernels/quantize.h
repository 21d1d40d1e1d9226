// Rounding to whole numbers with a scale: written once, so that every backend and test stores the same bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/dtype.h"

namespace headroom {

// The nearest whole number of a value below 2^22, ties to even, in one rounding that compilers vectorise.
constexpr float round_to_whole(float value) {
  constexpr float kUlpIsOne = 0x1.8p23f;
  return (value + kUlpIsOne) - kUlpIsOne;
}

// The scale of a row whose largest magnitude is `largest`, which goes to 127. A NaN or an infinity makes it NaN, so that it shows
// wherever the row is read, and the elements 0; so they are where the scale is 0.
struct Int8Scale {
  float value;
  bool zeros;
};
constexpr Int8Scale int8_scale(float largest) {
  const float scale = largest / 127.0f;
  if (!(largest <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), true};
  return {scale, scale == 0.0f};
}
constexpr int8_t quantized_int8(float value, Int8Scale scale) {
  if (scale.zeros) return 0;
  // The clamp is for scales below the normal numbers, which are too coarse to reach 127.
  return static_cast<int8_t>(round_to_whole(std::clamp(value / scale.value, -127.0f, 127.0f)));
}

// from[i] ≈ to[i] · result, symmetric about 0.
inline float quantize_int8(const float* from, int64_t count, int8_t* to) {
  uint32_t largest_bits = 0;  // magnitudes order as their bits do, with NaN above all
  for (int64_t i = 0; i < count; ++i) largest_bits = std::max(largest_bits, std::bit_cast<uint32_t>(from[i]) & 0x7FFFFFFFu);
  const Int8Scale scale = int8_scale(std::bit_cast<float>(largest_bits));
  if (scale.zeros) {
    std::fill_n(to, count, int8_t{0});
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = quantized_int8(from[i], {scale.value, false});
  }
  return scale.value;
}

// A group of a weight's row (dtype.h) from its first `count` elements; the others are 0. value ≈ scale · q.
inline void quantize_int8_group(const float* from, int64_t count, std::byte* to) {
  int8_t quants[kQuantGroup] = {};
  const float exact_scale = quantize_int8(from, count, quants);
  const uint16_t stored_scale = f32_to_f16(exact_scale);
  const float scale = f16_to_f32(stored_scale);
  if (std::isfinite(scale) && scale > 0.0f) {  // once more, by the scale as it is stored
    for (int64_t i = 0; i < count; ++i) {
      quants[i] = static_cast<int8_t>(round_to_whole(std::clamp(from[i] / scale, -127.0f, 127.0f)));
    }
  }
  std::memcpy(to, &stored_scale, sizeof stored_scale);
  std::memcpy(to + sizeof stored_scale, quants, sizeof quants);
}

// q from -8 to 7. The scale is the one, of some around that which puts the largest magnitude at -8, whose values are nearest in
// the sum of squares: with 16 steps to a group it pays to let the largest be cut.
inline void quantize_int4_group(const float* from, int64_t count, std::byte* to) {
  constexpr float kLargestSteps[] = {8.0f, 7.0f, 7.25f, 7.5f, 7.75f, 8.25f, 8.5f, 8.75f, 9.0f};
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const auto magnitude_bits = [](float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu; };
    if (magnitude_bits(from[i]) > magnitude_bits(largest)) largest = from[i];
  }
  uint16_t best_scale = std::isfinite(largest) ? uint16_t{0} : uint16_t{0x7E00};  // a NaN shows
  float best_error = std::numeric_limits<float>::infinity();
  const auto quant = [](float value, float scale) { return round_to_whole(std::clamp(value / scale, -8.0f, 7.0f)); };
  for (const float steps : kLargestSteps) {
    const uint16_t stored_scale = f32_to_f16(-largest / steps);
    const float scale = f16_to_f32(stored_scale);
    if (!std::isfinite(scale) || scale == 0.0f) break;
    float error = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      const float difference = from[i] - quant(from[i], scale) * scale;
      error += difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best_scale = stored_scale;
    }
  }
  const float scale = f16_to_f32(best_scale);
  uint8_t quants[kQuantGroup];
  for (int64_t i = 0; i < kQuantGroup; ++i) {
    const bool is_zero = i >= count || !std::isfinite(scale) || scale == 0.0f;
    quants[i] = is_zero ? uint8_t{8} : static_cast<uint8_t>(static_cast<int>(quant(from[i], scale)) + 8);
  }
  std::memcpy(to, &best_scale, sizeof best_scale);
  for (int64_t i = 0; i < kQuantGroup / 2; ++i) {
    to[sizeof best_scale + static_cast<size_t>(i)] = static_cast<std::byte>(quants[i] | quants[i + kQuantGroup / 2] << 4);
  }
}

inline float quant_group_scale(const std::byte* group) {
  uint16_t half;
  std::memcpy(&half, group, sizeof half);
  return f16_to_f32(half);
}
// Element i of a group without its scale.
inline int8_t int8_group_element(const std::byte* group, int64_t i) { return static_cast<int8_t>(group[2 + i]); }
inline int8_t int4_group_element(const std::byte* group, int64_t i) {
  const auto byte = static_cast<uint32_t>(group[2 + i % (kQuantGroup / 2)]);
  return static_cast<int8_t>(static_cast<int32_t>(byte >> (i < kQuantGroup / 2 ? 0 : 4) & 15u) - 8);
}
// One element of a row of kI8 or kI4: exact in fp32.
inline float quantized_row_element(const std::byte* row, DType type, int64_t k) {
  const std::byte* group = row + static_cast<size_t>(k / kQuantGroup) * (type == DType::kI8 ? kInt8GroupBytes : kInt4GroupBytes);
  const int64_t i = k % kQuantGroup;
  return quant_group_scale(group) * (type == DType::kI8 ? int8_group_element(group, i) : int4_group_element(group, i));
}

}  // namespace headroom
