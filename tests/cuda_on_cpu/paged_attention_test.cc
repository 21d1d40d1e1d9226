// The CUDA attention kernel, run on the CPU, against the float64 reference; and to the bit, what may not change its results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_on_cpu/block.h"
#include "tests/kernels/attention_cases.h"

namespace headroom {
namespace {

using namespace attention_cases;

std::unique_ptr<Backend> backend_with(int32_t attention_blocks = 5) {
  return make_cuda_backend({.multiprocessors = 4, .attention_blocks = attention_blocks});
}

// Queries, keys and values are exact in the type, but for queries over int8 pages, which are rounded to bf16; what remains is the
// rounding of the weights to 8 or 11 bits.
double tolerance(DType type) { return type == DType::kBF16 ? 4e-3 : type == DType::kI8 ? 6e-3 : 5e-4; }

// Lengths around pages, blocks of keys and splits, as single tokens and in chunks.
class CudaAttention : public testing::TestWithParam<std::tuple<int32_t, int32_t>> {};

TEST_P(CudaAttention, MatchesTheReferenceAtEveryLengthAroundAPageAndASplit) {
  const auto [head_dim, group] = GetParam();
  const auto backend = backend_with();
  struct Case {
    DType type;
    int32_t page_tokens;
    std::vector<int32_t> cuts;  // rows from the second on are attended
  };
  std::vector<Case> cases;
  const std::vector<int32_t> around_pages{0, 0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 68};
  for (const int32_t page_tokens : {16, 32, 64}) cases.push_back({DType::kBF16, page_tokens, around_pages});
  cases.push_back({DType::kF16, 16, around_pages});
  if (head_dim % 16 == 0) cases.push_back({DType::kI8, 32, around_pages});
  if (group % 7 == 1) {
    cases.push_back({DType::kBF16, 16, {0, 500, 511, 512, 513, 514}});
    cases.push_back({DType::kBF16, 32, {0, 1018, 1023, 1024, 1025, 1026}});
    cases.push_back({DType::kI8, 16, {0, 510, 512, 513}});
  }
  for (const Case& c : cases) {
    const int32_t from = c.cuts[1];
    const Shape shape{group, 2, head_dim, c.type, 0};
    const Sequence sequence(shape, c.cuts.back(), 10 + static_cast<uint64_t>(head_dim));
    const std::vector<float> rows = run_alone(*backend, sequence, c.page_tokens, c.cuts, 1, from);
    for (int32_t t = from; t < sequence.tokens; t += t % 16 == 1 && from == 0 ? 13 : 1) {  // 0, 1, 14 to 17, 30 to 33 …
      const std::span<const float> row(rows.data() + (t - from) * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
      ASSERT_LE(reference::relative_error(row, sequence.expected(t, 0)), tolerance(c.type))
          << dtype_name(c.type) << " pages of " << c.page_tokens << ", token " << t;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Grid, CudaAttention, testing::Combine(testing::Values(64, 128), testing::Values(1, 2, 4, 7, 8, 16, 32)));
INSTANTIATE_TEST_SUITE_P(OtherHeads, CudaAttention, testing::Combine(testing::Values(8, 80, 96, 256), testing::Values(3, 32)));

TEST(CudaAttentionWindow, MatchesTheReferenceWithPagesGivenBack) {
  const auto backend = backend_with();
  for (const int32_t window : {1, 16, 33, 64, 100, 512, 513}) {
    const Shape shape{4, 1, 64, DType::kBF16, window};
    const Sequence sequence(shape, 600, static_cast<uint64_t>(window));
    const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 1, 40, 41, 555, 598, 599, 600});
    for (const int32_t t : {0, 1, 15, 16, 33, 40, 63, 64, 65, 99, 100, 101, 400, 511, 512, 513, 555, 598, 599}) {
      const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
      ASSERT_LE(reference::relative_error(row, sequence.expected(t, window)), tolerance(shape.type)) << "window " << window << ", token " << t;
    }
  }
}

TEST(CudaAttentionTolerance, CatchesTheNearestWrongKernels) {
  const auto backend = backend_with();
  const Shape shape{4, 2, 64, DType::kBF16, 60};
  const Sequence sequence(shape, 130, 4);
  const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 130});
  const int32_t t = 129;
  const std::span<const float> row(rows.data() + t * shape.out_cols(), static_cast<size_t>(shape.out_cols()));
  const double bound = tolerance(shape.type);
  ASSERT_LE(reference::relative_error(row, sequence.expected(t, 60)), bound);
  EXPECT_GT(reference::relative_error(row, sequence.expected(t, 60, true)), 5 * bound) << "last key dropped";
  EXPECT_GT(reference::relative_error(row, sequence.expected(t, 59)), 5 * bound) << "window one short";
  EXPECT_GT(reference::relative_error(row, sequence.expected(t, 61)), 5 * bound) << "window one long";
  EXPECT_GT(reference::relative_error(row, sequence.expected(t, 60, false, 1)), 5 * bound) << "wrong head of the group";
  EXPECT_GT(reference::relative_error(row, sequence.expected(t, 60, false, 0, 1.05)), 5 * bound) << "scale off by 5 %";
}

// ---- Bits.

std::vector<uint32_t> bits_of(Backend& backend, const Sequence& sequence, int32_t page_tokens, const std::vector<int32_t>& cuts,
                              uint64_t seed = 1, int32_t attended_from = 0) {
  return reference::bits(run_alone(backend, sequence, page_tokens, cuts, seed, attended_from));
}

TEST(CudaAttentionBits, PageSizeAndPlacementChangeNothing) {
  for (const auto& [head_dim, type] : {std::pair{40, DType::kBF16}, {128, DType::kBF16}, {80, DType::kI8}}) {
    const Sequence sequence({3, 2, head_dim, type, 0}, 150, 22);
    const auto backend = backend_with();
    const auto expected = bits_of(*backend, sequence, 16, {0, 100, 149, 150});
    for (const int32_t page_tokens : {16, 32, 64}) {
      for (const uint64_t seed : {2, 3}) {
        EXPECT_EQ(bits_of(*backend, sequence, page_tokens, {0, 100, 149, 150}, seed), expected) << page_tokens;
      }
    }
  }
}

// Prefill ≡ decode: tiles of 64, 32 and 16 rows, whole or cut into splits, all keep the same arithmetic.
TEST(CudaAttentionBits, DecodeEqualsPrefillHoweverItIsCut) {
  constexpr DType kBF16 = DType::kBF16, kI8 = DType::kI8;
  for (const auto& [head_dim, group, window, type] : {std::tuple{64, 4, 0, kBF16}, {128, 7, 0, kBF16}, {96, 3, 90, kBF16},
                                                      {256, 2, 0, kBF16}, {64, 32, 70, kBF16}, {64, 7, 0, kI8}, {256, 3, 0, kI8}}) {
    const int32_t tokens = 518;
    const Sequence sequence({group, 1, head_dim, type, window}, tokens, 20);
    const auto backend = backend_with();
    const auto whole = bits_of(*backend, sequence, 16, {0, 440, tokens}, 1, 440);
    std::vector<int32_t> ends{0, 440, 441, 442, 449, 460, 464, 508};
    for (int32_t t = 509; t <= tokens; ++t) ends.push_back(t);
    EXPECT_EQ(bits_of(*backend, sequence, 16, ends, 1, 440), whole) << head_dim << " group " << group;
  }
}

TEST(CudaAttentionBits, GridAndCutChangeNothing) {
  // 1 block: the tiles of the first chunk are enough to stay whole, three splits each; 132: all are cut.
  const Sequence sequence({4, 2, 64, DType::kF16, 0}, 1100, 24);
  const std::vector<int32_t> cuts{0, 1036, 1098, 1099, 1100};
  const auto one = bits_of(*backend_with(1), sequence, 32, cuts, 1, 1036);
  for (const int32_t blocks : {7, 132, 264}) EXPECT_EQ(bits_of(*backend_with(blocks), sequence, 32, cuts, 1, 1036), one) << blocks;
}

TEST(CudaAttentionBits, OrderOfThreadsAndBlocksChangesNothing) {
  using cuda_on_cpu::Order;
  const Sequence sequence({4, 2, 64, DType::kBF16, 0}, 1040, 25);
  const std::vector<int32_t> cuts{0, 1020, 1039, 1040};
  const auto expected = bits_of(*backend_with(), sequence, 16, cuts, 1, 1020);
  for (const Order threads : {Order::descending, Order::shuffled}) {
    for (const Order blocks : {Order::descending, Order::shuffled}) {
      cuda_on_cpu::set_order(threads, blocks);
      EXPECT_EQ(bits_of(*backend_with(), sequence, 16, cuts, 1, 1020), expected);
    }
  }
  cuda_on_cpu::set_order(Order::ascending, Order::ascending);
}

TEST(CudaAttentionBits, BatchMatesChangeNothing) {
  std::mt19937_64 random(99);
  const auto backend = backend_with();
  for (const auto& [head_dim, group, type] : {std::tuple{64, 4, DType::kBF16}, {128, 8, DType::kF16}, {128, 4, DType::kI8}}) {
    const Shape shape{group, 2, head_dim, type, 0};
    std::vector<Sequence> sequences;
    std::vector<std::vector<uint32_t>> alone;
    for (const int32_t tokens : {1, 15, 16, 17, 65, 130, 513}) {
      sequences.emplace_back(shape, tokens, 30 + static_cast<uint64_t>(tokens));
      alone.push_back(bits_of(*backend, sequences.back(), 16, {0, tokens > 500 ? 505 : 0, tokens}, 1, tokens > 500 ? 505 : 0));
    }
    Pool pool(*backend, shape, 16, 100, 7);
    std::vector<std::vector<int32_t>> tables(sequences.size());
    std::vector<int32_t> done(sequences.size());
    const Pool::Chunk before{&sequences.back(), &tables.back(), 0, done.back() = 505};
    pool.step({&before, 1}, false);
    for (bool left = true; left;) {
      std::vector<size_t> who(sequences.size());
      std::iota(who.begin(), who.end(), 0);
      std::shuffle(who.begin(), who.end(), random);
      std::erase_if(who, [&](size_t i) { return done[i] == sequences[i].tokens; });
      left = !who.empty();
      if (!left) break;
      std::vector<Pool::Chunk> chunks;
      for (const size_t i : who) {
        const int32_t rest = sequences[i].tokens - done[i];
        const int32_t count = random() % 2 == 0 ? 1 : 1 + static_cast<int32_t>(random() % static_cast<uint64_t>(rest));
        // Long sequences leave a few rows to decode, not hundreds.
        const int32_t end = done[i] + (rest > 40 ? std::max(count, rest / 2) : count);
        chunks.push_back({&sequences[i], &tables[i], done[i], end});
      }
      const std::vector<uint32_t> rows = reference::bits(pool.step(chunks));
      auto row = rows.begin();
      for (size_t c = 0; c < chunks.size(); ++c) {
        const int64_t count = (chunks[c].end - chunks[c].begin) * shape.out_cols();
        const int64_t to_the_end = (sequences[who[c]].tokens - chunks[c].begin) * shape.out_cols();
        ASSERT_TRUE(std::equal(row, row + count, alone[who[c]].end() - to_the_end))
            << "sequence of " << sequences[who[c]].tokens << ", tokens " << chunks[c].begin << " to " << chunks[c].end;
        row += count;
        done[who[c]] = chunks[c].end;
      }
    }
  }
}

// The same model with repeated KV heads (MHA) has the same bits: a group is only rows.
TEST(CudaAttentionBits, GroupsEqualRepeatedHeads) {
  const Shape grouped{4, 2, 64, DType::kBF16, 0}, repeated{1, 8, 64, DType::kBF16, 0};
  const Sequence sequence(grouped, 90, 26);
  Sequence mha(repeated, 90, 26);
  for (int32_t t = 0; t < 90; ++t) {
    for (int32_t head = 0; head < 8; ++head) {
      const auto put = [&](std::span<const float> from, int32_t at) {
        std::copy(from.begin(), from.end(), mha.qkv.begin() + t * repeated.cols() + int64_t{at} * 64);
      };
      put(sequence.query(t, head), head);
      put(sequence.key(t, head / 4), 8 + head);
      put(sequence.value(t, head / 4), 16 + head);
    }
  }
  const auto backend = backend_with();
  EXPECT_EQ(bits_of(*backend, mha, 16, {0, 80, 89, 90}), bits_of(*backend, sequence, 16, {0, 80, 89, 90}));
}

TEST(CudaAttentionBits, PaddingIsNothing) {
  for (const int32_t blocks : {1, 132}) {
    const auto backend = backend_with(blocks);
    for (const DType type : {DType::kBF16, DType::kF16, DType::kI8}) expect_padding_is_nothing(*backend, {4, 2, 64, type, 0});
    expect_padding_is_nothing(*backend, {1, 2, 128, DType::kBF16, 30});
    expect_padding_is_nothing(*backend, {32, 1, 256, DType::kF16, 0});
  }
}

TEST(CudaAttentionBits, OneChangedKeyShows) {
  const auto backend = backend_with();
  Sequence sequence({3, 2, 64, DType::kBF16, 0}, 80, 23);
  const auto before = bits_of(*backend, sequence, 16, {0, 80});
  float& element = sequence.qkv[static_cast<size_t>(40 * sequence.shape.cols() + sequence.shape.out_cols())];
  element = bf16_to_f32(static_cast<uint16_t>(f32_to_bf16(element) + 1));
  EXPECT_NE(bits_of(*backend, sequence, 16, {0, 80}), before);
}

TEST(CudaAttentionBits, ANaNKeyShows) {
  const auto backend = backend_with();
  for (const DType type : {DType::kBF16, DType::kI8}) {
    const Shape shape{4, 1, 64, type, 0};
    for (const bool value : {false, true}) {
      Sequence sequence(shape, 60, 24);
      const int64_t first = shape.out_cols() + (value ? shape.head_dim : 0);
      for (int64_t i = first; i < first + shape.head_dim; ++i) sequence.qkv[static_cast<size_t>(37 * shape.cols() + i)] = kNaN;
      const std::vector<float> rows = run_alone(*backend, sequence, 16, {0, 37, 60});
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(std::isnan(rows[i]), i >= static_cast<size_t>(37 * shape.out_cols())) << i;
      }
    }
  }
}

}  // namespace
}  // namespace headroom
