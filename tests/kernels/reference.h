// The oracle of the kernel tests: every op written naively in float64, from the definition and not from the kernels,
// plus what the tests share to build inputs. Inputs are rounded to the stored type first, so that the tolerance covers
// arithmetic alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace headroom::reference {

inline float round_to(DType type, float value) {
  switch (type) {
    case DType::kF32:
      return value;
    case DType::kBF16:
      return bf16_to_f32(f32_to_bf16(value));
    case DType::kF16:
      return f16_to_f32(f32_to_f16(value));
    case DType::kI8:
    case DType::kI4:
      break;  // round rows, not elements
  }
  return value;
}

// What a page gives back of one row of K or V.
inline std::vector<float> stored_row(DType type, std::span<const float> row) {
  std::vector<float> stored(row.begin(), row.end());
  if (type != DType::kI8) {
    for (float& value : stored) value = round_to(type, value);
    return stored;
  }
  float largest = 0.0f;
  for (const float value : row) largest = std::max(largest, std::abs(value));
  const float scale = largest / 127.0f;
  for (float& value : stored) value = scale == 0.0f ? 0.0f : std::nearbyint(value / scale) * scale;
  return stored;
}

// Which element of a page of the CPU's is element i of the key in row `row` of [G][page_tokens]: 16 neighbouring keys have their first word
// side by side, then their next: 4 bytes, or of fp16 2.
inline size_t cpu_key_element(DType type, int32_t head_dim, int32_t page_tokens, size_t row, int32_t i) {
  const size_t per_word = type == DType::kF16 ? 1 : 4 / dtype_bytes(type), dim = static_cast<size_t>(head_dim), at = static_cast<size_t>(i);
  const size_t head = row / static_cast<size_t>(page_tokens), slot = row % static_cast<size_t>(page_tokens);
  const size_t chunk = head * static_cast<size_t>(page_tokens) * dim + slot / 16 * 16 * dim;
  return chunk + at / per_word * 16 * per_word + slot % 16 * per_word + at % per_word;
}

inline std::vector<float> random_floats(size_t count, uint64_t seed, float scale = 1.0f, DType type = DType::kF32) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = round_to(type, normal(random));
  return values;
}

// `values`, which are exact in `type`, as a checkpoint stores them.
inline std::vector<std::byte> stored(std::span<const float> values, DType type) {
  std::vector<std::byte> bytes(values.size() * dtype_bytes(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const uint16_t half = type == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

// Of int8 without its scale.
inline float load_stored(const std::byte* from, DType type) {
  if (type == DType::kI8) return static_cast<float>(static_cast<int8_t>(*from));
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, from, 2);
  return type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

// Rows [rows, cols] of int8 or int4 weights with random scales and elements, as checkpoints store them, written here from the
// format's description; `values` becomes what they stand for.
inline std::vector<std::byte> random_quantized_rows(int64_t rows, int64_t cols, DType type, uint64_t seed, float scale,
                                                    std::vector<float>* values) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t first = 0; first < cols; first += 32) {
      const uint16_t half = f32_to_f16(scale * (0.5f + static_cast<float>(random() % 1024) / 1024.0f));
      bytes.push_back(static_cast<std::byte>(half & 0xFF));
      bytes.push_back(static_cast<std::byte>(half >> 8));
      int quants[32];
      for (int& q : quants) q = type == DType::kI8 ? static_cast<int>(random() % 255) - 127 : static_cast<int>(random() % 16) - 8;
      for (int i = 0; i < (type == DType::kI8 ? 32 : 16); ++i) {
        bytes.push_back(static_cast<std::byte>(type == DType::kI8 ? quants[i] : (quants[i] + 8) | (quants[i + 16] + 8) << 4));
      }
      for (int64_t i = 0; i < std::min<int64_t>(32, cols - first); ++i) {
        values->push_back(f16_to_f32(half) * static_cast<float>(quants[i]));
      }
    }
  }
  return bytes;
}

// Contents as bits, so that comparing them tells -0 from 0 and NaN equals itself.
inline std::vector<uint32_t> bits(std::span<const float> values) {
  std::vector<uint32_t> result(values.size());
  std::memcpy(result.data(), values.data(), values.size() * 4);
  return result;
}

inline double largest_difference(std::span<const float> values, std::span<const double> expected) {
  double largest = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double difference = std::abs(values[i] - expected[i]);
    if (!(difference <= largest)) largest = difference;  // NaN wins and stays
    if (std::isnan(largest)) return std::numeric_limits<double>::infinity();
  }
  return largest;
}

// ‖values − expected‖ / ‖expected‖; infinite where that is no number, or the sizes differ.
template <typename Expected>
double relative_error(std::span<const float> values, const Expected& expected) {
  double difference = values.size() == expected.size() ? 0.0 : std::numeric_limits<double>::infinity(), size = 0.0;
  for (size_t i = 0; i < std::min(values.size(), expected.size()); ++i) {
    difference += (double{values[i]} - expected[i]) * (double{values[i]} - expected[i]);
    size += double{expected[i]} * expected[i];
  }
  const double error = std::sqrt(difference / size);
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

// [T, N] = [T, K] · [N, K]ᵀ + [N]
inline std::vector<double> gemm(std::span<const float> x, std::span<const float> weight, std::span<const float> bias,
                                int64_t rows, int64_t outputs, int64_t inputs) {
  std::vector<double> out(static_cast<size_t>(rows * outputs));
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = bias.empty() ? 0.0 : bias[n];
      for (int64_t k = 0; k < inputs; ++k) sum += static_cast<double>(x[t * inputs + k]) * weight[n * inputs + k];
      out[t * outputs + n] = sum;
    }
  }
  return out;
}

inline std::vector<double> rmsnorm(std::span<const float> x, std::span<const float> weight, double eps) {
  const size_t dim = weight.size();
  std::vector<double> out(x.size());
  for (size_t row = 0; row < x.size(); row += dim) {
    double squares = 0.0;
    for (size_t i = 0; i < dim; ++i) squares += static_cast<double>(x[row + i]) * x[row + i];
    for (size_t i = 0; i < dim; ++i)
      out[row + i] = x[row + i] / std::sqrt(squares / static_cast<double>(dim) + eps) * weight[i];
  }
  return out;
}

// Attention of one query over a list of keys and values [count, head_dim]; the list holds what the query may see and
// nothing else.
inline std::vector<double> attend(std::span<const float> query, const std::vector<std::vector<float>>& keys,
                                  const std::vector<std::vector<float>>& values, double scale) {
  std::vector<double> scores;
  for (const std::vector<float>& key : keys) {
    double score = 0.0;
    for (size_t i = 0; i < query.size(); ++i) score += static_cast<double>(query[i]) * key[i];
    scores.push_back(score * scale);
  }
  double largest = -std::numeric_limits<double>::infinity();
  for (const double score : scores) largest = std::max(largest, score);
  double sum = 0.0;
  std::vector<double> out(query.size());
  for (size_t j = 0; j < scores.size(); ++j) {
    const double weight = std::exp(scores[j] - largest);
    sum += weight;
    for (size_t i = 0; i < query.size(); ++i) out[i] += weight * values[j][i];
  }
  for (double& value : out) value /= sum;
  return out;
}

}  // namespace headroom::reference
