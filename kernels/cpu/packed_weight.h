// A weight [N, K] in panels of kPanelRows output rows: [N / kPanelRows][K][kPanelRows], rows past N zero. K is
// sequential within a panel, so that a matrix-vector product streams memory in one direction, and one vector register
// holds one k of several outputs.
//
// Quantised: [N / kPanelRows][K / kQuantGroup] groups of the rows' fp16 scales, then their elements: int8 [kQuantGroup][kPanelRows];
// int4 [kQuantGroup][kPanelRows / 2], where byte i has row i in its low half and row i + 16 in its high half, as two's complement.
//
// In pairs, for CPUs that multiply two bf16 at once: two k of a row are neighbours. bf16 [K / 2][kPanelRows][2], behind an odd K a zero. The
// elements of a group lie as they are widened without being moved: int8 [kQuantGroup / 2][4][2][4][2], of row 16 b + 4 a + c at [k / 2][a][b][c][k % 2];
// int4 [kQuantGroup / 4][16][2] words of 16 bits, that at [k / 4][row % 16][k % 2] with the element in bits 4 s … 4 s + 3, s = k / 2 % 2 * 2 + row / 16,
// less kInt4PairsZero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace headroom {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kPanelScaleBytes = kPanelRows * 2;  // of a group

// One group of a panel of kI8 or kI4.
constexpr size_t panel_group_bytes(DType dtype) {
  return static_cast<size_t>(kPanelScaleBytes + kQuantGroup * kPanelRows / (dtype == DType::kI8 ? 1 : 2));
}

constexpr int kInt4PairsZero = 8;

// Where a group of a panel has an element: in bits [shift, shift + 8 or 4) of a byte behind the scales.
struct QuantPlace {
  int64_t byte;
  int shift;
};
constexpr QuantPlace quant_place(DType dtype, bool in_pairs, int64_t row, int64_t k) {
  const int64_t lane = row % 16, half = row / 16;
  if (dtype == DType::kI8) {
    if (!in_pairs) return {k * kPanelRows + row, 0};
    return {k / 2 * 2 * kPanelRows + lane / 4 * 16 + half * 8 + lane % 4 * 2 + k % 2, 0};
  }
  if (!in_pairs) return {k * kPanelRows / 2 + lane, static_cast<int>(half * 4)};
  return {k / 4 * 2 * kPanelRows + lane * 4 + k % 2 * 2 + k / 2 % 2, static_cast<int>(half * 4)};
}

class PackedWeight final : public Weight {
 public:
  // Stacks the parts by rows. They must have the same cols; parts of different types become fp32. `in_pairs`: where the type allows.
  PackedWeight(std::span<const HostWeight> parts, ThreadPool& pool, CpuMemoryPieces& memory, bool in_pairs);

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t bytes() const override { return memory_.bytes; }
  DType dtype() const { return dtype_; }
  bool in_pairs() const { return in_pairs_; }
  int64_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  const std::byte* panel(int64_t p) const { return memory_.data + p * panel_bytes(); }
  size_t panel_bytes() const {
    if (!is_quantized(dtype_)) return static_cast<size_t>(in_pairs_ ? (cols_ + 1) / 2 * 2 : cols_) * kPanelRows * dtype_bytes(dtype_);
    return static_cast<size_t>((cols_ + kQuantGroup - 1) / kQuantGroup) * panel_group_bytes(dtype_);
  }

 private:
  void pack_panel(std::span<const HostWeight> parts, int64_t p);

  int64_t rows_;
  int64_t cols_;
  DType dtype_;
  bool in_pairs_;
  CpuMemoryPiece memory_;
};

}  // namespace headroom
