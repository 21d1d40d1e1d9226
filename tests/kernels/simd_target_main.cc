// Runs the tests of a program with the kernels of one SIMD target of this CPU: HEADROOM_TEST_SIMD=AVX2. Without it, with the best one.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/ops.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* target = std::getenv("HEADROOM_TEST_SIMD");
  if (target != nullptr && !headroom::cpu::use_simd_target(target)) {
    std::printf("SKIPPED: this CPU has no %s\n", target);
    return 0;
  }
  std::printf("SIMD target %s\n", headroom::cpu::simd_target_name());
  return RUN_ALL_TESTS();
}
