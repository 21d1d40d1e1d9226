// Writes activations as gemm reads them, beside their fp32 form.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.h"

namespace headroom::cuda {

// Elements (row, col) and (row, col + 1), col even. Does nothing where no packed form is wanted.
HEADROOM_DEVICE void store_packed(const Packed& packed, int64_t row, int64_t col, float x, float y) {
  if (packed.data == nullptr) return;
  const uint32_t halves = packed.dtype == DType::kBF16 ? pack_halves<DType::kBF16>(x, y) : pack_halves<DType::kF16>(x, y);
  *reinterpret_cast<uint32_t*>(packed.data + activation_offset(row, col, packed.cols)) = halves;
}

// Element (row, col) alone.
HEADROOM_DEVICE void store_packed(const Packed& packed, int64_t row, int64_t col, float x) {
  if (packed.data == nullptr) return;
  const uint32_t halves = packed.dtype == DType::kBF16 ? pack_halves<DType::kBF16>(x, 0.0f) : pack_halves<DType::kF16>(x, 0.0f);
  packed.data[activation_offset(row, col, packed.cols)] = static_cast<uint16_t>(halves);
}

// The zeros between the last column and the multiple of kDepthStep above it, by all `threads` of a block.
HEADROOM_DEVICE void store_packed_padding(const Packed& packed, int64_t row, int threads) {
  if (packed.data == nullptr) return;
  const int64_t end = depth_tiles(packed.cols) * kMmaDepth;
  for (int64_t col = packed.cols + thread_id(); col < end; col += threads) {
    packed.data[activation_offset(row, col, packed.cols)] = 0;
  }
}

}  // namespace headroom::cuda
