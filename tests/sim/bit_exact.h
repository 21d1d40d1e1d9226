// What bit_exact_test runs on: the build links bit_exact_cpu.cc or bit_exact_cuda.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace headroom {

struct BitExactVariant {
  const char* name;
  DType kv;
  int32_t window_tokens = 0;
  DType weights = DType::kBF16;
  bool bf16_activations = false;  // of the CPU backend
};
std::vector<BitExactVariant> bit_exact_variants();

// The first one makes the reference; schedules run on any of them. None: this machine cannot run the variant.
std::vector<std::unique_ptr<Backend>> bit_exact_backends(const BitExactVariant& variant);

}  // namespace headroom
