// What needs true sizes: long sequences, every number of rows, grids of every size, a hundred repeats. On the layer the same tests
// run with sizes that it can bear.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "tests/gpu/where.h"
#include "tests/kernels/attention_cases.h"

namespace headroom {
namespace {

using namespace attention_cases;

struct Sizes {
  std::vector<int32_t> lengths;  // of sequences, ascending
  int repeats;
  int64_t gemm_rows;
  std::vector<std::pair<int64_t, int64_t>> weights;  // [N, K]
};
Sizes sizes() {
  if (!on_device()) return {{530}, 2, 18, {{48, 200}}};
  return {{8191, 32768}, 100, 512, {{6144, 4096}, {1024, 14336}, {896, 4864}}};
}

// Keys in steps of at most 2,048 rows, then the last token alone.
std::vector<int32_t> cuts_for(int32_t tokens) {
  std::vector<int32_t> cuts{0};
  while (cuts.back() < tokens - 1) cuts.push_back(std::min(cuts.back() + 2048, tokens - 1));
  cuts.push_back(tokens);
  return cuts;
}
std::vector<float> last_row(Backend& backend, const Sequence& sequence, int32_t page_tokens, uint64_t seed = 1) {
  return run_alone(backend, sequence, page_tokens, cuts_for(sequence.tokens), seed, sequence.tokens - 1);
}

TEST(DeviceAttention, LongSequencesMatchTheReference) {
  const auto backend = make_cuda_backend({});
  for (const int32_t tokens : sizes().lengths) {
    for (const auto& [head_dim, group, type, page_tokens] :
         {std::tuple{128, 4, DType::kBF16, 16}, {64, 7, DType::kBF16, 64}, {128, 8, DType::kF16, 32}, {64, 1, DType::kF16, 16}}) {
      const Sequence sequence({group, 1, head_dim, type, 0}, tokens, static_cast<uint64_t>(tokens + group));
      const std::vector<float> row = last_row(*backend, sequence, page_tokens);
      const double bound = type == DType::kBF16 ? 4e-3 : 5e-4;
      ASSERT_LE(reference::relative_error(row, sequence.expected(tokens - 1, 0)), bound) << tokens << " tokens, group " << group;
      ASSERT_GT(reference::relative_error(row, sequence.expected(tokens - 1, tokens / 2)), 2 * bound) << "half of the keys";
    }
  }
}

// All cut, all whole, and every way between.
TEST(DeviceAttention, GridsAndPagesChangeNoBit) {
  for (const int32_t tokens : sizes().lengths) {
    const Sequence sequence({8, 2, 128, DType::kBF16, 0}, tokens, 7);
    const auto expected = reference::bits(last_row(*make_cuda_backend({}), sequence, 16));
    for (const int32_t blocks : {1, 7, 132, 264}) {
      const auto backend = make_cuda_backend({.attention_blocks = blocks});
      ASSERT_EQ(reference::bits(last_row(*backend, sequence, 16)), expected) << blocks << " blocks, " << tokens << " tokens";
    }
    for (const int32_t page_tokens : {16, 32, 64}) {
      ASSERT_EQ(reference::bits(last_row(*make_cuda_backend({}), sequence, page_tokens, 9)), expected) << page_tokens;
    }
  }
}

// Sequences of many lengths in one step, which fills the device and leaves long and short tiles. The output holds NaN beforehand.
TEST(DeviceAttention, RepeatsAndBatchMatesChangeNoBit) {
  const Shape shape{4, 2, 128, DType::kBF16, 0};
  const int32_t longest = sizes().lengths.front();
  const auto backend = make_cuda_backend({});
  std::vector<Sequence> sequences;
  for (const int32_t tokens : {1, 15, 16, 17, 65, 511, 512, 513, longest / 2, longest - 1, longest}) {
    if (tokens <= longest) sequences.emplace_back(shape, tokens, static_cast<uint64_t>(tokens));
  }
  Pool pool(*backend, shape, 16, 5 * longest / 16 + 150, 3);
  std::vector<std::vector<int32_t>> tables(sequences.size());
  std::vector<Pool::Chunk> last;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t> cuts = cuts_for(sequences[i].tokens);
    for (size_t c = 0; c + 2 < cuts.size(); ++c) {
      const Pool::Chunk chunk{&sequences[i], &tables[i], cuts[c], cuts[c + 1]};
      pool.step({&chunk, 1}, false);
    }
    last.push_back({&sequences[i], &tables[i], sequences[i].tokens - 1, sequences[i].tokens});
  }
  const auto expected = reference::bits(pool.step(last));
  for (int repeat = 0; repeat < sizes().repeats; ++repeat) ASSERT_EQ(reference::bits(pool.step(last)), expected) << repeat;
  for (size_t i = 0; i < last.size(); ++i) {
    const auto alone = reference::bits(pool.step({&last[i], 1}));
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), expected.begin() + static_cast<int64_t>(i) * shape.out_cols()))
        << sequences[i].tokens << " tokens";
  }
}

// ---- Gemm: the row counts of every step, at shapes of real layers.

struct Gemm {
  int64_t outputs, inputs;
  std::vector<float> x, weight;
  std::unique_ptr<Weight> loaded, gate_up;

  Gemm(Backend& backend, int64_t rows, int64_t outputs, int64_t inputs, DType type) : outputs(outputs), inputs(inputs) {
    x = reference::random_floats(static_cast<size_t>(rows * inputs), 1, 1.0f, type);
    weight = reference::random_floats(static_cast<size_t>(outputs * inputs), 2, 0.05f, type);
    const std::vector<std::byte> stored = reference::stored(weight, type);
    const HostWeight part{stored.data(), type, outputs, inputs};
    loaded = backend.load_weight({&part, 1});
    gate_up = backend.load_gate_up({&part, 1});
  }
  // Of the last `rows` rows, so that a row's place in the batch differs too.
  std::vector<float> run(Backend& backend, int64_t rows) const {
    const BackendFloats in(backend, std::span(x).last(static_cast<size_t>(rows * inputs)));
    const BackendFloats out(backend, std::vector<float>(static_cast<size_t>(rows * outputs), kNaN));
    backend.gemm(out.matrix(rows, outputs), in.matrix(rows, inputs), *loaded, {});
    return out.read();
  }
  // And silu_mul of that, in one and apart.
  std::vector<float> run_silu_mul(Backend& backend, int64_t rows, bool apart) const {
    const BackendFloats in(backend, std::span(x).last(static_cast<size_t>(rows * inputs)));
    const BackendFloats sums(backend, std::vector<float>(static_cast<size_t>(rows * outputs), kNaN));
    const BackendFloats out(backend, std::vector<float>(static_cast<size_t>(rows * outputs / 2), kNaN));
    const Matrix to = out.matrix(rows, outputs / 2), between = sums.matrix(rows, outputs), from = in.matrix(rows, inputs);
    if (apart) {
      backend.gemm(between, from, *loaded, {});
      backend.silu_mul(to, between);
    } else {
      backend.gemm_silu_mul(to, between, from, *gate_up, {});
    }
    return out.read();
  }
};

TEST(DeviceGemm, ARowHasTheSameBitsAmongAnyNumberOfRows) {
  const auto backend = make_cuda_backend({});
  for (const auto& [outputs, inputs] : sizes().weights) {
    const Gemm gemm(*backend, sizes().gemm_rows, outputs, inputs, DType::kBF16);
    const std::vector<float> all = gemm.run(*backend, sizes().gemm_rows);
    for (int64_t rows = 1; rows <= sizes().gemm_rows; ++rows) {
      const auto expected = std::span(all).last(static_cast<size_t>(rows * outputs));
      ASSERT_EQ(reference::bits(gemm.run(*backend, rows)), reference::bits(expected)) << rows << " rows of " << outputs << " x " << inputs;
    }
  }
}

TEST(DeviceGemm, WithSiluMulIsGemmAndThenSiluMulAmongAnyNumberOfRows) {
  const auto backend = make_cuda_backend({});
  for (const auto& [outputs, inputs] : sizes().weights) {
    const Gemm gemm(*backend, sizes().gemm_rows, outputs, inputs, DType::kBF16);
    const std::vector<float> all = gemm.run_silu_mul(*backend, sizes().gemm_rows, true);
    for (int64_t rows = 1; rows <= sizes().gemm_rows; ++rows) {
      const auto expected = std::span(all).last(static_cast<size_t>(rows * outputs / 2));
      ASSERT_EQ(reference::bits(gemm.run_silu_mul(*backend, rows, false)), reference::bits(expected)) << rows << " rows of " << outputs << " x " << inputs;
    }
  }
}

TEST(DeviceGemm, MatchesTheReferenceAtTrueShapes) {
  const auto backend = make_cuda_backend({});
  std::mt19937_64 random(5);
  for (const auto& [outputs, inputs] : sizes().weights) {
    for (const DType type : {DType::kBF16, DType::kF16}) {
      const int64_t rows = sizes().gemm_rows;
      const Gemm gemm(*backend, rows, outputs, inputs, type);
      const std::vector<float> out = gemm.run(*backend, rows);
      std::vector<float> got;
      std::vector<double> expected, one_dropped;
      for (int sample = 0; sample < 300; ++sample) {
        const auto t = static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
        const auto n = static_cast<int64_t>(random() % static_cast<uint64_t>(outputs));
        const auto product = [&](int64_t k) { return double{gemm.x[t * inputs + k]} * gemm.weight[n * inputs + k]; };
        double sum = 0.0;
        for (int64_t k = 0; k < inputs; ++k) sum += product(k);
        got.push_back(out[static_cast<size_t>(t * outputs + n)]);
        expected.push_back(sum);
        one_dropped.push_back(sum - product(inputs - 1));
      }
      // The matrix unit adds 16 products at a time and may cut off a last bit each time.
      const double bound = 1e-6 + std::ldexp(static_cast<double>(inputs) / 16, -23);
      ASSERT_LE(reference::relative_error(got, expected), bound) << outputs << " x " << inputs;
      ASSERT_GT(reference::relative_error(got, one_dropped), 10 * bound) << "last input dropped";
    }
  }
}

}  // namespace
}  // namespace headroom
