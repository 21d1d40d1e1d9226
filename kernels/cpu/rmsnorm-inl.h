// RMSNorm of one row, shared by rmsnorm and the per-head norms of rope_kv_write. Compiled once per SIMD target.
#if defined(HEADROOM_KERNELS_CPU_RMSNORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADROOM_KERNELS_CPU_RMSNORM_INL_H_
#undef HEADROOM_KERNELS_CPU_RMSNORM_INL_H_
#else
#define HEADROOM_KERNELS_CPU_RMSNORM_INL_H_
#endif

#include <cmath>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

// Σ x², in an order that depends on the length alone: 32 partial sums whatever the width of a vector, so that no target
// adds thousands of squares in one chain; then chains pairwise, then lanes, then the tail.
HWY_INLINE float sum_of_squares(const float* x, int64_t length) {
  constexpr int kChains = 32 / kLanes;
  const DF d;
  VF sums[kChains];
  HEADROOM_UNROLL
  for (int c = 0; c < kChains; ++c) sums[c] = hn::Zero(d);
  int64_t i = 0;
  for (; i + kChains * kLanes <= length; i += kChains * kLanes) {
    HEADROOM_UNROLL
    for (int c = 0; c < kChains; ++c) {
      const VF values = hn::LoadU(d, x + i + c * kLanes);
      sums[c] = hn::MulAdd(values, values, sums[c]);
    }
  }
  for (int width = kChains / 2; width > 0; width /= 2) {
    for (int c = 0; c < width; ++c) sums[c] = hn::Add(sums[c], sums[c + width]);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums[0]));
  for (; i < length; ++i) sum += x[i] * x[i];
  return sum;
}

// out = x / sqrt(mean(x²) + eps) · weight; out may be x.
HWY_INLINE void rmsnorm_row(float* out, const float* x, const float* weight, int64_t length, float eps) {
  const float mean = sum_of_squares(x, length) / static_cast<float>(length);
  const float scale = 1.0f / std::sqrt(mean + eps);
  const DF d;
  const VF scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, weight + i), hn::Mul(hn::LoadU(d, x + i), scales)), d, out + i);
  }
  for (; i < length; ++i) out[i] = weight[i] * (x[i] * scale);
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#endif
