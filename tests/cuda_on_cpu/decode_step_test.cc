// Decode steps that are recorded and replayed: how a batch is filled up, and what becomes of recordings that fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "kernels/cuda/decode_step.h"
#include "tests/gpu/model_run.h"

namespace headroom {
namespace {

using cuda::decode_bucket;
using cuda::DecodeStep;

TEST(DecodeBuckets, AreFewAndHoldTheirRows) {
  std::set<int32_t> buckets;
  for (int32_t rows = 1; rows <= cuda::kDecodeRowsMax; ++rows) {
    const int32_t bucket = decode_bucket(rows);
    ASSERT_GE(bucket, rows);
    ASSERT_LT(bucket, rows + (rows <= 64 ? 8 : 32));
    ASSERT_EQ(decode_bucket(bucket), bucket);
    buckets.insert(bucket);
  }
  EXPECT_LE(buckets.size(), 25u);
}

constexpr cuda::WorkListOptions kCut{.group = 4, .kv_heads = 2, .head_dim = 64, .grid_blocks = 8, .partial_floats_max = 1 << 20};

// The device of the test layer is the host, so what lies there can be read.
TEST(DecodeSteps, BringTheBatchAndItsPaddingToTheirPlaces) {
  DecodeStep step({.rows = 16, .page_entries = 300, .units = 64});
  const int32_t* tokens = step.tokens();
  for (const auto& positions : {std::vector<int32_t>{7, 600, 31}, {0}, {5, 1030, 16, 15, 100, 1, 2, 3, 4}}) {
    const DecodeBatch batch(positions, 16);
    ASSERT_TRUE(step.takes(batch.view()));
    step.put(batch.view(), kCut, 16, nullptr);
    const size_t rows = positions.size();
    const auto bucket = static_cast<size_t>(decode_bucket(static_cast<int32_t>(rows)));
    ASSERT_EQ(step.tokens(), tokens) << "addresses stay";
    ASSERT_EQ(step.batch().rows, static_cast<int32_t>(bucket));
    int32_t units = 0;
    for (size_t row = 0; row < bucket; ++row) {
      const bool padding = row >= rows;
      ASSERT_EQ(step.tokens()[row], padding ? 0 : batch.tokens[row]);
      ASSERT_EQ(step.positions()[row], padding ? -1 : positions[row]);
      ASSERT_EQ(step.row_pages()[row], padding ? -1 : positions[row] / 16 * static_cast<int32_t>(rows) + static_cast<int32_t>(row));
      ASSERT_EQ(step.tiles()[row].first_row, static_cast<int32_t>(row));
      ASSERT_EQ(step.tiles()[row].last_split, padding ? 0 : positions[row] / 512 + 1);
      units += padding ? 1 : positions[row] / 512 + 1;
    }
    ASSERT_EQ(*step.unit_count(), units);
    ASSERT_EQ(std::memcmp(step.page_tables(), batch.pages.data(), batch.pages.size() * sizeof(int32_t)), 0);
  }
}

TEST(DecodeSteps, TakeOneRowOfEachSequenceWithinTheirLimits) {
  const DecodeStep step({.rows = 8, .page_entries = 20, .units = 64});
  EXPECT_TRUE(step.takes(DecodeBatch({1, 2, 3, 4, 5, 6, 7, 8}, 16).view()));
  EXPECT_FALSE(step.takes(DecodeBatch({1, 2, 3, 4, 5, 6, 7, 8, 9}, 16).view())) << "rows";
  EXPECT_TRUE(step.takes(DecodeBatch({319}, 16).view()));
  EXPECT_FALSE(step.takes(DecodeBatch({320}, 16).view())) << "pages";
  const DecodeBatch one({16}, 16);
  const std::vector<int32_t> two_rows = {0, 2}, positions = {15, 16}, tokens = {1, 2};
  EXPECT_FALSE(step.takes({2, tokens, positions, two_rows, one.pages, one.begin})) << "a prompt";
}

// Whichever call fails, it is an error with the call's name, and the same step comes right afterwards.
TEST(Recordings, ThatFailAreThrown) {
  ModelRun other(false, DType::kBF16, 0);
  other.prefill(0, 0, 3);
  other.decode({0}, {3});
  const std::vector<float> expected = other.decode({0}, {4});
  const char* calls[] = {"cudaEventRecord", "cudaEventSynchronize",   "cudaEventSynchronize", "cudaMemcpyAsync", "cudaMemcpyAsync",
                         "cudaEventRecord", "cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphLaunch", "cudaMemcpyAsync"};
  for (int k = 0; k < std::ssize(calls); ++k) {
    ModelRun run(true, DType::kBF16, 0);
    run.prefill(0, 0, 3);
    run.decode({0}, {3});  // the bucket's first; the next one is recorded
    cuda_on_cpu::fail_after(k, cudaErrorMemoryAllocation);
    std::string what;
    try {
      run.decode({0}, {4});
    } catch (const BackendError& error) {
      what = error.what();
    }
    EXPECT_THAT(what, testing::HasSubstr(calls[k])) << k;
    EXPECT_EQ(run.decode({0}, {4}), expected) << k;
  }
}

}  // namespace
}  // namespace headroom
