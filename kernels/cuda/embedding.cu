// A token's row is scattered over the tiles of the packed table: the tied output weight serves as the embedding.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 256;

template <DType kType>
HEADROOM_KERNEL(kThreads, 1) embedding_kernel(HEADROOM_PARAMS EmbeddingArgs args) {
  const int64_t row = block_x();
  int64_t token = args.tokens[row];
  if (token < 0) token = args.results[-1 - token].token;  // drawn by the step before, unknown to the host so far
  if (token < 0) token = 0;                               // its logits were no numbers: what comes of it is dropped
  for (int64_t col = thread_id(); col < args.out.cols; col += kThreads) {
    args.out.data[row * args.out.stride + col] =
        half_to_float<kType>(args.table.data[weight_offset(token, col, args.table.cols)]);
  }
}

}  // namespace

void embedding(const EmbeddingArgs& args, cudaStream_t stream) {
  const auto kernel = args.table.dtype == DType::kBF16 ? embedding_kernel<DType::kBF16> : embedding_kernel<DType::kF16>;
  launch("embedding", kernel, Grid{args.out.rows}, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
