#include "tests/sim/bit_exact.h"

namespace headroom {

std::vector<BitExactVariant> bit_exact_variants() {
  return {{"bf16", DType::kBF16},
          {"fp16", DType::kF16},
          {"fp32", DType::kF32},
          {"bf16_window", DType::kBF16, 40},
          {"int8", DType::kI8},
          {"bf16_int8_weights", DType::kBF16, 0, DType::kI8},
          {"int8_int4_weights", DType::kI8, 0, DType::kI4},
          {"bf16_pairs", DType::kBF16, 0, DType::kBF16, true},
          {"bf16_window_pairs", DType::kBF16, 40, DType::kBF16, true},
          {"int8_pairs", DType::kI8, 0, DType::kI8, true},
          {"fp16_int4_weights_pairs", DType::kF16, 0, DType::kI4, true}};
}

std::vector<std::unique_ptr<Backend>> bit_exact_backends(const BitExactVariant& variant) {
  std::vector<std::unique_ptr<Backend>> backends;
  if (variant.bf16_activations && !cpu_multiplies_bf16()) return backends;
  for (const int threads : {1, 2}) backends.push_back(make_cpu_backend({.threads = threads, .bf16_activations = variant.bf16_activations}));
  return backends;
}

}  // namespace headroom
