// A replayed step gives the bits of one that is not recorded, on the layer and on a device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/gpu/model_run.h"
#include "tests/gpu/where.h"

namespace headroom {
namespace {

struct Scenario {
  DType kv;
  int32_t window_tokens;
  int32_t longest_tokens;  // 510: passes a split
};

class Replays : public testing::TestWithParam<Scenario> {};

// Lengths pass a page and a split, sequences come and go, and a prompt comes between, in either run.
TEST_P(Replays, GiveTheBitsOfStepsThatAreNotRecorded) {
  const int32_t longest = GetParam().longest_tokens;
  const int replayed_before = replayed_steps();
  std::vector<std::vector<float>> logits[2];
  for (const bool graphs : {false, true}) {
    ModelRun run(graphs, GetParam().kv, GetParam().window_tokens);
    for (int32_t first = 0; first < longest; first += 51) run.prefill(0, first, std::min(51, longest - first));
    run.prefill(1, 0, 14);
    for (int32_t sequence = 2; sequence < ModelRun::kSequences; ++sequence) run.prefill(sequence, 0, sequence);
    std::vector<int32_t> at = {longest, 14, 2, 3, 4, 5, 6, 7, 8};
    int64_t free_bytes = 0;
    const auto step = [&](const std::vector<int32_t>& sequences) {
      std::vector<int32_t> positions;
      for (const int32_t sequence : sequences) positions.push_back(at[static_cast<size_t>(sequence)]++);
      logits[graphs].push_back(run.decode(sequences, positions));
      if (free_bytes == 0) free_bytes = run.free_bytes();
    };
    for (int i = 0; i < 4; ++i) step({0, 1, 2});
    for (int i = 0; i < 3; ++i) step({0});
    step({2, 1});
    step({3, 4, 5, 0});
    run.prefill(1, at[1], 20);
    at[1] += 20;
    for (int i = 0; i < 3; ++i) step({8, 7, 6, 5, 4, 3, 2, 1, 0});
    step({1, 0, 4});
    if (on_device()) continue;  // whose driver takes memory for recordings
    EXPECT_EQ(run.free_bytes(), free_bytes) << "steps take no memory";
    // All but the first step of each of the buckets 4, 1, 2 and 16.
    EXPECT_EQ(replayed_steps() - replayed_before, graphs ? 13 - 4 : 0);
    if (graphs) {
      EXPECT_EQ(recorded_launches(), 3 + 8 * run.layers()) << "the embedding, the angles, the first norm, and each layer's";
    }
  }
  ASSERT_EQ(logits[0].size(), 13u);
  for (size_t i = 0; i < logits[0].size(); ++i) {
    ASSERT_EQ(logits[0][i].size(), logits[1][i].size());
    EXPECT_EQ(std::memcmp(logits[0][i].data(), logits[1][i].data(), logits[0][i].size() * sizeof(float)), 0) << "step " << i;
    EXPECT_FALSE(std::isnan(logits[0][i].front()));
  }
}
INSTANTIATE_TEST_SUITE_P(Models, Replays, testing::Values(Scenario{DType::kBF16, 0, 510}, Scenario{DType::kF16, 40, 60}, Scenario{DType::kI8, 0, 30}));

TEST(Workspaces, AreWhatWasPredicted) {
  const ModelRun run(true, DType::kBF16, 0);
  EXPECT_NEAR(static_cast<double>(run.reserved()), static_cast<double>(run.predicted()), on_device() ? 32 << 20 : 2048)
      << "but for alignment, on a device by pages of 2 MiB";
  EXPECT_GT(run.reserved(), 100 * 1024);
}

}  // namespace
}  // namespace headroom
