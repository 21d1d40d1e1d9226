// Per head, one warp each: RMSNorm where the model has it, rotation by the position, then k and v rounded into the row's slot
// of its page. q and k change in place, v is only copied. int8 has the bits of quantize.h, which every backend stores.
#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"
#include "kernels/quantize.h"

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
HEADROOM_DEVICE void write_halves(std::byte* to, const float* head, int dim, int lane) {
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  for (int i = lane; i < dim / 2; i += kWarpLanes) pairs[i] = pack_halves<kType>(head[2 * i], head[2 * i + 1]);
}

// quantize_int8() by a warp.
HEADROOM_DEVICE void write_int8(std::byte* to, float* scale_to, const float* head, int dim, int lane) {
  uint32_t largest_bits = 0;  // magnitudes order as their bits do, with NaN above all
  const auto take = [&](float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  };
  for (int i = lane; i < dim; i += kWarpLanes) take(head[i]);
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) take(shuffle_xor(std::bit_cast<float>(largest_bits), lanes));
  const Int8Scale scale = int8_scale(std::bit_cast<float>(largest_bits));
  for (int i = lane; i < dim; i += kWarpLanes) to[i] = static_cast<std::byte>(quantized_int8(head[i], scale));
  if (lane == 0) *scale_to = scale.value;
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
  const int64_t rows = page_row(pages.kv_heads, 0, pages.page_tokens);
  const int64_t page_row_index = page_row(kv_head, slot, pages.page_tokens) + (is_value ? rows : 0);
  std::byte* begin = pages.data + static_cast<size_t>(page) * pages.page_stride_bytes;
  if constexpr (kType == DType::kI8) {
    float* scales = reinterpret_cast<float*>(begin + 2 * rows * pages.head_dim);
    write_int8(begin + page_row_index * pages.head_dim, scales + page_row_index, head, pages.head_dim, lane);
  } else {
    write_halves<kType>(begin + page_row_index * pages.head_dim * 2, head, pages.head_dim, lane);
  }
}

}  // namespace

void rope_kv_write(const RopeKvArgs& args, cudaStream_t stream) {
  const auto kernel = args.pages.dtype == DType::kBF16  ? rope_kv_kernel<DType::kBF16>
                      : args.pages.dtype == DType::kF16 ? rope_kv_kernel<DType::kF16>
                                                        : rope_kv_kernel<DType::kI8>;
  const Grid grid{args.qkv.rows, ceil_div(args.query_heads + 2 * args.pages.kv_heads, kWarps)};
  launch("rope_kv_write", kernel, grid, kThreads, 0, stream, args);
}

}  // namespace headroom::cuda
