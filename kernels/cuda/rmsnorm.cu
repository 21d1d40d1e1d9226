// out = x / sqrt(mean(x²) + eps) · weight, one block a row; with a residual, residual += x first.
#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packed_store.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 256;

HEADROOM_KERNEL(kThreads, 1) rmsnorm_kernel(HEADROOM_PARAMS RmsnormArgs args) {
  const int64_t row = block_x();
  const bool adds = args.residual.data != nullptr;
  const float* x = args.x.data + row * args.x.stride;
  float* residual = args.residual.data + row * args.residual.stride;
  float squares = 0.0f;
  for (int64_t i = thread_id(); i < args.x.cols; i += kThreads) {
    float value = x[i];
    if (adds) {
      value += residual[i];
      residual[i] = value;
    }
    squares = fmaf(value, value, squares);
  }
  const float sum = block_sum<kThreads>(squares, reinterpret_cast<float*>(shared_memory()));
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(args.x.cols) + args.eps);
  const float* normed = adds ? residual : x;  // complete: the sum above waited for all threads
  float* out = args.out.data + row * args.out.stride;
  for (int64_t i = thread_id() * 2; i < args.x.cols; i += kThreads * 2) {
    const bool pair = i + 1 < args.x.cols;
    const float a = args.weight[i] * (normed[i] * scale);
    const float b = pair ? args.weight[i + 1] * (normed[i + 1] * scale) : 0.0f;
    out[i] = a;
    if (pair) out[i + 1] = b;
    store_packed(args.packed, row, i, a, b);
  }
  store_packed_padding(args.packed, row, kThreads);
}

}  // namespace

void rmsnorm(const RmsnormArgs& args, cudaStream_t stream) {
  constexpr size_t kSharedBytes = kThreads / kWarpLanes * sizeof(float);
  launch("rmsnorm", rmsnorm_kernel, Grid{args.x.rows}, kThreads, kSharedBytes, stream, args);
}

}  // namespace headroom::cuda
