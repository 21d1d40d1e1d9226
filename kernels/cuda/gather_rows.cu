// out[i, :] = x[rows[i], :]; and, for a gemm whose input was not packed by the op that made it, packing alone.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packed_store.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 256;

HEADROOM_KERNEL(kThreads, 1) gather_rows_kernel(HEADROOM_PARAMS GatherRowsArgs args) {
  const int64_t row = block_x();
  const int64_t source = args.rows == nullptr ? row : args.rows[row];
  const float* from = args.x.data + source * args.x.stride;
  float* to = args.out.data + row * args.out.stride;
  for (int64_t i = thread_id() * 2; i < args.x.cols; i += kThreads * 2) {
    const bool pair = i + 1 < args.x.cols;
    const float a = from[i];
    const float b = pair ? from[i + 1] : 0.0f;
    if (args.out.data != nullptr) {
      to[i] = a;
      if (pair) to[i + 1] = b;
    }
    store_packed(args.packed, row, i, a, b);
  }
  store_packed_padding(args.packed, row, kThreads);
}

}  // namespace

void gather_rows(const GatherRowsArgs& args, cudaStream_t stream) {
  launch("gather_rows", gather_rows_kernel, Grid{args.out.rows}, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
