#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/kernels/attention_cases.h"
#include "tests/kernels/reference.h"

namespace headroom {
namespace {

using namespace attention_cases;

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};

// Scores up to about 40 in fp32 put 2^-24 · 40 on the weights. Measured over the grid: at most 3e-6 up to head_dim
// 128, 7.2e-6 at 256.
constexpr double kTolerance = 1.2e-5;

constexpr const char* kNoPairs = "SKIPPED: this CPU has no AVX-512 BF16";

class AttentionShapes : public testing::TestWithParam<std::tuple<int32_t, int32_t>> {};

TEST_P(AttentionShapes, MatchTheReferenceAtEveryLengthAroundAPageAndASplit) {
  const auto [head_dim, group] = GetParam();
  const auto backend = make_cpu_backend({.threads = 2});
  for (const DType type : kTypes) {
    const Shape shape{group, 2, head_dim, type, 0};
    for (const int32_t page_tokens : {16, 32, 64}) {
      const int32_t tokens = page_tokens == 16 && group <= 4 ? 1030 : 140;
      const Sequence sequence(shape, tokens, 10 + static_cast<uint64_t>(head_dim));
      const std::vector<float> rows = run_alone(*backend, sequence, page_tokens, {0, tokens});
      for (const int32_t t :
           {0, 1, 14, 15, 16, 17, 30, 31, 32, 33, 62, 63, 64, 65, 139, 510, 511, 512, 513, 1023, 1024, 1029}) {
        if (t >= tokens) continue;
        const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
        ASSERT_LE(reference::largest_difference(row, sequence.expected(t, 0)), kTolerance)
            << dtype_name(type) << " pages of " << page_tokens << ", token " << t;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Grid, AttentionShapes,
                         testing::Combine(testing::Values(8, 32, 64, 80, 96, 128, 256),
                                          testing::Values(1, 2, 3, 4, 7, 8, 16, 32)));

// ---- Pairs of bf16: queries and softmax weights are rounded. Half a unit in the last place of bf16 is 2^-8 of a weight, and so an output is held
// to 2^-8 of the same sum over the values' magnitudes; queries are given rounded, so that only weights count.

Sequence with_rounded_queries(const Shape& shape, int32_t tokens, uint64_t seed) {
  std::vector<float> values = reference::random_floats(static_cast<size_t>(tokens * shape.cols()), seed, 1.5f);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool query = static_cast<int64_t>(i) % shape.cols() < shape.out_cols();
    values[i] = reference::round_to(query ? DType::kBF16 : shape.type, values[i]);
  }
  return Sequence(shape, tokens, std::move(values));
}

Sequence with_magnitudes(Sequence sequence) {
  for (std::vector<float>* rows : {&sequence.qkv, &sequence.from_pages}) {
    for (size_t i = 0; i < rows->size(); ++i) {
      const int64_t column = static_cast<int64_t>(i) % sequence.shape.cols();
      if (column >= sequence.shape.cols() - int64_t{sequence.shape.kv_heads} * sequence.shape.head_dim) (*rows)[i] = std::abs((*rows)[i]);
    }
  }
  return sequence;
}

// The largest error of a row, as a share of what the rounding of weights may cost.
double share_of_bound(std::span<const float> row, const std::vector<double>& expected, const std::vector<double>& magnitudes) {
  double largest = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double error = std::abs(row[i] - expected[i]) / (magnitudes[i] / 256 + kTolerance);
    if (!(error <= largest)) largest = error;  // a NaN stays
  }
  return largest;
}

TEST_P(AttentionShapes, PairsOfBf16StayWithinTheRoundingOfTheWeights) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << kNoPairs;
  const auto [head_dim, group] = GetParam();
  const auto backend = make_cpu_backend({.threads = 2, .bf16_activations = true});
  for (const DType type : {DType::kBF16, DType::kI8}) {
    for (const int32_t window : {0, 37}) {
      const Shape shape{group, 2, head_dim, type, window};
      const Sequence sequence = with_rounded_queries(shape, 140, 11 + static_cast<uint64_t>(head_dim));
      const Sequence magnitudes = with_magnitudes(sequence);
      const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 60, 61, 62, 63, 139, 140});
      for (const int32_t t : {0, 1, 14, 15, 16, 17, 30, 31, 32, 33, 60, 61, 62, 63, 64, 65, 138, 139}) {
        const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
        ASSERT_LE(share_of_bound(row, sequence.expected(t, window), magnitudes.expected(t, window)), 1.0)
            << dtype_name(type) << ", token " << t << ", window " << window;
      }
    }
  }
}

TEST(AttentionPairs, BoundCatchesTheNearestWrongKernels) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << kNoPairs;
  const auto backend = make_cpu_backend({.threads = 1, .bf16_activations = true});
  for (const DType type : {DType::kBF16, DType::kI8}) {
    const Shape shape{4, 2, 64, type, 20};
    const Sequence sequence = with_rounded_queries(shape, 61, 4);
    const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 61});
    const int32_t t = 60;
    const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
    const std::vector<double> magnitudes = with_magnitudes(sequence).expected(t, 20);
    ASSERT_LE(share_of_bound(row, sequence.expected(t, 20), magnitudes), 1.0);
    EXPECT_GT(share_of_bound(row, sequence.expected(t, 20, true), magnitudes), 5.0) << "last key dropped";
    EXPECT_GT(share_of_bound(row, sequence.expected(t, 19), magnitudes), 2.0) << "window one short";
    EXPECT_GT(share_of_bound(row, sequence.expected(t, 21), magnitudes), 2.0) << "window one long";
    EXPECT_GT(share_of_bound(row, sequence.expected(t, 20, false, 1), magnitudes), 5.0) << "wrong head of the group";
    EXPECT_GT(share_of_bound(row, sequence.expected(t, 20, false, 0, 1.02), magnitudes), 2.0) << "scale off by 2 %";
  }
}

// The weights of a row are shares: whatever they are rounded to, they add up to 1.
TEST(AttentionPairs, AValueThatAllKeysShareComesOutAsItIs) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << kNoPairs;
  const auto backend = make_cpu_backend({.threads = 2, .bf16_activations = true});
  for (const int32_t window : {0, 37}) {
    const Shape shape{3, 2, 64, DType::kBF16, window};
    std::vector<float> values = reference::random_floats(static_cast<size_t>(1030 * shape.cols()), 9, 1.5f);
    for (size_t i = 0; i < values.size(); ++i) {
      if (static_cast<int64_t>(i) % shape.cols() >= shape.cols() - int64_t{shape.kv_heads} * shape.head_dim) values[i] = 1.5f;
    }
    for (const float out : run_alone(*backend, Sequence(shape, 1030, std::move(values)), 16, {0, 700, 1029, 1030})) ASSERT_NEAR(out, 1.5, 1e-5);
  }
}

TEST(AttentionPairs, QueriesAreRounded) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << kNoPairs;
  const auto backend = make_cpu_backend({.threads = 1, .bf16_activations = true});
  const Shape shape{3, 2, 64, DType::kBF16, 0};
  const Sequence exact(shape, 50, reference::random_floats(static_cast<size_t>(50 * shape.cols()), 8, 1.5f));
  const Sequence rounded(shape, 50, reference::random_floats(static_cast<size_t>(50 * shape.cols()), 8, 1.5f, DType::kBF16));
  EXPECT_EQ(reference::bits(run_alone(*backend, exact, 16, {0, 50})), reference::bits(run_alone(*backend, rounded, 16, {0, 50})));
}

TEST(Attention, WindowMatchesTheReferenceWithPagesGivenBack) {
  const auto backend = make_cpu_backend({.threads = 2});
  for (const int32_t window : {1, 2, 15, 16, 17, 33, 64, 100, 511, 512, 513, 700}) {
    const Shape shape{3, 1, 32, DType::kF32, window};
    const Sequence sequence(shape, 1100, static_cast<uint64_t>(window));
    std::vector<int32_t> cuts{0, 1, 40, 41, 555, 600, 1025, 1026};
    for (int32_t t = 1027; t <= 1100; ++t) cuts.push_back(t);
    const std::vector<float> rows = run_alone(*backend, sequence, 16, cuts);
    for (int32_t t = 0; t < 1100; t += t % 7 == 0 ? 1 : 23) {
      const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
      ASSERT_LE(reference::largest_difference(row, sequence.expected(t, window)), kTolerance)
          << "window " << window << ", token " << t;
    }
  }
}

TEST(Attention, ToleranceCatchesTheNearestWrongKernels) {
  const auto backend = make_cpu_backend({.threads = 1});
  const Shape shape{4, 2, 64, DType::kBF16, 200};
  const Sequence sequence(shape, 400, 4);
  const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 400});
  const int32_t t = 399;
  const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
  ASSERT_LE(reference::largest_difference(row, sequence.expected(t, 200)), kTolerance);
  EXPECT_GT(reference::largest_difference(row, sequence.expected(t, 200, true)), 100 * kTolerance)
      << "last key dropped";
  EXPECT_GT(reference::largest_difference(row, sequence.expected(t, 199)), 100 * kTolerance) << "window one short";
  EXPECT_GT(reference::largest_difference(row, sequence.expected(t, 201)), 100 * kTolerance) << "window one long";
  EXPECT_GT(reference::largest_difference(row, sequence.expected(t, 200, false, 1)), 100 * kTolerance)
      << "wrong head of the group";
  EXPECT_GT(reference::largest_difference(row, sequence.expected(t, 200, false, 0, 1.001)), 100 * kTolerance)
      << "scale off by 0.1 %";
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  const auto backend = make_cpu_backend({.threads = 1});
  const Shape shape{1, 1, 32, DType::kF32, 0};
  Sequence sequence(shape, 90, 5);
  for (float& value : sequence.qkv) value *= 30.0f;  // scores of several thousand
  const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 90});
  for (int32_t t = 0; t < 90; ++t) {
    const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
    ASSERT_LE(reference::largest_difference(row, sequence.expected(t, 0)), 0.05) << t;
  }
}

// ---- Bits: what may not change them, in fp32 and in pairs of bf16.

class AttentionBits : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !cpu_multiplies_bf16()) GTEST_SKIP() << kNoPairs;
  }
  std::unique_ptr<Backend> make(int threads) const { return make_cpu_backend({.threads = threads, .bf16_activations = GetParam()}); }
};
INSTANTIATE_TEST_SUITE_P(Arithmetic, AttentionBits, testing::Bool(), [](const auto& info) { return info.param ? "Pairs" : "Fp32"; });

Shape small_shape(DType type, int32_t window = 0) { return {3, 2, 40, type, window}; }

std::vector<int32_t> one_by_one(int32_t tokens) {
  std::vector<int32_t> cuts(static_cast<size_t>(tokens) + 1);
  std::iota(cuts.begin(), cuts.end(), 0);
  return cuts;
}

TEST_P(AttentionBits, DecodeEqualsPrefillHoweverItIsCut) {
  const auto backend = make(2);
  std::mt19937_64 random(77);
  for (const DType type : kTypes) {
    for (const int32_t window : {0, 90}) {
      const int32_t tokens = 1100;
      const Sequence sequence(small_shape(type, window), tokens, 20);
      const auto whole = reference::bits(run_alone(*backend, sequence, 16, {0, tokens}));
      EXPECT_EQ(reference::bits(run_alone(*backend, sequence, 16, one_by_one(tokens))), whole)
          << dtype_name(type) << " token by token";
      for (int round = 0; round < 4; ++round) {
        std::vector<int32_t> cuts{0, tokens};
        for (int i = 0; i < 12; ++i) cuts.push_back(static_cast<int32_t>(random() % tokens));
        std::sort(cuts.begin(), cuts.end());
        cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
        EXPECT_EQ(reference::bits(run_alone(*backend, sequence, 16, cuts)), whole)
            << dtype_name(type) << " round " << round;
      }
    }
  }
}

TEST_P(AttentionBits, PageSizeAndPagePlacementChangeNothing) {
  const auto backend = make(2);
  for (const DType type : kTypes) {
    const Sequence sequence(small_shape(type, 0), 700, 21);
    const auto expected = reference::bits(run_alone(*backend, sequence, 16, {0, 300, 700}, 1));
    for (const int32_t page_tokens : {16, 32, 64}) {
      for (const uint64_t seed : {2, 3}) {
        EXPECT_EQ(reference::bits(run_alone(*backend, sequence, page_tokens, {0, 300, 700}, seed)), expected)
            << page_tokens;
      }
    }
  }
}

TEST_P(AttentionBits, ThreadsChangeNothing) {
  // One long decode (splits go round), and a prefill (tiles go round).
  const Sequence sequence(small_shape(DType::kBF16), 2100, 22);
  const std::vector<int32_t> cuts{0, 2090, 2091, 2092, 2100};
  const auto one = reference::bits(run_alone(*make(1), sequence, 32, cuts));
  for (const int threads : {2, 3, 5}) {
    EXPECT_EQ(reference::bits(run_alone(*make(threads), sequence, 32, cuts)), one)
        << threads << " threads";
  }
}

// KV heads are taken together, sixteen and four; with two threads there are more splits than the room for their states, so that tiles take
// turns. A prefill, alone or beside them, takes each head by itself.
TEST_P(AttentionBits, ManyLongContextsChangeNothing) {
  const int32_t tokens = 4500, last = tokens - 40, mates = 4;
  Shape shape = small_shape(DType::kBF16);
  shape.kv_heads = 20;
  const Sequence sequence(shape, tokens, 23);
  const std::vector<uint32_t> alone = reference::bits(run_alone(*make(2), sequence, 32, {0, last, tokens}, 1, last));
  const std::span<const uint32_t> expected = std::span(alone).last(static_cast<size_t>((tokens - last) * shape.out_cols()));
  for (const int threads : {1, 2}) {
    const auto backend = make(threads);
    Pool pool(*backend, shape, 32, (mates + 1) * (tokens / 32 + 2), 9);
    std::vector<std::vector<int32_t>> tables(mates + 1);
    std::vector<Pool::Chunk> chunks;
    for (std::vector<int32_t>& table : tables) {
      const int32_t known = &table == &tables.back() ? last : tokens - 1;
      const Pool::Chunk before{&sequence, &table, 0, known};
      pool.step({&before, 1}, false);
      chunks.push_back({&sequence, &table, known, tokens});
    }
    const auto decode = std::span(chunks).first(mates);
    for (const std::span<const Pool::Chunk> step : {decode, std::span(chunks)}) {
      const std::vector<uint32_t> rows = reference::bits(pool.step(step));
      auto row = rows.begin();
      for (size_t m = 0; m < step.size(); ++m) {
        const auto own = expected.last(static_cast<size_t>((step[m].end - step[m].begin) * shape.out_cols()));
        EXPECT_TRUE(std::equal(own.begin(), own.end(), row)) << "mate " << m << " of " << step.size() << ", " << threads << " threads";
        row += static_cast<int64_t>(own.size());
      }
    }
  }
}

TEST_P(AttentionBits, BatchMatesChangeNothing) {
  const auto backend = make(2);
  std::mt19937_64 random(99);
  for (const DType type : kTypes) {
    const Shape shape = small_shape(type, type == DType::kF16 ? 70 : 0);
    std::vector<Sequence> sequences;
    std::vector<std::vector<uint32_t>> alone;
    for (const int32_t tokens : {1, 2, 15, 16, 17, 31, 33, 64, 65, 200, 520}) {
      sequences.emplace_back(shape, tokens, 30 + static_cast<uint64_t>(tokens));
      alone.push_back(reference::bits(run_alone(*backend, sequences.back(), 16, {0, tokens})));
    }
    Pool pool(*backend, shape, 16, 100, 7);
    std::vector<std::vector<int32_t>> tables(sequences.size());
    std::vector<int32_t> done(sequences.size());
    for (;;) {
      // A step of random sequences in random order, each with a random chunk.
      std::vector<size_t> order(sequences.size());
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      std::vector<Pool::Chunk> chunks;
      std::vector<size_t> who;
      for (const size_t i : order) {
        const int32_t left = sequences[i].tokens - done[i];
        if (left == 0 || random() % 4 == 0) continue;
        const int32_t count = random() % 2 == 0 ? 1 : 1 + static_cast<int32_t>(random() % left);
        chunks.push_back({&sequences[i], &tables[i], done[i], done[i] + count});
        who.push_back(i);
      }
      if (chunks.empty()) {
        if (std::equal(done.begin(), done.end(), sequences.begin(),
                       [](int32_t d, const Sequence& s) { return d == s.tokens; }))
          break;
        continue;
      }
      const std::vector<uint32_t> rows = reference::bits(pool.step(chunks));
      auto row = rows.begin();
      for (size_t c = 0; c < chunks.size(); ++c) {
        const int64_t count = (chunks[c].end - chunks[c].begin) * shape.out_cols();
        ASSERT_TRUE(std::equal(row, row + count, alone[who[c]].begin() + chunks[c].begin * shape.out_cols()))
            << dtype_name(type) << ", sequence of " << sequences[who[c]].tokens << ", tokens " << chunks[c].begin
            << " to " << chunks[c].end;
        row += count;
        done[who[c]] = chunks[c].end;
      }
    }
  }
}

// The control: the comparison above sees a change of one unit in the last place of one key.
TEST_P(AttentionBits, PaddingIsNothing) {
  for (const int threads : {1, 3}) {
    const auto backend = make(threads);
    for (const DType type : {DType::kBF16, DType::kI8}) expect_padding_is_nothing(*backend, {4, 2, 64, type, 0});
    expect_padding_is_nothing(*backend, {1, 2, 64, DType::kF32, 30});
  }
}

TEST_P(AttentionBits, OneChangedKeyShows) {
  const auto backend = make(1);
  Sequence sequence(small_shape(DType::kF32), 80, 23);
  const auto before = reference::bits(run_alone(*backend, sequence, 16, {0, 80}));
  float& element = sequence.qkv[static_cast<size_t>(40 * sequence.shape.cols() + sequence.shape.out_cols())];
  element = std::nextafter(element, 100.0f);
  EXPECT_NE(reference::bits(run_alone(*backend, sequence, 16, {0, 80})), before);
}

TEST_P(AttentionBits, ANaNOfALaterTokenStaysThere) {
  // A token whose k and v are NaN poisons the rows that see it and no row before it, in the same tile or not.
  const auto backend = make(1);
  for (const DType type : kTypes) {
    const Shape shape = small_shape(type);
    Sequence sequence(shape, 60, 24);
    const std::vector<float> clean = run_alone(*backend, sequence, 16, {0, 60});
    for (int64_t i = shape.out_cols(); i < shape.cols(); i += type == DType::kI8 ? shape.head_dim : 1)  // one is enough for a row of int8
      sequence.qkv[static_cast<size_t>(37 * shape.cols() + i)] = kNaN;
    const std::vector<float> poisoned = run_alone(*backend, sequence, 16, {0, 60});
    const size_t boundary = static_cast<size_t>(37 * shape.out_cols());
    EXPECT_EQ(reference::bits(std::span(poisoned).first(boundary)), reference::bits(std::span(clean).first(boundary)));
    for (size_t i = boundary; i < poisoned.size(); ++i)
      ASSERT_TRUE(std::isnan(poisoned[i])) << "a NaN key or value must show in " << dtype_name(type);
  }
}

// The nearest wrong kernel of int8 pages: one that reads what was not rounded, or a neighbour's scale.
TEST(Attention, Int8RoundsByTokenAndHead) {
  const auto backend = make_cpu_backend({.threads = 1});
  const Shape shape = small_shape(DType::kI8);
  Sequence sequence(shape, 50, 25);
  for (size_t i = 0; i < sequence.qkv.size(); i += 7) sequence.qkv[i] *= 5.0f;  // scales that differ
  sequence = Sequence(shape, 50, sequence.qkv);
  const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 50});
  const std::span<const float> last(rows.data() + 49 * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
  EXPECT_LE(reference::largest_difference(last, sequence.expected(49, 0)), kTolerance);
  Sequence exact = sequence;
  exact.from_pages.clear();
  EXPECT_GT(reference::largest_difference(last, exact.expected(49, 0)), 100 * kTolerance);
}

}  // namespace
}  // namespace headroom
