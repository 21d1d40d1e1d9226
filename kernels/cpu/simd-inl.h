// What the kernels share, compiled once per SIMD target: loads that widen to fp32, exp, and the register tile.
//
// Every function here is lane-wise or sums in an order fixed by its arguments' shapes, so that bits do not depend on
// the batch.
#if defined(HEADROOM_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADROOM_KERNELS_CPU_SIMD_INL_H_
#undef HEADROOM_KERNELS_CPU_SIMD_INL_H_
#else
#define HEADROOM_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/dtype.h"

#if defined(__clang__)
#define HEADROOM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HEADROOM_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
namespace headroom {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));

// The shape of a register tile: rows · vectors accumulators, with room left for the operands.
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
constexpr int kTileVectors = 2;  // 32 registers
constexpr int kTileRows = 12;
#elif HWY_ARCH_ARM_A64
constexpr int kTileVectors = 4;  // 32 registers
constexpr int kTileRows = 6;
#else
constexpr int kTileVectors = 2;  // 16 registers
constexpr int kTileRows = 6;
#endif

// The stored form of an element type.
template <DType type>
struct Stored {
  using Element = uint16_t;
};
template <>
struct Stored<DType::kF32> {
  using Element = float;
};
template <>
struct Stored<DType::kI8> {
  using Element = int8_t;
};
template <DType type>
using Element = typename Stored<type>::Element;

#undef HEADROOM_HALVES_IN_SOFTWARE
#define HEADROOM_HALVES_IN_SOFTWARE ((HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2) || HWY_TARGET == HWY_SCALAR)

// fp16 as it is stored, widened. Where the target has no instruction for it, Highway makes numbers of infinity and NaN.
template <class V>
HWY_INLINE VF widen_halves(V halves) {
  const DF d;
#if HEADROOM_HALVES_IN_SOFTWARE
  const hn::RebindToUnsigned<DF> d32;
  const auto bits = hn::PromoteTo(d32, halves);
  const auto magnitude = hn::And(bits, hn::Set(d32, 0x7FFFu));
  // With the exponent where fp32 has it, 2^112 too small, subnormal or not: the product is exact.
  const auto number = hn::BitCast(d32, hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::Set(d, 0x1p112f)));
  const auto not_finite = hn::VecFromMask(d32, hn::Gt(magnitude, hn::Set(d32, 0x7BFFu)));
  const auto exponent = hn::And(not_finite, hn::Set(d32, 0x7F800000u));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000u)));
  return hn::BitCast(d, hn::Or(hn::Or(number, exponent), sign));
#else
  const hn::Rebind<hwy::float16_t, DF> half;
  return hn::PromoteTo(d, hn::BitCast(half, halves));
#endif
}

// kLanes elements at `from` (any alignment) as fp32; of int8, without its scale.
template <DType type>
HWY_INLINE VF load_f32(const Element<type>* from) {
  const DF d;
  if constexpr (type == DType::kF32) {
    return hn::LoadU(d, from);
  } else if constexpr (type == DType::kBF16) {
    const hn::Rebind<uint16_t, DF> d16;
    const hn::RebindToUnsigned<DF> d32;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, from))));
  } else if constexpr (type == DType::kI8) {
    const hn::Rebind<int8_t, DF> d8;
    const hn::RebindToSigned<DF> d32;
    return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, from)));
  } else {
    const hn::Rebind<uint16_t, DF> d16;
    return widen_halves(hn::LoadU(d16, from));
  }
}

template <DType type>
HWY_INLINE float element_to_f32(Element<type> element) {
  if constexpr (type == DType::kF32 || type == DType::kI8) return element;
  if constexpr (type == DType::kBF16) return bf16_to_f32(element);
  if constexpr (type == DType::kF16) return f16_to_f32(element);
}

// 2^x for x <= 0, at most 1 ulp off; exactly 1 at 0, exactly 0 below -126; NaN stays NaN, so that a read of a slot that
// was never written shows.
HWY_INLINE VF exp2_nonpositive(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const VF whole = hn::Round(x);
  const VF f = hn::Sub(x, whole);  // [-0.5, 0.5]
  // Minimax polynomial of 2^f with the constant term fixed at 1: relative error 2^-28.9 before rounding.
  VF p = hn::Set(d, 1.5353362e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.3398875e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.6184369e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5503324e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022648e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314718e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
  const VF result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Zero(d), result);
}

// acc[r][v] += a[k·a_stride + r·kARow] · b[k·b_stride + v·kLanes], k ascending: one chain of fused multiply-adds per
// output.
template <int kARow, int kRows, int kVectors>
HWY_INLINE void accumulate_tile(VF (&acc)[kRows][kVectors], const float* HWY_RESTRICT a, size_t a_stride,
                                const float* HWY_RESTRICT b, size_t b_stride, size_t steps) {
  const DF d;
  for (size_t k = 0; k < steps; ++k) {
    VF w[kVectors];
    HEADROOM_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v] = hn::LoadU(d, b + v * kLanes);
    HEADROOM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VF x = hn::Set(d, a[r * kARow]);
      HEADROOM_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(x, w[v], acc[r][v]);
    }
    a += a_stride;
    b += b_stride;
  }
}

// Calls body(std::integral_constant<int, n>) for the n in 1..kMax that equals `count`.
template <int kMax, class Body>
HWY_INLINE void with_static_count(int count, const Body& body) {
  if constexpr (kMax > 1) {
    if (count < kMax) return with_static_count<kMax - 1>(count, body);
  }
  body(std::integral_constant<int, kMax>());
}

}  // namespace HWY_NAMESPACE
}  // namespace headroom
HWY_AFTER_NAMESPACE();

#endif
