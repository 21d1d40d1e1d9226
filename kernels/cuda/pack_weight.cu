// From rows as a checkpoint stores them to the tiles that gemm reads. Once per weight, at load.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 256;

HEADROOM_KERNEL(kThreads, 1) pack_weight_kernel(HEADROOM_PARAMS PackWeightArgs args) {
  const int64_t row = block_x(), n = args.first_row + row;
  const int64_t place = args.gate_rows == 0 ? n : gate_up_place(n, args.gate_rows);
  for (int64_t col = thread_id(); col < args.cols; col += kThreads) {
    args.to[weight_offset(place, col, args.cols)] = args.from[row * args.cols + col];
  }
}

}  // namespace

void pack_weight(const PackWeightArgs& args, cudaStream_t stream) {
  launch("pack_weight", pack_weight_kernel, Grid{args.rows}, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
