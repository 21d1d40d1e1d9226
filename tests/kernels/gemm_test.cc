#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/reference.h"

namespace headroom {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr DType kAllTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kI4};

struct Problem {
  int64_t rows, outputs, inputs;
  DType type;
  bool with_bias;
  std::vector<float> x, weight, bias;
  std::vector<std::byte> stored_weight;

  Problem(int64_t rows, int64_t outputs, int64_t inputs, DType type, bool with_bias)
      : rows(rows), outputs(outputs), inputs(inputs), type(type), with_bias(with_bias) {
    x = reference::random_floats(static_cast<size_t>(rows * inputs), 1);
    if (with_bias) bias = reference::random_floats(static_cast<size_t>(outputs), 3);
    if (is_quantized(type)) {
      const float scale = 0.05f / (type == DType::kI8 ? 74.0f : 4.6f);  // the same spread of weights in all types
      stored_weight = reference::random_quantized_rows(outputs, inputs, type, 2, scale, &weight);
    } else {
      weight = reference::random_floats(static_cast<size_t>(outputs * inputs), 2, 0.05f, type);
      stored_weight = reference::stored(weight, type);
    }
  }
  HostWeight host_weight() const { return {stored_weight.data(), type, outputs, inputs}; }
};

std::vector<float> run(Backend& backend, const Weight& weight, const std::vector<float>& x, int64_t rows,
                       const std::vector<float>& bias) {
  std::vector<float> out(static_cast<size_t>(rows * weight.rows()), -1.0f);
  std::vector<float> input = x;
  backend.gemm(Matrix(out.data(), rows, weight.rows()), Matrix(input.data(), rows, weight.cols()), weight, bias);
  return out;
}

std::vector<float> run(Backend& backend, const Problem& problem) {
  const HostWeight part = problem.host_weight();
  const std::unique_ptr<Weight> weight = backend.load_weight({&part, 1});
  return run(backend, *weight, problem.x, problem.rows, problem.bias);
}

// One chain of K fused multiply-adds of products about N(0, 0.05²). Largest error measured on this grid: 1.0e-6 at K =
// 128, 4.0e-6 at 576, 1.2e-5 at 2048.
double tolerance(const Problem& problem) { return 5e-7 + 1.2e-8 * static_cast<double>(problem.inputs); }

// What the kernels make of an input: nothing, or bf16 where the CPU multiplies that and the weights' type allows.
class GemmOf : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    // That kernel is made of the CPU's own instructions and cannot run without them; such a CPU serves with fp32 activations, which the
    // other half of these tests covers on every machine.
    if (GetParam() && !cpu_multiplies_bf16()) GTEST_SKIP() << "SKIPPED: this CPU has no AVX-512 BF16";
  }
  std::unique_ptr<Backend> make(int threads) const { return make_cpu_backend({.threads = threads, .bf16_activations = GetParam()}); }
  bool rounds(DType weights) const { return GetParam() && weights != DType::kF32 && weights != DType::kF16; }
  std::vector<double> expected(const Problem& p) const { return expected(p, rounds(p.type)); }
  static std::vector<double> expected(const Problem& p, bool rounded) {
    std::vector<float> x = p.x;
    if (rounded) {
      for (float& value : x) value = reference::round_to(DType::kBF16, value);
    }
    return reference::gemm(x, p.weight, p.bias, p.rows, p.outputs, p.inputs);
  }
};
INSTANTIATE_TEST_SUITE_P(Activations, GemmOf, ::testing::Values(false, true), [](const auto& test) { return test.param ? "bf16" : "fp32"; });

TEST_P(GemmOf, MatchesTheReference) {
  const auto backend = make(2);
  for (const DType type : kAllTypes) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 9, 13, 24, 31, 100, 192, 193, 400}) {
      for (const auto& [outputs, inputs] :
           {std::pair<int64_t, int64_t>{1, 8}, {32, 128}, {33, 129}, {100, 576}, {64, 2048}, {7, 1}}) {
        if (rows > 31 && inputs > 1000) continue;
        const Problem problem(rows, outputs, inputs, type, outputs % 2 == 0);
        EXPECT_LE(reference::largest_difference(run(*backend, problem), expected(problem)), tolerance(problem))
            << dtype_name(type) << " " << rows << " x " << outputs << " x " << inputs;
      }
    }
  }
}

TEST_P(GemmOf, ToleranceCatchesTheNearestWrongKernels) {
  const auto backend = make(1);
  for (const DType type : {DType::kBF16, DType::kI8}) {
    const Problem problem(3, 64, 576, type, true);
    const std::vector<float> out = run(*backend, problem);
    Problem last_input_dropped = problem;
    for (int64_t t = 0; t < problem.rows; ++t) last_input_dropped.x[t * problem.inputs + problem.inputs - 1] = 0.0f;
    EXPECT_GT(reference::largest_difference(out, expected(last_input_dropped)), 100 * tolerance(problem));
    Problem no_bias = problem;
    no_bias.bias.clear();
    EXPECT_GT(reference::largest_difference(out, expected(no_bias)), 100 * tolerance(problem));
    EXPECT_GT(reference::largest_difference(out, expected(problem, !rounds(type))), 100 * tolerance(problem)) << "the other rounding";
  }
}

// scale · q is exact in fp32, and the order of sums is one for all types.
TEST(Gemm, QuantizedWeightsGiveTheBitsOfTheirValuesInFp32) {
  const auto backend = make_cpu_backend({.threads = 2});
  for (const DType type : {DType::kI8, DType::kI4}) {
    for (const int64_t rows : {1, 7, 200}) {
      for (const int64_t inputs : {32, 31, 33, 300}) {
        const Problem quantized(rows, 70, inputs, type, true);
        Problem plain = quantized;
        plain.type = DType::kF32;
        plain.stored_weight = reference::stored(plain.weight, DType::kF32);
        const std::vector<uint32_t> expected = reference::bits(run(*backend, plain));
        ASSERT_EQ(reference::bits(run(*backend, quantized)), expected) << dtype_name(type) << " " << rows << " x " << inputs;
        plain.weight[5] += 1e-3f;
        plain.stored_weight = reference::stored(plain.weight, DType::kF32);
        ASSERT_NE(reference::bits(run(*backend, plain)), expected) << "the control";
      }
    }
  }
}

// A checkpoint may hold any code, -128 too. An input of one 1 picks a column out.
TEST_P(GemmOf, EveryCodeCountsAsWhatItStandsFor) {
  const auto backend = make(1);
  for (const DType type : {DType::kI8, DType::kI4}) {
    const int codes = type == DType::kI8 ? 256 : 16;
    const int64_t outputs = codes, inputs = 40;  // a group and a part of one
    const size_t row_bytes = weight_row_bytes(type, inputs), group_bytes = type == DType::kI8 ? kInt8GroupBytes : kInt4GroupBytes;
    std::vector<std::byte> stored(static_cast<size_t>(outputs) * row_bytes);
    const auto code = [&](int64_t n, int64_t k) { return static_cast<int>((n + 5 * k) % codes) - codes / 2; };
    for (int64_t n = 0; n < outputs; ++n) {
      for (int64_t g = 0; g < 2; ++g) {
        std::byte* group = stored.data() + static_cast<size_t>(n) * row_bytes + static_cast<size_t>(g) * group_bytes;
        const uint16_t one = 0x3C00;  // fp16
        std::memcpy(group, &one, 2);
        for (int64_t i = 0; i < 32; ++i) {
          const int value = code(n, g * 32 + i);
          if (type == DType::kI8) group[2 + i] = static_cast<std::byte>(value);
          if (type == DType::kI4) group[2 + i % 16] |= static_cast<std::byte>((value + 8) << (i / 16 * 4));
        }
      }
    }
    const HostWeight part{.data = stored.data(), .dtype = type, .rows = outputs, .cols = inputs};
    const auto weight = backend->load_weight({&part, 1});
    for (const int64_t rows : {int64_t{1}, inputs}) {  // as it is stored, and widened for many rows
      std::vector<float> x(static_cast<size_t>(rows * inputs));
      for (int64_t k = 0; k < inputs; ++k) {
        if (rows == 1) std::fill(x.begin(), x.end(), 0.0f);
        x[static_cast<size_t>(rows == 1 ? k : k * inputs + k)] = 1.0f;
        if (rows > 1 && k + 1 < inputs) continue;
        const std::vector<float> out = run(*backend, *weight, x, rows, {});
        for (int64_t t = 0; t < rows; ++t) {
          for (int64_t n = 0; n < outputs; ++n) ASSERT_EQ(out[static_cast<size_t>(t * outputs + n)], code(n, rows == 1 ? k : t));
        }
      }
    }
  }
}

TEST_P(GemmOf, ARowHasTheSameBitsInEveryBatch) {
  for (const DType type : kAllTypes) {
    const Problem problem(512, 144, 300, type, true);
    const HostWeight part = problem.host_weight();
    const auto backend = make(2);
    const auto weight = backend->load_weight({&part, 1});
    const std::vector<float> all = run(*backend, *weight, problem.x, 512, problem.bias);
    for (int64_t rows = 1; rows <= 128; ++rows) {
      // The last rows of the 512 this time, so that a row's place in the batch differs too.
      const std::vector<float> x(problem.x.end() - rows * problem.inputs, problem.x.end());
      const std::vector<float> expected(all.end() - rows * problem.outputs, all.end());
      ASSERT_EQ(reference::bits(run(*backend, *weight, x, rows, problem.bias)), reference::bits(expected))
          << rows << " rows";
    }
  }
}

TEST_P(GemmOf, ThreadsChangeNoBit) {
  for (const DType type : {DType::kBF16, DType::kI8, DType::kI4}) {
    const Problem problem(40, 1000, 200, type, true);
    const std::vector<uint32_t> one = reference::bits(run(*make(1), problem));
    for (const int threads : {2, 3, 7}) EXPECT_EQ(reference::bits(run(*make(threads), problem)), one) << threads;
  }
}

TEST_P(GemmOf, ReadsAndWritesStridedRowsAndNothingElse) {
  const auto backend = make(2);
  for (const int64_t rows : {1, 4, 30}) {
    const Problem problem(rows, 40, 24, GetParam() ? DType::kBF16 : DType::kF32, false);
    const HostWeight part = problem.host_weight();
    const auto weight = backend->load_weight({&part, 1});
    std::vector<float> x(static_cast<size_t>(rows * 31), std::numeric_limits<float>::quiet_NaN());
    for (int64_t t = 0; t < rows; ++t) std::copy_n(&problem.x[t * 24], 24, &x[t * 31]);
    std::vector<float> out(static_cast<size_t>(rows * 50), 7.0f);
    backend->gemm(Matrix(out.data(), rows, 40, 50), Matrix(x.data(), rows, 24, 31), *weight, {});
    const std::vector<float> dense = run(*backend, *weight, problem.x, rows, {});
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < 40; ++n) ASSERT_EQ(out[t * 50 + n], dense[t * 40 + n]);
      for (int64_t n = 40; n < 50; ++n) ASSERT_EQ(out[t * 50 + n], 7.0f) << "written past the row";
    }
  }
}

TEST(Gemm, NoRowsTouchNothing) {
  const auto backend = make_cpu_backend({.threads = 2});
  const Problem problem(1, 40, 24, DType::kBF16, true);
  const HostWeight part = problem.host_weight();
  const auto weight = backend->load_weight({&part, 1});
  std::vector<float> x(24, 1.0f), out(40, 7.0f);
  backend->gemm(Matrix(out.data(), 0, 40), Matrix(x.data(), 0, 24), *weight, problem.bias);
  EXPECT_EQ(out, std::vector<float>(40, 7.0f));
}

TEST(LoadWeight, StacksPartsOfAnyAlignmentAndType) {
  const auto backend = make_cpu_backend({.threads = 2});
  const int64_t inputs = 40;
  for (const DType second_type : kTypes) {
    const std::vector<float> a = reference::random_floats(20 * inputs, 5, 1.0f, DType::kBF16);
    const std::vector<float> b = reference::random_floats(31 * inputs, 6, 1.0f, second_type);
    std::vector<std::byte> a_bytes = reference::stored(a, DType::kBF16);
    std::vector<std::byte> b_bytes = reference::stored(b, second_type);
    a_bytes.insert(a_bytes.begin(), std::byte{0});  // odd addresses, as a safetensors header may leave them
    b_bytes.insert(b_bytes.begin(), 3, std::byte{0});
    const HostWeight parts[] = {{a_bytes.data() + 1, DType::kBF16, 20, inputs},
                                {b_bytes.data() + 3, second_type, 31, inputs}};
    const auto weight = backend->load_weight(parts);
    EXPECT_EQ(weight->rows(), 51);
    EXPECT_EQ(weight->cols(), inputs);
    std::vector<float> stacked = a;
    stacked.insert(stacked.end(), b.begin(), b.end());
    const std::vector<float> x = reference::random_floats(inputs, 7);
    const std::vector<double> expected = reference::gemm(x, stacked, {}, 1, 51, inputs);
    EXPECT_LE(reference::largest_difference(run(*backend, *weight, x, 1, {}), expected), 1e-5);
  }
}

TEST(LoadWeight, TakesTheBytesOfItsTypeRoundedUpToAPanel) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<std::byte> bytes(576 * 96 * 2);
  const HostWeight part{bytes.data(), DType::kBF16, 576, 96};
  EXPECT_EQ(backend->load_weight({&part, 1})->bytes(), 576u * 96u * 2u);
}

TEST(LoadWeight, QuantizedTakesItsScalesToo) {
  const auto backend = make_cpu_backend({.threads = 1});
  std::vector<float> values;
  const std::vector<std::byte> int8 = reference::random_quantized_rows(64, 96, DType::kI8, 1, 1.0f, &values);
  const HostWeight int8_part{int8.data(), DType::kI8, 64, 96};
  EXPECT_EQ(backend->load_weight({&int8_part, 1})->bytes(), 64u * (96 + 3 * 2));
  const std::vector<std::byte> int4 = reference::random_quantized_rows(64, 96, DType::kI4, 1, 1.0f, &values);
  const HostWeight int4_part{int4.data(), DType::kI4, 64, 96};
  EXPECT_EQ(backend->load_weight({&int4_part, 1})->bytes(), 64u * (96 / 2 + 3 * 2));
}

TEST_P(GemmOf, EmbeddingGathersRowsOfThePackedTable) {
  const auto backend = make(2);
  for (const DType type : kAllTypes) {
    std::vector<float> table;
    std::vector<std::byte> bytes;
    if (is_quantized(type)) {
      bytes = reference::random_quantized_rows(70, 48, type, 8, 0.01f, &table);
    } else {
      table = reference::random_floats(70 * 48, 8, 1.0f, type);
      bytes = reference::stored(table, type);
    }
    const HostWeight part{bytes.data(), type, 70, 48};
    const auto weight = backend->load_weight({&part, 1});
    const std::vector<int32_t> tokens = {69, 0, 31, 32, 33, 69};
    std::vector<float> out(tokens.size() * 48);
    backend->embedding(Matrix(out.data(), 6, 48), *weight, tokens);
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (int k = 0; k < 48; ++k) ASSERT_EQ(out[t * 48 + k], table[tokens[t] * 48 + k]) << dtype_name(type);
    }
  }
}

TEST(GemmDeathTest, NamesTheSizeThatDoesNotFit) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<std::byte> bytes(8 * 4 * 4);
  const HostWeight part{bytes.data(), DType::kF32, 8, 4};
  const auto weight = backend->load_weight({&part, 1});
  std::vector<float> x(5), out(8);
  EXPECT_DEATH(backend->gemm(Matrix(out.data(), 1, 8), Matrix(x.data(), 1, 5), *weight, {}), "size K of weight");
}

}  // namespace
}  // namespace headroom
