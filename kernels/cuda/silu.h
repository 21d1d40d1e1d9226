// x · sigmoid(x), through e^-|x|, which cannot overflow.
#pragma once

#include <math.h>

#include "kernels/cuda/ptx.h"

namespace headroom::cuda {

HEADROOM_DEVICE float silu(float x) {
  const float e = expf(-fabsf(x));
  return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

}  // namespace headroom::cuda
