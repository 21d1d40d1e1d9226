// Analysis 6: the time of a decode step against the bytes of KV that it reads, for several contexts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/analysis/variants.h"
#include "kernels/dtype.h"

namespace headroom {

constexpr size_t kDecodeSteps = 61;  // of one context; fewer where they take long

struct DecodePoint {
  int32_t kv_heads = 0;
  int32_t context_tokens = 0;
  int64_t kv_bytes = 0;          // that the step reads: context · bytes per token
  double step_seconds = 0;       // of the fastest of several
  double attention_seconds = 0;  // of the fastest attention of several steps, all layers
};

// A step of one sequence at each of `contexts` (ascending, at most the model's), over pages of random numbers.
std::vector<DecodePoint> measure_decode(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                                        std::span<const int32_t> contexts);

}  // namespace headroom
