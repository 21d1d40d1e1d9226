#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/silu_mul.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

constexpr float kLog2E = 1.44269504f;

// x / (1 + e^-x) through e^-|x|, which cannot overflow: x · 1 / (1 + e^-x) for x >= 0, x · e^x / (1 + e^x) below.
HWY_INLINE VF silu(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF e = exp2_nonpositive(hn::Mul(hn::Abs(x), hn::Set(d, -kLog2E)));
  const VF numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one);
  return hn::Mul(x, hn::Div(numerator, hn::Add(one, e)));
}

void silu_mul_row(float* out, const float* gate, const float* up, int64_t length) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    hn::StoreU(hn::Mul(silu(hn::LoadU(d, gate + i)), hn::LoadU(d, up + i)), d, out + i);
  }
  if (i == length) return;
  HWY_ALIGN float tail[kLanes] = {};  // the same arithmetic for a last part of a vector
  for (int64_t j = i; j < length; ++j) tail[j - i] = gate[j];
  hn::Store(silu(hn::Load(d, tail)), d, tail);
  for (int64_t j = i; j < length; ++j) out[j] = tail[j - i] * up[j];
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headroom {
HWY_EXPORT(silu_mul_row);

namespace cpu {

void silu_mul(ThreadPool& pool, Matrix out, Matrix gate_up) {
  const int64_t cols = out.cols;
  pool.for_range(out.rows, rows_per_worker(cols * 4), [&](int64_t begin, int64_t end) {
    const auto row = HWY_DYNAMIC_DISPATCH(silu_mul_row);
    for (int64_t t = begin; t < end; ++t) row(out.row(t), gate_up.row(t), gate_up.row(t) + cols, cols);
  });
}

}  // namespace cpu
}  // namespace headroom
#endif
