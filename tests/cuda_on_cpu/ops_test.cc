// The CUDA gemm, norms, rotation and the rest, run on the CPU, against the float64 reference; and to the bit, what may not
// change their results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_on_cpu/block.h"
#include "tests/kernels/backend_floats.h"
#include "tests/kernels/reference.h"

namespace headroom {
namespace {

constexpr DType kHalves[] = {DType::kBF16, DType::kF16};

std::unique_ptr<Backend> backend_with(int32_t multiprocessors = 4) { return make_cuda_backend({.multiprocessors = multiprocessors}); }

struct Problem {
  int64_t rows, outputs, inputs;
  DType type;
  std::vector<float> x, weight, bias;
  std::vector<std::byte> stored_weight;

  // x is exact in the weight's type, as the matrix unit takes it.
  Problem(int64_t rows, int64_t outputs, int64_t inputs, DType type, bool with_bias)
      : rows(rows), outputs(outputs), inputs(inputs), type(type) {
    x = reference::random_floats(static_cast<size_t>(rows * inputs), 1, 1.0f, type);
    weight = reference::random_floats(static_cast<size_t>(outputs * inputs), 2, 0.05f, type);
    if (with_bias) bias = reference::random_floats(static_cast<size_t>(outputs), 3);
    stored_weight = reference::stored(weight, type);
  }
  std::unique_ptr<Weight> load(Backend& backend) const {
    const HostWeight part{stored_weight.data(), type, outputs, inputs};
    return backend.load_weight({&part, 1});
  }
};

std::vector<float> run(Backend& backend, const Weight& weight, std::span<const float> x, int64_t rows, std::span<const float> bias) {
  const BackendFloats in(backend, x), b(backend, bias);
  const BackendFloats out(backend, std::vector<float>(static_cast<size_t>(rows * weight.rows()), -1.0f));
  backend.gemm(out.matrix(rows, weight.rows()), in.matrix(rows, weight.cols()), weight, b.vector());
  return out.read();
}

// Products of N(0, 1) and N(0, 0.05²), exact in fp32, summed in chains of at most 64 and then by chunks.
double tolerance(const Problem& problem) { return 5e-7 + 4e-9 * static_cast<double>(problem.inputs); }

TEST(CudaGemm, MatchesTheReference) {
  for (const int32_t multiprocessors : {1, 132}) {  // chunks of K in one block, and apart
    const auto backend = backend_with(multiprocessors);
    for (const DType type : kHalves) {
      for (const int64_t rows : {1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 130}) {
        for (const auto& [outputs, inputs] : {std::pair<int64_t, int64_t>{1, 8}, {16, 64}, {33, 129}, {130, 576}}) {
          if (rows > 65 && type == DType::kF16) continue;
          const Problem problem(rows, outputs, inputs, type, outputs % 2 == 0);
          const std::vector<double> expected = reference::gemm(problem.x, problem.weight, problem.bias, rows, outputs, inputs);
          const std::vector<float> out = run(*backend, *problem.load(*backend), problem.x, rows, problem.bias);
          ASSERT_LE(reference::largest_difference(out, expected), tolerance(problem))
              << dtype_name(type) << " " << rows << " x " << outputs << " x " << inputs << ", " << multiprocessors;
        }
      }
    }
  }
}

TEST(CudaGemm, ToleranceCatchesTheNearestWrongKernels) {
  const auto backend = backend_with();
  const Problem problem(3, 64, 576, DType::kBF16, true);
  const std::vector<float> out = run(*backend, *problem.load(*backend), problem.x, problem.rows, problem.bias);
  const auto expected = [](const Problem& p) { return reference::gemm(p.x, p.weight, p.bias, p.rows, p.outputs, p.inputs); };
  Problem dropped = problem;
  for (int64_t t = 0; t < problem.rows; ++t) dropped.x[t * problem.inputs + problem.inputs - 1] = 0.0f;
  EXPECT_GT(reference::largest_difference(out, expected(dropped)), 100 * tolerance(problem)) << "last input dropped";
  Problem no_bias = problem;
  no_bias.bias.clear();
  EXPECT_GT(reference::largest_difference(out, expected(no_bias)), 100 * tolerance(problem)) << "no bias";
}

// Few rows in registers, many through shared memory, chunks of K in one block or apart: one row, one result.
TEST(CudaGemm, ARowHasTheSameBitsInEveryBatchOnEveryDevice) {
  for (const DType type : kHalves) {
    const Problem problem(140, 40, 330, type, true);
    const auto small = backend_with(1);
    const auto expected_weight = problem.load(*small);
    const std::vector<float> all = run(*small, *expected_weight, problem.x, problem.rows, problem.bias);
    for (const int32_t multiprocessors : {1, 132}) {
      const auto backend = backend_with(multiprocessors);
      const auto weight = problem.load(*backend);
      for (int64_t rows = 1; rows <= problem.rows; ++rows) {
        const int64_t past_a_tile = (rows + 1) % 32;  // every number up to 34; then those around tiles of blocks, and a few others
        if (rows > 34 && past_a_tile > 2 && rows % 20 != 0) continue;
        // The last rows, so that a row's place in the batch differs too.
        const auto x = std::span(problem.x).last(static_cast<size_t>(rows * problem.inputs));
        const auto expected = std::span(all).last(static_cast<size_t>(rows * problem.outputs));
        ASSERT_EQ(reference::bits(run(*backend, *weight, x, rows, problem.bias)), reference::bits(expected))
            << rows << " rows, " << multiprocessors << " multiprocessors";
      }
    }
  }
}

TEST(CudaGemm, OrderOfThreadsAndBlocksChangesNothing) {
  using cuda_on_cpu::Order;
  const Problem problem(40, 200, 600, DType::kBF16, true);
  const auto backend = backend_with(132);
  const auto weight = problem.load(*backend);
  for (const int64_t rows : {4, 40}) {
    const auto x = std::span(problem.x).first(static_cast<size_t>(rows * problem.inputs));
    const auto expected = reference::bits(run(*backend, *weight, x, rows, problem.bias));
    for (const Order threads : {Order::descending, Order::shuffled}) {
      cuda_on_cpu::set_order(threads, threads);
      EXPECT_EQ(reference::bits(run(*backend, *weight, x, rows, problem.bias)), expected) << rows;
    }
    cuda_on_cpu::set_order(Order::ascending, Order::ascending);
  }
}

TEST(CudaGemm, ReadsAndWritesStridedRowsAndNothingElse) {
  const auto backend = backend_with();
  for (const int64_t rows : {1, 4, 30}) {
    const Problem problem(rows, 40, 24, DType::kF16, false);
    const auto weight = problem.load(*backend);
    std::vector<float> x(static_cast<size_t>(rows * 31), std::numeric_limits<float>::quiet_NaN());
    for (int64_t t = 0; t < rows; ++t) std::copy_n(&problem.x[t * 24], 24, &x[t * 31]);
    const BackendFloats in(*backend, x), out(*backend, std::vector<float>(static_cast<size_t>(rows * 50), 7.0f));
    backend->gemm(out.matrix(rows, 40, 50), in.matrix(rows, 24, 31), *weight, {});
    const std::vector<float> dense = run(*backend, *weight, problem.x, rows, {}), strided = out.read();
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < 40; ++n) ASSERT_EQ(strided[t * 50 + n], dense[t * 40 + n]);
      for (int64_t n = 40; n < 50; ++n) ASSERT_EQ(strided[t * 50 + n], 7.0f) << "written past the row";
    }
  }
}

// The op that makes a gemm's input packs it as well. Whoever writes that matrix by another way makes the packed form stale.
TEST(CudaGemm, NeverReadsAStalePackedInput) {
  const auto backend = backend_with();
  const Problem problem(3, 32, 72, DType::kBF16, false), wider(3, 32, 128, DType::kBF16, false);
  const std::vector<float> nans(wider.x.size(), std::numeric_limits<float>::quiet_NaN());
  for (int place = 0; place < 2; ++place) run(*backend, *wider.load(*backend), nans, 3, {});  // NaN where 72 columns are filled up to 128
  const auto weight = problem.load(*backend);
  const BackendFloats x(*backend, problem.x), ones(*backend, std::vector<float>(72, 1.0f)), h(*backend, problem.x);
  const BackendFloats out(*backend, std::vector<float>(96));
  backend->rmsnorm(h.matrix(3, 72), x.matrix(3, 72), ones.vector(), 1e-6f);
  backend->gemm(out.matrix(3, 32), h.matrix(3, 72), *weight, {});
  const std::vector<float> normed = out.read();
  EXPECT_EQ(normed, run(*backend, *weight, h.read(), 3, {})) << "packed by the norm or by gemm: the same";
  backend->rmsnorm(h.matrix(3, 72), x.matrix(3, 72), ones.vector(), 1e-6f);
  backend->copy_in(reinterpret_cast<std::byte*>(h.data()), problem.x.data(), problem.x.size() * 4);
  backend->gemm(out.matrix(3, 32), h.matrix(3, 72), *weight, {});
  EXPECT_EQ(out.read(), run(*backend, *weight, problem.x, 3, {}));
  EXPECT_NE(out.read(), normed);
}

// ---- silu(gate) · up on gemm's way.

struct GateUp {
  Problem problem;
  std::unique_ptr<Weight> in_turns, in_order;

  GateUp(Backend& backend, int64_t rows, int64_t half, int64_t inputs, DType type, bool with_bias)
      : problem(rows, 2 * half, inputs, type, with_bias), in_order(problem.load(backend)) {
    const size_t split = problem.stored_weight.size() / 2;
    const HostWeight parts[] = {{problem.stored_weight.data(), type, half, inputs}, {&problem.stored_weight[split], type, half, inputs}};
    in_turns = backend.load_gate_up(parts);
  }
  int64_t half() const { return problem.outputs / 2; }

  // And what a gemm whose weights are all ones makes of the result: once of its packed form, and once of its numbers alone.
  struct Result {
    std::vector<float> out, sums_of_packed, sums;
  };
  Result run_in_one(Backend& backend, std::span<const float> x) const {
    const auto rows = static_cast<int64_t>(x.size()) / problem.inputs;
    const std::vector<std::byte> ones = reference::stored(std::vector<float>(128, 1.0f), problem.type);
    const HostWeight part{ones.data(), problem.type, 1, half()}, wide{ones.data(), problem.type, 1, 128};
    const auto sum = backend.load_weight({&part, 1}), wide_sum = backend.load_weight({&wide, 1});
    const std::vector<float> nans(static_cast<size_t>(rows * 128), std::numeric_limits<float>::quiet_NaN());
    for (int place = 0; place < 2; ++place) ::headroom::run(backend, *wide_sum, nans, rows, {});  // where the result is filled up
    const BackendFloats in(backend, x), bias(backend, problem.bias), out(backend, std::vector<float>(static_cast<size_t>(rows * half()), -1.0f));
    const BackendFloats room(backend, std::vector<float>(static_cast<size_t>(rows * problem.outputs))), sums(backend, std::vector<float>(static_cast<size_t>(rows)));
    backend.gemm_silu_mul(out.matrix(rows, half()), room.matrix(rows, problem.outputs), in.matrix(rows, problem.inputs), *in_turns, bias.vector());
    backend.gemm(sums.matrix(rows, 1), out.matrix(rows, half()), *sum, {});
    const std::vector<float> result = out.read(), of_packed = sums.read();
    return {result, of_packed, ::headroom::run(backend, *sum, result, rows, {})};
  }
  std::vector<float> run_apart(Backend& backend, std::span<const float> x) const {
    const auto rows = static_cast<int64_t>(x.size()) / problem.inputs;
    const BackendFloats gate_up(backend, ::headroom::run(backend, *in_order, x, rows, problem.bias));
    const BackendFloats out(backend, std::vector<float>(static_cast<size_t>(rows * half())));
    backend.silu_mul(out.matrix(rows, half()), gate_up.matrix(rows, problem.outputs));
    return out.read();
  }
};

// For few rows and many, halves that fill tiles and that do not, chunks of K in one block and apart.
TEST(CudaGemmSiluMul, IsGemmAndThenSiluMulToTheBit) {
  for (const int32_t multiprocessors : {1, 132}) {
    for (const DType type : kHalves) {
      for (const auto& [half, inputs] : {std::pair<int64_t, int64_t>{1, 8}, {5, 64}, {40, 330}, {72, 576}}) {
        const auto backend = backend_with(multiprocessors);
        const GateUp gate_up(*backend, 130, half, inputs, type, half % 2 == 0);
        const auto expected = gate_up.run_apart(*backend, gate_up.problem.x);
        for (const int64_t rows : {1, 8, 9, 17, 33, 65, 130}) {
          if (rows > 33 && (type == DType::kF16 || half == 72)) continue;
          const auto x = std::span(gate_up.problem.x).last(static_cast<size_t>(rows * inputs));
          const GateUp::Result result = gate_up.run_in_one(*backend, x);
          ASSERT_EQ(reference::bits(result.out), reference::bits(std::span(expected).last(static_cast<size_t>(rows * half))))
              << dtype_name(type) << " " << rows << " x " << half << " x " << inputs << ", " << multiprocessors;
          ASSERT_EQ(reference::bits(result.sums_of_packed), reference::bits(result.sums)) << rows << " x " << half;
        }
      }
    }
  }
}

TEST(CudaGemmSiluMul, MatchesTheReference) {
  const auto backend = backend_with();
  for (const int64_t rows : {3, 40}) {
    const GateUp gate_up(*backend, rows, 33, 576, DType::kBF16, true);
    const Problem& p = gate_up.problem;
    const std::vector<float> out = gate_up.run_in_one(*backend, p.x).out;
    const std::vector<double> sums = reference::gemm(p.x, p.weight, p.bias, rows, p.outputs, p.inputs);
    double largest = 0.0, largest_swapped = 0.0, bound = 0.0;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t f = 0; f < 33; ++f) {
        const double gate = sums[t * 66 + f], up = sums[t * 66 + 33 + f], got = out[t * 33 + f];
        const auto silu = [](double x) { return x / (1.0 + std::exp(-x)); };
        largest = std::max(largest, std::abs(got - silu(gate) * up));
        largest_swapped = std::max(largest_swapped, std::abs(got - silu(up) * gate));
        bound = std::max(bound, tolerance(p) * (std::abs(gate) + 1.1 * std::abs(up)) + 4e-7 * std::abs(got));  // silu' is at most 1.1
      }
    }
    EXPECT_LE(largest, bound) << rows;
    EXPECT_GT(largest_swapped, 1000 * bound) << "gate and up swapped";
  }
}

TEST(CudaGemmSiluMul, OrderOfThreadsAndBlocksChangesNothing) {
  using cuda_on_cpu::Order;
  const auto backend = backend_with(132);
  const GateUp gate_up(*backend, 40, 100, 600, DType::kBF16, true);
  for (const int64_t rows : {4, 40}) {
    const auto x = std::span(gate_up.problem.x).first(static_cast<size_t>(rows * 600));
    const auto expected = reference::bits(gate_up.run_in_one(*backend, x).out);
    for (const Order threads : {Order::descending, Order::shuffled}) {
      cuda_on_cpu::set_order(threads, threads);
      EXPECT_EQ(reference::bits(gate_up.run_in_one(*backend, x).out), expected) << rows;
    }
    cuda_on_cpu::set_order(Order::ascending, Order::ascending);
  }
}

// Gate and up lie in turns for whoever multiplies them, and in order for everybody else.
TEST(CudaGemmSiluMul, ItsWeightIsThatOfGemmToo) {
  const auto backend = backend_with(132);
  for (const int64_t half : {5, 40}) {
    const GateUp gate_up(*backend, 33, half, 200, DType::kBF16, true);
    for (const int64_t rows : {1, 9, 33}) {
      const auto x = std::span(gate_up.problem.x).first(static_cast<size_t>(rows * 200));
      EXPECT_EQ(reference::bits(run(*backend, *gate_up.in_turns, x, rows, gate_up.problem.bias)),
                reference::bits(run(*backend, *gate_up.in_order, x, rows, gate_up.problem.bias))) << rows << " x " << half;
    }
  }
}

TEST(CudaLoadWeight, StacksPartsAndRefusesWhatItWouldHaveToRound) {
  const auto backend = backend_with();
  const std::vector<float> a = reference::random_floats(20 * 40, 5, 1.0f, DType::kF16), b = reference::random_floats(31 * 40, 6, 1.0f, DType::kF16);
  const std::vector<std::byte> a_bytes = reference::stored(a, DType::kF16), b_bytes = reference::stored(b, DType::kF16);
  const HostWeight parts[] = {{a_bytes.data(), DType::kF16, 20, 40}, {b_bytes.data(), DType::kF16, 31, 40}};
  const auto weight = backend->load_weight(parts);
  std::vector<float> stacked = a;
  stacked.insert(stacked.end(), b.begin(), b.end());
  const std::vector<float> x = reference::random_floats(40, 7, 1.0f, DType::kF16);
  EXPECT_LE(reference::largest_difference(run(*backend, *weight, x, 1, {}), reference::gemm(x, stacked, {}, 1, 51, 40)), 1e-5);
  const HostWeight wide{a_bytes.data(), DType::kF32, 10, 40};
  EXPECT_THROW(backend->load_weight({&wide, 1}), std::runtime_error);
  const HostWeight mixed[] = {{a_bytes.data(), DType::kF16, 20, 40}, {b_bytes.data(), DType::kBF16, 31, 40}};
  EXPECT_THROW(backend->load_weight(mixed), std::runtime_error);
}

TEST(CudaEmbedding, GathersRowsOfThePackedTable) {
  const auto backend = backend_with();
  for (const DType type : kHalves) {
    const Problem problem(1, 70, 48, type, false);
    const auto table = problem.load(*backend);
    const std::vector<int32_t> tokens = {69, 0, 31, 32, 33, 69};
    const BackendFloats out(*backend, std::vector<float>(6 * 48));
    backend->embedding(out.matrix(6, 48), *table, tokens);
    const std::vector<float> rows = out.read();
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (size_t k = 0; k < 48; ++k) ASSERT_EQ(rows[t * 48 + k], problem.weight[static_cast<size_t>(tokens[t]) * 48 + k]);
    }
  }
}

TEST(CudaRmsnorm, MatchesTheReferenceWithAndWithoutAResidual) {
  const auto backend = backend_with();
  for (const size_t dim : {1, 2, 63, 64, 576, 1030}) {
    const std::vector<float> x = reference::random_floats(3 * dim, 1), r = reference::random_floats(3 * dim, 2),
                             w = reference::random_floats(dim, 3);
    const auto cols = static_cast<int64_t>(dim);
    const BackendFloats in(*backend, x), residual(*backend, r), weight(*backend, w), out(*backend, x);
    backend->rmsnorm(out.matrix(3, cols), in.matrix(3, cols), weight.vector(), 1e-5f);
    EXPECT_LE(reference::largest_difference(out.read(), reference::rmsnorm(x, w, 1e-5)), 3e-6) << dim;
    backend->add_rmsnorm(out.matrix(3, cols), residual.matrix(3, cols), in.matrix(3, cols), weight.vector(), 1e-5f);
    std::vector<float> sum = r;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
    EXPECT_EQ(residual.read(), sum) << dim;
    EXPECT_LE(reference::largest_difference(out.read(), reference::rmsnorm(sum, w, 1e-5)), 3e-6) << dim;
    // A row alone.
    const BackendFloats last(*backend, std::span(sum).last(dim)), alone(*backend, std::vector<float>(dim));
    backend->rmsnorm(alone.matrix(1, cols), last.matrix(1, cols), weight.vector(), 1e-5f);
    const std::vector<float> all = out.read();
    EXPECT_EQ(reference::bits(alone.read()), reference::bits(std::span(all).last(dim))) << dim;
  }
}

TEST(CudaSiluMul, MatchesTheReferenceFromEndToEnd) {
  const auto backend = backend_with();
  for (const size_t dim : {1, 7, 600}) {
    std::vector<float> gate_up = reference::random_floats(2 * 2 * dim, 4, 20.0f);
    gate_up[0] = -3e38f;
    const BackendFloats in(*backend, gate_up), out(*backend, std::vector<float>(2 * dim));
    backend->silu_mul(out.matrix(2, static_cast<int64_t>(dim)), in.matrix(2, 2 * static_cast<int64_t>(dim)));
    const std::vector<float> rows = out.read();
    for (size_t t = 0; t < 2; ++t) {
      for (size_t f = 0; f < dim; ++f) {
        const double gate = gate_up[t * 2 * dim + f], up = gate_up[t * 2 * dim + dim + f];
        const double expected = gate / (1.0 + std::exp(-gate)) * up;
        ASSERT_NEAR(rows[t * dim + f], expected, 1e-6 + 1e-6 * std::abs(expected)) << gate;
      }
    }
  }
}

TEST(CudaGatherRows, CopiesTheRowsAskedFor) {
  const auto backend = backend_with();
  const std::vector<float> x = reference::random_floats(5 * 33, 8);
  const BackendFloats in(*backend, x), out(*backend, std::vector<float>(3 * 33));
  const std::vector<int32_t> rows = {4, 0, 4};
  backend->gather_rows(out.matrix(3, 33), in.matrix(5, 33), rows);
  const std::vector<float> gathered = out.read();
  for (size_t i = 0; i < 3; ++i) {
    for (size_t k = 0; k < 33; ++k) ASSERT_EQ(gathered[i * 33 + k], x[static_cast<size_t>(rows[i]) * 33 + k]);
  }
}

// ---- RoPE and the page write, against the CPU backend, whose own tests hold it to the reference.

struct RopeCase {
  int32_t head_dim, rotary_dim;
  bool norms;
};

class CudaRope : public testing::TestWithParam<RopeCase> {};

// Pages of the CPU with their keys as rows.
std::vector<std::byte> keys_as_rows(const std::vector<std::byte>& pages, const KvLayer& layer) {
  std::vector<std::byte> rows = pages;
  const size_t width = dtype_bytes(layer.dtype);
  for (size_t page = 0; page < pages.size(); page += layer.page_stride_bytes) {
    for (size_t key = 0; key < static_cast<size_t>(layer.rows()); ++key) {
      for (int32_t i = 0; i < layer.head_dim; ++i) {
        const size_t from = reference::cpu_key_element(layer.dtype, layer.head_dim, layer.page_tokens, key, i);
        std::copy_n(&pages[page + from * width], width, &rows[page + (key * static_cast<size_t>(layer.head_dim) + static_cast<size_t>(i)) * width]);
      }
    }
  }
  return rows;
}

TEST_P(CudaRope, TurnsAndWritesAsTheCpuBackendDoes) {
  const RopeCase c = GetParam();
  const int32_t heads = 6, kv_heads = 2, pages = 4, page_tokens = 16;
  const std::vector<int32_t> positions = {30, 31, 32, 0}, tokens(4), first_row = {0, 3, 4}, tables = {3, 1, 2, 0}, begin = {0, 3, 4};
  const BatchView batch{4, tokens, positions, first_row, tables, begin};
  const int64_t cols = int64_t{heads + 2 * kv_heads} * c.head_dim;
  const std::vector<float> input = reference::random_floats(static_cast<size_t>(4 * cols), 11);
  const std::vector<float> norm = reference::random_floats(static_cast<size_t>(c.head_dim), 12),
                           other_norm = reference::random_floats(static_cast<size_t>(c.head_dim), 13);
  std::vector<float> inv_freq;
  for (int32_t i = 0; i < c.rotary_dim / 2; ++i) inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(c.rotary_dim)));
  for (const DType type : {DType::kBF16, DType::kF16, DType::kI8}) {
    if (type == DType::kI8 && c.head_dim % 16 != 0) continue;
    const size_t page_bytes = KvLayer{nullptr, 0, type, kv_heads, page_tokens, c.head_dim}.page_bytes();
    std::vector<std::vector<float>> results;
    std::vector<std::vector<std::byte>> pools;
    for (const bool is_cuda : {false, true}) {
      const auto backend = is_cuda ? backend_with() : make_cpu_backend({.threads = 1});
      const BackendFloats qkv(*backend, input), weight(*backend, norm), other_weight(*backend, other_norm);
      const BackendFloats rope(*backend, std::vector<float>(static_cast<size_t>(4 * c.rotary_dim)));
      const auto pool = backend->allocate(page_bytes * pages);
      const std::vector<std::byte> blank(page_bytes * pages, std::byte{0xFF});
      backend->copy_in(pool->data(), blank.data(), blank.size());
      backend->begin_step(batch);
      RopeKvParams params{heads, kv_heads, c.head_dim, rope.matrix(4, c.rotary_dim), {}, {}, 1e-6f};
      if (c.rotary_dim > 0) backend->rope_table(params.rope_table, positions, inv_freq, 1.1f);
      if (c.norms) params.q_norm = weight.vector(), params.k_norm = other_weight.vector();
      backend->rope_kv_write(qkv.matrix(4, cols), {pool->data(), page_bytes, type, kv_heads, page_tokens, c.head_dim}, batch, params);
      results.push_back(qkv.read());
      pools.emplace_back(page_bytes * pages);
      backend->copy_out(pools.back().data(), pool->data(), pools.back().size());
    }
    const std::vector<double> expected(results[0].begin(), results[0].end());
    ASSERT_LE(reference::largest_difference(results[1], expected), c.norms ? 3e-6 : 0.0);
    pools[0] = keys_as_rows(pools[0], {nullptr, page_bytes, type, kv_heads, page_tokens, c.head_dim});
    size_t differing = 0;
    for (size_t i = 0; i < pools[0].size(); i += 2) differing += pools[0][i] != pools[1][i] || pools[0][i + 1] != pools[1][i + 1];
    // Sums of squares in another order may round a norm, and then an element of a page, the other way.
    EXPECT_LE(differing, c.norms ? pools[0].size() / 200 : 0) << dtype_name(type);
  }
}
INSTANTIATE_TEST_SUITE_P(Heads, CudaRope,
                         testing::Values(RopeCase{64, 64, false}, RopeCase{128, 128, true}, RopeCase{80, 0, false},
                                         RopeCase{96, 72, false}, RopeCase{8, 8, true}, RopeCase{256, 64, true}));

}  // namespace
}  // namespace headroom
