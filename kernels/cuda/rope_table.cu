// Cosines and sines of a step's positions. The angle is rounded to fp32 first, as the reference implementations do; the cosine
// is taken in double, because fp32 functions lose the angle's last bits at large positions.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

constexpr int kThreads = 128;

HEADROOM_KERNEL(kThreads, 1) rope_table_kernel(HEADROOM_PARAMS RopeTableArgs args) {
  const int64_t row = block_x();
  const int64_t half = args.out.cols / 2;
  float* out = args.out.data + row * args.out.stride;
  for (int64_t i = thread_id(); i < half; i += kThreads) {
    const float angle = static_cast<float>(args.positions[row]) * args.inv_freq[i];
    out[i] = args.factor * static_cast<float>(cos(static_cast<double>(angle)));
    out[half + i] = args.factor * static_cast<float>(sin(static_cast<double>(angle)));
  }
}

}  // namespace

void rope_table(const RopeTableArgs& args, cudaStream_t stream) {
  launch("rope_table", rope_table_kernel, Grid{args.out.rows}, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
