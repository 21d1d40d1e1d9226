// out[t, f] = silu(gate_up[t, f]) · gate_up[t, F + f], where gemm did not do it on its way.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packed_store.h"
#include "kernels/cuda/silu.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 256;

HEADROOM_KERNEL(kThreads, 1) silu_mul_kernel(HEADROOM_PARAMS SiluMulArgs args) {
  const int64_t row = block_x();
  const int64_t cols = args.out.cols;
  const float* gate = args.gate_up.data + row * args.gate_up.stride;
  const float* up = gate + cols;
  float* out = args.out.data + row * args.out.stride;
  if (block_y() == 0) store_packed_padding(args.packed, row, kThreads);
  const int64_t i = (static_cast<int64_t>(block_y()) * kThreads + thread_id()) * 2;
  if (i >= cols) return;
  const bool pair = i + 1 < cols;
  const float a = silu(gate[i]) * up[i];
  const float b = pair ? silu(gate[i + 1]) * up[i + 1] : 0.0f;
  out[i] = a;
  if (pair) out[i + 1] = b;
  store_packed(args.packed, row, i, a, b);
}

}  // namespace

void silu_mul(const SiluMulArgs& args, cudaStream_t stream) {
  const Grid grid{args.out.rows, ceil_div(args.out.cols, 2 * kThreads)};
  launch("silu_mul", silu_mul_kernel, grid, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
