#include "engine/step_pace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace headroom {
namespace {

// A machine whose step takes base + tokens · token seconds. Returns the longest of `steps` steps with prompts, after `warm_up` of them.
struct Machine {
  double base_seconds, token_seconds;
  double step(int32_t tokens) const { return base_seconds + tokens * token_seconds; }
};

double longest_step(StepPace& pace, const Machine& machine, int warm_up, int steps) {
  double longest = 0;
  for (int i = 0; i < warm_up + steps; ++i) {
    const int32_t tokens = pace.chunk_tokens();
    pace.note(8, tokens, machine.step(tokens));
    if (i >= warm_up) longest = std::max(longest, machine.step(tokens));
  }
  return longest;
}

TEST(StepPaceTest, NoBound) {
  StepPace pace(0, 512);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(pace.chunk_tokens(), 512);
    pace.note(1, 512, 1.0);
  }
}

// 20 ms and 1 ms a token: three times 20 ms leave 40 tokens. The closed form, for machines from a slow CPU to a fast device.
TEST(StepPaceTest, StepsOfATimeInProportion) {
  struct Case {
    Machine machine;
    int32_t wanted;
  };
  for (const auto& [machine, wanted] : {Case{{0.020, 0.001}, 40}, Case{{0.090, 0.012}, 15}, Case{{0.004, 0.00002}, 400}, Case{{0.010, 0.00001}, 512}}) {
    StepPace pace(3, 512);
    for (int i = 0; i < 10; ++i) pace.note(8, 0, machine.base_seconds);
    longest_step(pace, machine, 40, 0);
    EXPECT_NEAR(pace.chunk_tokens() == 1 ? wanted : pace.chunk_tokens(), wanted, 1) << machine.base_seconds;
    EXPECT_LE(longest_step(pace, machine, 0, 200), 3.05 * machine.base_seconds);
  }
}

// Prompts from the first step on: the base is found out by steps with one token of them, of which there is at least one in 33.
TEST(StepPaceTest, PromptsWithoutAPause) {
  const Machine machine{0.020, 0.001};
  StepPace pace(3, 512);
  int since = 0, longest_since = 0;
  for (int i = 0; i < 1000; ++i) {
    const int32_t tokens = pace.chunk_tokens();
    since = tokens == 1 ? 0 : since + 1;
    longest_since = std::max(longest_since, since);
    pace.note(8, tokens, machine.step(tokens));
  }
  EXPECT_EQ(longest_since, 32);
  EXPECT_LE(longest_step(pace, machine, 0, 100), 3.2 * 0.020);
}

// The machine becomes slower for prompts, as their context grows; and one step that it held up does not decide.
TEST(StepPaceTest, FollowsTheMachine) {
  StepPace pace(3, 512);
  Machine machine{0.020, 0.0005};
  for (int i = 0; i < 5; ++i) pace.note(8, 0, machine.base_seconds);
  longest_step(pace, machine, 40, 0);
  const int32_t before = std::max(pace.chunk_tokens(), 2);
  EXPECT_NEAR(before, 80, 2);
  pace.note(8, before, 10 * machine.step(before));  // 0.58 s more
  EXPECT_GE(pace.chunk_tokens(), 12) << "a quarter of the weight";
  machine.token_seconds = 0.002;
  EXPECT_LE(longest_step(pace, machine, 20, 100), 3.1 * 0.020);
}

TEST(StepPaceTest, Bounds) {
  StepPace slow(3, 512);
  slow.note(1, 0, 0.001);
  slow.note(1, 64, 64.0);  // a second a token
  EXPECT_EQ(slow.chunk_tokens(), 8) << "prompts advance all the same";
  StepPace small(3, 4);
  EXPECT_EQ(small.chunk_tokens(), 4);
  small.note(1, 0, 0.001);
  small.note(1, 4, 4.0);
  EXPECT_EQ(small.chunk_tokens(), 4);
  StepPace random(3, 64);
  std::mt19937 generator(1);
  for (int i = 0; i < 10000; ++i) {
    ASSERT_GE(random.chunk_tokens(), 1);
    ASSERT_LE(random.chunk_tokens(), 64);
    random.note(static_cast<int32_t>(generator() % 3), static_cast<int32_t>(generator() % 65), static_cast<double>(generator() % 1000) / 500);
  }
}

}  // namespace
}  // namespace headroom
