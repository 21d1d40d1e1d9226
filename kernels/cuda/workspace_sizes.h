// What the ops of the CUDA backend need for themselves in steps up to some limits, by arithmetic. Bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/decode_step.h"

namespace headroom::cuda {

// Of states of attention that wait to be merged; tiles whose states do not fit are not cut.
constexpr int64_t kPartialFloatsMax = (int64_t{128} << 20) / 4;

struct WorkspaceSizes {
  size_t packed = 0;  // activations as gemm reads them, at each of two places
  size_t gemm_partials = 0, gemm_arrivals = 0;
  size_t attention_partials = 0, attention_arrivals = 0;
  size_t samples = 0;  // what was drawn
  size_t staging = 0;  // the arrays of a step that is not replayed
  DecodeStepLimits decode;

  size_t total() const {
    return 2 * packed + gemm_partials + gemm_arrivals + attention_partials + attention_arrivals + samples + staging +
           DecodeStep::device_bytes(decode);
  }
};

WorkspaceSizes workspace_sizes(const StepLimits& limits, int32_t multiprocessors);

}  // namespace headroom::cuda
