// Views of row-major memory. They own nothing: the caller keeps the memory alive.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace headroom {

// A [rows, cols] matrix of fp32 activations in the backend's memory, rows `stride` elements apart.
struct Matrix {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  Matrix() = default;
  Matrix(float* data, int64_t rows, int64_t cols) : Matrix(data, rows, cols, cols) {}
  Matrix(float* data, int64_t rows, int64_t cols, int64_t stride) : data(data), rows(rows), cols(cols), stride(stride) {}
  float* row(int64_t r) const { return data + r * stride; }
};

// A vector of fp32 parameters (norm weights, biases) in the backend's memory. An empty one means "not there".
using Vector = std::span<const float>;

// Part of a weight as the checkpoint stores it: [rows, cols] row-major in host memory, weight_row_bytes() from row to row, any
// alignment.
struct HostWeight {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};

}  // namespace headroom
