// Rotary position embedding: RoFormer (Su et al. 2021); its scalings: linear (Chen et al. 2023), Llama 3.1's by
// wavelength, YaRN (Peng et al. 2023), LongRoPE (Ding et al. 2024).
//
// The reference computes the angles with fp32 tensors; every step below rounds to fp32 where it does, because an
// angle's error is multiplied by the position.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/model/config.h"
#include "kernels/check.h"

namespace headroom {
namespace {

// theta^(2i / rotary_dim) for i < rotary_dim/2
std::vector<float> wavelength_steps(const RopeConfig& rope) {
  std::vector<float> steps(static_cast<size_t>(rope.rotary_dim / 2));
  for (size_t i = 0; i < steps.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope.rotary_dim);
    steps[i] = static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
  }
  return steps;
}

// Wavelengths under original/high keep their angle, those over original/low are slowed by the factor, the rest are
// blended.
void apply_llama3(const RopeConfig& rope, std::vector<float>& inv_freq) {
  const auto low = static_cast<float>(rope.low_freq_factor);
  const auto high = static_cast<float>(rope.high_freq_factor);
  const auto factor = static_cast<float>(rope.factor);
  const auto original = static_cast<float>(rope.original_context_tokens);
  const auto long_wavelength = static_cast<float>(rope.original_context_tokens / rope.low_freq_factor);
  const auto short_wavelength = static_cast<float>(rope.original_context_tokens / rope.high_freq_factor);
  for (float& inv : inv_freq) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / inv;
    if (wavelength < short_wavelength) continue;
    if (wavelength > long_wavelength) {
      inv = inv / factor;
      continue;
    }
    const float smooth = (original / wavelength - low) / (high - low);
    inv = (1.0f - smooth) * inv / factor + smooth * inv;
  }
}

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// Dimensions that turn more than beta_fast times within the original context keep their angle, those under beta_slow
// times are slowed by the factor, with a linear ramp over the dimensions between.
void apply_yarn(const RopeConfig& rope, std::vector<float>& inv_freq, const std::vector<float>& steps) {
  const auto dimension_of = [&](double turns) {
    return rope.rotary_dim * std::log(rope.original_context_tokens / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double first = dimension_of(rope.beta_fast);
  double last = dimension_of(rope.beta_slow);
  if (rope.truncate) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, static_cast<double>(rope.rotary_dim - 1));
  if (first == last) last += 0.001;  // as the reference: no division by zero
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(first)) / static_cast<float>(last - first), 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    const float slowed = 1.0f / (static_cast<float>(rope.factor) * steps[i]);
    inv_freq[i] = slowed * (1.0f - keep) + inv_freq[i] * keep;
  }
}

double yarn_attention_factor(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale.value_or(0.0) != 0.0 && rope.mscale_all_dim.value_or(0.0) != 0.0) {
    return yarn_mscale(rope.factor, *rope.mscale) / yarn_mscale(rope.factor, *rope.mscale_all_dim);
  }
  return yarn_mscale(rope.factor, 1.0);
}

double longrope_attention_factor(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.factor <= 1.0) return 1.0;
  return std::sqrt(1.0 + std::log(rope.factor) / std::log(static_cast<double>(rope.original_context_tokens)));
}

}  // namespace

RopeTable make_rope_table(const RopeConfig& rope, int32_t served_context_tokens) {
  CHECK_GT(served_context_tokens, 0);
  const std::vector<float> steps = wavelength_steps(rope);
  RopeTable table;
  table.inv_freq.resize(steps.size());
  std::ranges::transform(steps, table.inv_freq.begin(), [](float step) { return 1.0f / step; });
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (float& inv : table.inv_freq) inv /= static_cast<float>(rope.factor);
      break;
    case RopeType::kLlama3:
      apply_llama3(rope, table.inv_freq);
      break;
    case RopeType::kYarn:
      apply_yarn(rope, table.inv_freq, steps);
      table.attention_factor = static_cast<float>(yarn_attention_factor(rope));
      break;
    case RopeType::kLongRope: {
      const bool is_long = served_context_tokens > rope.original_context_tokens;
      const std::vector<double>& factors = is_long ? rope.long_factor : rope.short_factor;
      CHECK_EQ(factors.size(), steps.size());
      for (size_t i = 0; i < steps.size(); ++i) table.inv_freq[i] = 1.0f / (static_cast<float>(factors[i]) * steps[i]);
      table.attention_factor = static_cast<float>(longrope_attention_factor(rope));
      break;
    }
  }
  return table;
}

}  // namespace headroom
