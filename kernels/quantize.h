// Rounding to whole numbers with a scale: written once, so that every backend and test stores the same bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace headroom {

// The nearest whole number of a value below 2^22, ties to even, in one rounding that compilers vectorise.
constexpr float round_to_whole(float value) {
  constexpr float kUlpIsOne = 0x1.8p23f;
  return (value + kUlpIsOne) - kUlpIsOne;
}

// from[i] ≈ to[i] · result, symmetric about 0, with the largest magnitude at 127. A NaN or an infinity makes the scale NaN, so
// that it shows wherever the row is read.
inline float quantize_int8(const float* from, int64_t count, int8_t* to) {
  uint32_t largest_bits = 0;  // magnitudes order as their bits do, with NaN above all
  for (int64_t i = 0; i < count; ++i) largest_bits = std::max(largest_bits, std::bit_cast<uint32_t>(from[i]) & 0x7FFFFFFFu);
  const float largest = std::bit_cast<float>(largest_bits);
  const float scale = largest / 127.0f;
  if (!(largest <= std::numeric_limits<float>::max()) || scale == 0.0f) {
    for (int64_t i = 0; i < count; ++i) to[i] = 0;
    return scale == 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  for (int64_t i = 0; i < count; ++i) {
    // The clamp is for scales below the normal numbers, which are too coarse to reach 127.
    to[i] = static_cast<int8_t>(round_to_whole(std::clamp(from[i] / scale, -127.0f, 127.0f)));
  }
  return scale;
}

}  // namespace headroom
