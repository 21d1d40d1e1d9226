#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "kernels/quantize.h"

namespace headroom {
namespace {

int64_t total_rows(std::span<const HostWeight> parts) {
  int64_t rows = 0;
  for (const HostWeight& part : parts) rows += part.rows;
  return rows;
}

DType common_dtype(std::span<const HostWeight> parts) {
  const bool same =
      std::all_of(parts.begin(), parts.end(), [&](const HostWeight& p) { return p.dtype == parts[0].dtype; });
  return same ? parts[0].dtype : DType::kF32;
}

// Element i of a row that may lie at any alignment.
template <class T>
T load_unaligned(const std::byte* from, int64_t i) {
  T value;
  std::memcpy(&value, from + i * sizeof(T), sizeof(T));
  return value;
}

float load_as_f32(const std::byte* from, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return load_unaligned<float>(from, i);
    case DType::kBF16:
      return bf16_to_f32(load_unaligned<uint16_t>(from, i));
    case DType::kF16:
      return f16_to_f32(load_unaligned<uint16_t>(from, i));
    case DType::kI8:
    case DType::kI4:
      return quantized_row_element(from, dtype, i);
  }
  return 0.0f;
}

// The row `row` of the stack, and its type.
struct Row {
  const std::byte* data;
  DType dtype;
};
Row find_row(std::span<const HostWeight> parts, int64_t row) {
  for (const HostWeight& part : parts) {
    if (row < part.rows)
      return {part.data + static_cast<size_t>(row) * weight_row_bytes(part.dtype, part.cols), part.dtype};
    row -= part.rows;
  }
  CHECK(false) << "row past the end of the stack";
  return {};
}

// Writes a panel column by column from rows of the same type. A block of columns at a time keeps the lines of all rows
// in L1.
template <class T>
void interleave_rows(T* panel, std::span<const Row> rows, int64_t cols) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  for (int64_t begin = 0; begin < cols; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, cols);
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t k = begin; k < end; ++k) panel[k * kPanelRows + static_cast<int64_t>(r)] = load_unaligned<T>(rows[r].data, k);
    }
  }
}

// Two bf16 of a row stay neighbours: they move as one. Behind an odd number of columns the panel has a zero.
void interleave_pairs(std::byte* panel, std::span<const Row> rows, int64_t cols) {
  interleave_rows(reinterpret_cast<uint32_t*>(panel), rows, cols / 2);
  if (cols % 2 == 0) return;
  auto* last = reinterpret_cast<uint16_t*>(panel) + cols / 2 * 2 * kPanelRows;
  for (size_t r = 0; r < rows.size(); ++r) last[2 * r] = load_unaligned<uint16_t>(rows[r].data, cols - 1);
}

// The same for quantised rows, group by group.
template <DType dtype, bool in_pairs>
void interleave_groups(std::byte* panel, std::span<const Row> rows, int64_t cols) {
  const size_t group_bytes = dtype == DType::kI8 ? kInt8GroupBytes : kInt4GroupBytes;
  for (int64_t g = 0; g < (cols + kQuantGroup - 1) / kQuantGroup; ++g, panel += panel_group_bytes(dtype)) {
    std::byte* elements = panel + kPanelScaleBytes;
    for (size_t r = 0; r < rows.size(); ++r) {
      const std::byte* group = rows[r].data + static_cast<size_t>(g) * group_bytes;
      std::memcpy(panel + 2 * r, group, 2);
      for (int64_t k = 0; k < kQuantGroup; ++k) {
        const auto [byte, shift] = quant_place(dtype, in_pairs, static_cast<int64_t>(r), k);
        if constexpr (dtype == DType::kI8) {
          elements[byte] = static_cast<std::byte>(int8_group_element(group, k));
        } else {
          const auto bits = static_cast<uint32_t>(int4_group_element(group, k) + (in_pairs ? kInt4PairsZero : 0)) & 15u;
          elements[byte] |= static_cast<std::byte>(bits << shift);
        }
      }
    }
  }
}

}  // namespace

PackedWeight::PackedWeight(std::span<const HostWeight> parts, ThreadPool& pool, CpuMemoryPieces& memory, bool in_pairs)
    : rows_(total_rows(parts)),
      cols_(parts[0].cols),
      dtype_(common_dtype(parts)),
      in_pairs_(in_pairs && (dtype_ == DType::kBF16 || is_quantized(dtype_))),
      memory_(memory.take(static_cast<size_t>(panels()) * panel_bytes())) {
  pool.for_range(panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(parts, p);
  });
}

void PackedWeight::pack_panel(std::span<const HostWeight> parts, int64_t p) {
  std::byte* panel = memory_.data + p * panel_bytes();  // fresh memory: the rows past N stay zero
  Row rows[kPanelRows];
  const int64_t count = std::min(kPanelRows, rows_ - p * kPanelRows);
  bool convert = false;
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = find_row(parts, p * kPanelRows + r);
    convert |= rows[r].dtype != dtype_;
  }
  const std::span<const Row> used(rows, static_cast<size_t>(count));
  if (convert) {
    float* to = reinterpret_cast<float*>(panel);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t k = 0; k < cols_; ++k) to[k * kPanelRows + r] = load_as_f32(rows[r].data, rows[r].dtype, k);
    }
  } else if (is_quantized(dtype_)) {
    const bool wide = dtype_ == DType::kI8;
    (wide ? in_pairs_ ? interleave_groups<DType::kI8, true> : interleave_groups<DType::kI8, false>
          : in_pairs_ ? interleave_groups<DType::kI4, true> : interleave_groups<DType::kI4, false>)(panel, used, cols_);
  } else if (in_pairs_) {
    interleave_pairs(panel, used, cols_);
  } else if (dtype_ == DType::kF32) {
    interleave_rows(reinterpret_cast<float*>(panel), used, cols_);
  } else {
    interleave_rows(reinterpret_cast<uint16_t*>(panel), used, cols_);
  }
}

}  // namespace headroom
