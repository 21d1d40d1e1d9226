#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/reference.h"

namespace headroom {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// ---- RMSNorm

TEST(RmsNorm, MatchesTheReferenceAtEveryLength) {
  const auto backend = make_cpu_backend({.threads = 2});
  for (const int64_t dim : {1, 3, 8, 31, 32, 33, 64, 100, 576, 4096}) {
    for (const int64_t rows : {1, 2, 40}) {
      std::vector<float> x = reference::random_floats(static_cast<size_t>(rows * dim), 1, 3.0f);
      const std::vector<float> weight = reference::random_floats(static_cast<size_t>(dim), 2);
      std::vector<float> out(x.size());
      backend->rmsnorm(Matrix(out.data(), rows, dim), Matrix(x.data(), rows, dim), weight, 1e-5f);
      EXPECT_LE(reference::largest_difference(out, reference::rmsnorm(x, weight, 1e-5)), 3e-6) << rows << " x " << dim;
    }
  }
}

TEST(RmsNorm, EpsIsInsideTheRoot) {
  const auto backend = make_cpu_backend({.threads = 1});
  std::vector<float> x(64, 1e-3f), out(64);
  const std::vector<float> weight(64, 1.0f);
  backend->rmsnorm(Matrix(out.data(), 1, 64), Matrix(x.data(), 1, 64), weight, 1e-6f);
  EXPECT_NEAR(out[0], std::sqrt(0.5), 1e-6);  // 1e-3 / sqrt(1e-6 + 1e-6)
}

TEST(RmsNorm, WorksInPlaceAndWithTheResidual) {
  const auto backend = make_cpu_backend({.threads = 2});
  const int64_t rows = 30, dim = 576;
  const std::vector<float> x = reference::random_floats(rows * dim, 3), start = reference::random_floats(rows * dim, 4);
  const std::vector<float> weight = reference::random_floats(dim, 5);
  std::vector<float> residual = start, added = x, out(rows * dim), in_place(rows * dim);
  backend->add_rmsnorm(Matrix(out.data(), rows, dim), Matrix(residual.data(), rows, dim),
                       Matrix(added.data(), rows, dim), weight, 1e-5f);
  for (size_t i = 0; i < x.size(); ++i) {
    in_place[i] = x[i] + start[i];
    ASSERT_EQ(residual[i], in_place[i]);
  }
  EXPECT_LE(reference::largest_difference(out, reference::rmsnorm(residual, weight, 1e-5)), 3e-6);
  const Matrix same(in_place.data(), rows, dim);
  backend->rmsnorm(same, same, weight, 1e-5f);
  EXPECT_EQ(reference::bits(in_place), reference::bits(out));
}

TEST(RmsNorm, ARowHasTheSameBitsInEveryBatch) {
  const int64_t rows = 200, dim = 100;
  std::vector<float> x = reference::random_floats(rows * dim, 6), out(rows * dim);
  const std::vector<float> weight = reference::random_floats(dim, 7);
  make_cpu_backend({.threads = 3})->rmsnorm(Matrix(out.data(), rows, dim), Matrix(x.data(), rows, dim), weight, 1e-5f);
  const auto alone = make_cpu_backend({.threads = 1});
  std::vector<float> row(dim);
  for (int64_t t = 0; t < rows; ++t) {
    alone->rmsnorm(Matrix(row.data(), 1, dim), Matrix(x.data() + t * dim, 1, dim), weight, 1e-5f);
    ASSERT_EQ(reference::bits(row), reference::bits(std::span(out).subspan(static_cast<size_t>(t * dim), dim)));
  }
}

// ---- silu_mul

TEST(SiluMul, MatchesTheReferenceOverTheWholeRange) {
  const auto backend = make_cpu_backend({.threads = 2});
  for (const int64_t cols : {1, 15, 16, 33, 1536}) {
    const int64_t rows = 20;
    std::vector<float> gate_up = reference::random_floats(static_cast<size_t>(rows * cols * 2), 8, 20.0f);
    const float extremes[] = {0.0f, -0.0f, 90.0f, -90.0f, 1e30f, -1e30f, -126.5f, 1e-30f};
    for (size_t i = 0; i < std::size(extremes); ++i) gate_up[i * static_cast<size_t>(cols * 2)] = extremes[i];
    std::vector<float> out(static_cast<size_t>(rows * cols));
    backend->silu_mul(Matrix(out.data(), rows, cols), Matrix(gate_up.data(), rows, cols * 2));
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t f = 0; f < cols; ++f) {
        const double gate = gate_up[t * cols * 2 + f], up = gate_up[t * cols * 2 + cols + f];
        const double expected = gate / (1.0 + std::exp(-gate)) * up;
        // A few roundings, and that of gate · log2(e) in the exponent, which grows with the gate. Measured: at most
        // half of this.
        ASSERT_NEAR(out[t * cols + f], expected, (1e-6 + 1.2e-7 * std::abs(gate)) * std::abs(expected) + 1e-30)
            << gate << " · " << up;
      }
    }
  }
}

TEST(SiluMul, ALaneHasTheSameBitsWhereverItLies) {
  const auto backend = make_cpu_backend({.threads = 1});
  std::vector<float> gate_up = reference::random_floats(2 * 37, 9, 3.0f), whole(37);
  backend->silu_mul(Matrix(whole.data(), 1, 37), Matrix(gate_up.data(), 1, 74));
  for (int64_t f = 0; f < 37; ++f) {
    float pair[2] = {gate_up[f], gate_up[37 + f]}, out = 0.0f;
    backend->silu_mul(Matrix(&out, 1, 1), Matrix(pair, 1, 2));
    ASSERT_EQ(std::bit_cast<uint32_t>(out), std::bit_cast<uint32_t>(whole[f]));
  }
}

// ---- RoPE

TEST(RopeTable, IsTheCosineAndSineOfTheFp32Angle) {
  const auto backend = make_cpu_backend({.threads = 2});
  const std::vector<float> inv_freq = {1.0f, 0.31622776f, 0.1f, 1e-4f};
  const std::vector<int32_t> positions = {0, 1, 2, 4095, 131071};
  std::vector<float> out(positions.size() * 8);
  backend->rope_table(Matrix(out.data(), 5, 8), positions, inv_freq, 1.25f);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < 4; ++i) {
      const double angle = static_cast<float>(static_cast<float>(positions[t]) * inv_freq[i]);
      EXPECT_NEAR(out[t * 8 + i], 1.25 * std::cos(angle), 2e-7);
      EXPECT_NEAR(out[t * 8 + 4 + i], 1.25 * std::sin(angle), 2e-7);
    }
  }
}

struct RopeCase {
  int32_t query_heads, kv_heads, head_dim, rotary_dim;
  bool norms;
};

class RopeKvWrite : public testing::TestWithParam<RopeCase> {};

// Two sequences: rows 0..4 at positions 30..34 (across a page of 32), row 5 at position 3.
TEST_P(RopeKvWrite, NormsTurnsAndStoresWhereThePageTableSays) {
  const RopeCase c = GetParam();
  const auto backend = make_cpu_backend({.threads = 2});
  const int64_t cols = int64_t{c.query_heads + 2 * c.kv_heads} * c.head_dim;
  const std::vector<int32_t> positions = {30, 31, 32, 33, 34, 3}, first_row = {0, 5, 6}, tables = {4, 1, 2},
                             table_begin = {0, 2, 3}, tokens(6);
  const BatchView batch{6, tokens, positions, first_row, tables, table_begin};
  std::vector<float> rope(static_cast<size_t>(6 * c.rotary_dim));
  for (size_t i = 0; i < rope.size(); ++i) rope[i] = std::sin(0.7f * static_cast<float>(i) + 0.3f);
  const std::vector<float> q_norm = reference::random_floats(c.head_dim, 10),
                           k_norm = reference::random_floats(c.head_dim, 11);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    const std::vector<float> before = reference::random_floats(static_cast<size_t>(6 * cols), 12);
    std::vector<float> qkv = before;
    const size_t page_elements = size_t{2} * c.kv_heads * 32 * c.head_dim;
    const size_t scales_at = page_elements * dtype_bytes(type);
    const size_t scale_bytes = type == DType::kI8 ? size_t{2} * c.kv_heads * 32 * 4 : 0;
    const size_t stride = scales_at + scale_bytes + 128;  // other layers lie between a layer's pages
    const auto pool = backend->allocate(stride * 5);
    std::memset(pool->data(), 0xFF, stride * 5);  // NaN in every type
    const KvLayer layer{pool->data(), stride, type, c.kv_heads, 32, c.head_dim};
    RopeKvParams params;
    params.query_heads = c.query_heads;
    params.kv_heads = c.kv_heads;
    params.head_dim = c.head_dim;
    params.norm_eps = 1e-6f;
    if (c.rotary_dim > 0) params.rope_table = Matrix(rope.data(), 6, c.rotary_dim);
    if (c.norms) {
      params.q_norm = q_norm;
      params.k_norm = k_norm;
    }
    backend->rope_kv_write(Matrix(qkv.data(), 6, cols), layer, batch, params);

    std::vector<bool> written(stride * 5 / dtype_bytes(type));
    for (int64_t t = 0; t < 6; ++t) {
      const int32_t page = t == 5 ? 2 : (positions[t] < 32 ? 4 : 1);
      for (int32_t h = 0; h < c.query_heads + 2 * c.kv_heads; ++h) {
        const bool is_v = h >= c.query_heads + c.kv_heads;
        const bool is_q = h < c.query_heads;
        const std::span<const float> in(&before[t * cols + h * c.head_dim], c.head_dim);
        std::vector<double> expected(in.begin(), in.end());
        if (!is_v && c.norms) expected = reference::rmsnorm(in, is_q ? q_norm : k_norm, 1e-6);
        const int32_t half = c.rotary_dim / 2;
        for (int32_t i = 0; i < half && !is_v; ++i) {
          const double cosine = rope[t * c.rotary_dim + i], sine = rope[t * c.rotary_dim + half + i];
          const double a = expected[i], b = expected[half + i];
          expected[i] = a * cosine - b * sine;
          expected[half + i] = a * sine + b * cosine;
        }
        const std::span<const float> row(&qkv[t * cols + h * c.head_dim], c.head_dim);
        ASSERT_LE(reference::largest_difference(row, expected), 3e-6) << "row " << t << ", head " << h;
        if (is_q) continue;
        const int32_t g = is_v ? h - c.query_heads - c.kv_heads : h - c.query_heads;
        const size_t page_row = ((is_v ? c.kv_heads : 0) + g) * size_t{32} + positions[t] % 32;
        float scale = 1.0f;
        if (type == DType::kI8) {
          const size_t at = page * stride + scales_at + page_row * 4;
          std::memcpy(&scale, pool->data() + at, 4);
          std::fill_n(written.begin() + static_cast<int64_t>(at), 4, true);
        }
        const std::vector<float> expected_row = reference::stored_row(type, row);
        for (int32_t i = 0; i < c.head_dim; ++i) {
          const size_t in_page = is_v ? page_row * size_t(c.head_dim) + i : reference::cpu_key_element(type, c.head_dim, 32, page_row, i);
          const size_t at = page * stride / dtype_bytes(type) + in_page;
          written[at] = true;
          ASSERT_EQ(reference::load_stored(pool->data() + at * dtype_bytes(type), type) * scale, expected_row[i]);
        }
      }
    }
    for (size_t i = 0; i < written.size(); ++i) {
      if (written[i]) continue;
      for (size_t b = 0; b < dtype_bytes(type); ++b)
        ASSERT_EQ(pool->data()[i * dtype_bytes(type) + b], std::byte{0xFF}) << "written past a slot";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Grid, RopeKvWrite,
                         testing::Values(RopeCase{3, 1, 64, 64, false}, RopeCase{4, 2, 128, 128, true},
                                         RopeCase{2, 2, 32, 0, false}, RopeCase{2, 1, 40, 40, true},
                                         RopeCase{4, 4, 80, 20, false}, RopeCase{2, 1, 8, 8, true}));

// ---- The rest of the interface

TEST(GatherRows, CopiesTheRowsAsked) {
  const auto backend = make_cpu_backend({.threads = 2});
  std::vector<float> x = reference::random_floats(10 * 7, 13), out(3 * 7);
  const std::vector<int32_t> rows = {9, 0, 9};
  backend->gather_rows(Matrix(out.data(), 3, 7), Matrix(x.data(), 10, 7), rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t k = 0; k < 7; ++k) ASSERT_EQ(out[i * 7 + k], x[rows[i] * 7 + k]);
  }
}

TEST(Allocate, IsAlignedAndNamesTheBytesItCannotHave) {
  const auto backend = make_cpu_backend({.threads = 1});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(backend->allocate(100)->data()) % 64, 0u);
  EXPECT_EQ(backend->allocate(0)->bytes(), 0u);
  const size_t absurd = size_t{1} << 50;
  try {
    backend->allocate(absurd);
    FAIL() << "an exabyte was granted";
  } catch (const BackendError& error) {
    EXPECT_EQ(error.kind, BackendError::Kind::out_of_memory);
    EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(absurd)));
  }
}

TEST(Copy, MovesBytesInOutAndWithin) {
  const auto backend = make_cpu_backend({.threads = 1});
  const auto buffer = backend->allocate(64);
  const std::vector<int> in = {1, 2, 3, 4};
  std::vector<int> out(4);
  backend->copy_in(buffer->data(), in.data(), 16);
  backend->copy(buffer->data() + 32, buffer->data(), 16);
  backend->synchronize();
  backend->copy_out(out.data(), buffer->data() + 32, 16);
  EXPECT_EQ(out, in);
}

TEST(Description, NamesTheInstructionsAndTheThreads) {
  EXPECT_THAT(make_cpu_backend({.threads = 2})->description(), testing::MatchesRegex("cpu: [A-Z0-9_]+, 2 threads"));
}

}  // namespace
}  // namespace headroom
