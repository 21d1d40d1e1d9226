// Which SIMD targets the kernels are compiled for. Include before any Highway header.
//
// x86: AVX-512 (Skylake-X and later), AVX2, and the baseline SSE2. Arm: NEON. What is left out differs from these only
// in instructions that the kernels do not use, and would only lengthen the build; SVE and RVV vectors have no size
// known at compile time, which the register tiles need.
#pragma once

// 1 << 4 and 1 << 6 are AVX3_SPR and AVX3_ZEN4, whose names Highway 1.0.3 does not have yet.
#define HWY_DISABLED_TARGETS                                                                                        \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | (1LL << 4) | (1LL << 6) | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_RVV)
