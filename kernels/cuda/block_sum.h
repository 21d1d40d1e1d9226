// Sums over a block of threads, in an order that depends on the number of threads alone.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {

HEADROOM_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

// The sum of all threads' values, for all of them. `parts`: kThreads / 32 floats of shared memory, free again after the next
// block_sync.
template <int kThreads>
HEADROOM_DEVICE float block_sum(float value, float* parts) {
  constexpr int kWarps = kThreads / kWarpLanes;
  value = warp_sum(value);
  if (thread_id() % kWarpLanes == 0) parts[thread_id() / kWarpLanes] = value;
  block_sync();
  float sum = parts[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) sum += parts[warp];
  return sum;
}

}  // namespace headroom::cuda
