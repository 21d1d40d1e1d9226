// Per head, one warp each: RMSNorm where the model has it, rotation by the position, then k and v rounded into the row's slot
// of its page. q and k change in place, v is only copied.
#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;

HEADROOM_DEVICE void norm_head(float* head, int dim, const float* weight, float eps, int lane) {
  float squares = 0.0f;
  for (int i = lane; i < dim; i += kWarpLanes) squares = fmaf(head[i], head[i], squares);
  const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(dim) + eps);
  for (int i = lane; i < dim; i += kWarpLanes) head[i] = weight[i] * (head[i] * scale);
}

// (a, b) -> (a·cos − b·sin, b·cos + a·sin) for the pairs (i, i + half).
HEADROOM_DEVICE void rotate_head(float* head, const float* cosines, int half, int lane) {
  for (int i = lane; i < half; i += kWarpLanes) {
    const float a = head[i];
    const float b = head[half + i];
    const float cosine = cosines[i];
    const float sine = cosines[half + i];
    head[i] = a * cosine - b * sine;
    head[half + i] = b * cosine + a * sine;
  }
}

template <DType kType>
HEADROOM_DEVICE void write_head(std::byte* to, const float* head, int dim, int lane) {
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  for (int i = lane; i < dim / 2; i += kWarpLanes) pairs[i] = pack_halves<kType>(head[2 * i], head[2 * i + 1]);
}

// Heads are numbered as the row has them: Q of q, G of k, G of v.
template <DType kType>
HEADROOM_KERNEL(kThreads, 1) rope_kv_kernel(HEADROOM_PARAMS RopeKvArgs args) {
  const Pages& pages = args.pages;
  const int64_t row = block_x();
  const int lane = thread_id() % kWarpLanes;
  const int index = block_y() * kWarps + thread_id() / kWarpLanes;
  if (index >= args.query_heads + 2 * pages.kv_heads) return;
  const int kv_index = index - args.query_heads;  // below 0: a query head
  const bool is_value = kv_index >= pages.kv_heads;
  float* head = args.qkv.data + row * args.qkv.stride + static_cast<int64_t>(index) * pages.head_dim;
  const float* norm = kv_index < 0 ? args.q_norm : args.k_norm;
  if (!is_value && norm != nullptr) {
    norm_head(head, pages.head_dim, norm, args.norm_eps, lane);
    warp_sync();
  }
  if (!is_value && args.rope.cols > 0) {
    rotate_head(head, args.rope.data + row * args.rope.stride, static_cast<int>(args.rope.cols / 2), lane);
    warp_sync();
  }
  const int32_t page = args.row_pages[row];
  if (kv_index < 0 || page < 0) return;
  const int kv_head = is_value ? kv_index - pages.kv_heads : kv_index;
  const int slot = args.positions[row] % pages.page_tokens;
  const int64_t values = is_value ? page_row_offset(pages.kv_heads, 0, pages.page_tokens, pages.head_dim) : 0;
  const int64_t offset = values + page_row_offset(kv_head, slot, pages.page_tokens, pages.head_dim);
  std::byte* to = pages.data + static_cast<size_t>(page) * pages.page_stride_bytes + offset * 2;
  write_head<kType>(to, head, pages.head_dim, lane);
}

}  // namespace

void rope_kv_write(const RopeKvArgs& args, cudaStream_t stream) {
  const auto kernel = args.pages.dtype == DType::kBF16 ? rope_kv_kernel<DType::kBF16> : rope_kv_kernel<DType::kF16>;
  const Grid grid{args.qkv.rows, ceil_div(args.query_heads + 2 * args.pages.kv_heads, kWarps)};
  launch("rope_kv_write", kernel, grid, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
