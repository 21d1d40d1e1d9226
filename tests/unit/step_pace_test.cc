#include "engine/step_pace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace headroom {
namespace {

// A machine whose step takes this long for each row, of an answer or a prompt, and for the weights.
struct Machine {
  double weights_seconds, row_seconds;
  double step(int32_t writing, int32_t prompt_tokens) const { return weights_seconds + (writing + prompt_tokens) * row_seconds; }
};

// So many steps with prompts beside `writing` answers; returns the longest.
double longest_step(StepPace& pace, const Machine& machine, int32_t writing, int32_t all, int steps) {
  double longest = 0;
  for (int i = 0; i < steps; ++i) {
    const int32_t tokens = pace.chunk_tokens(writing, all);
    pace.note(writing, tokens, machine.step(writing, tokens));
    longest = std::max(longest, machine.step(writing, tokens));
  }
  return longest;
}

// One that has seen steps without prompts, of so many answers, and then with them.
StepPace paced(int32_t slowdown_max, const Machine& machine, int32_t writing) {
  StepPace pace(slowdown_max, 512);
  pace.note(0, 64, machine.step(0, 64));
  for (int i = 0; i < 10; ++i) pace.note(writing, 0, machine.step(writing, 0));
  for (int i = 0; i < 60; ++i) pace.note(writing, 16, machine.step(writing, 16));
  pace.note(writing, 0, machine.step(writing, 0));
  return pace;
}

TEST(StepPaceTest, NoBound) {
  StepPace pace(0, 512);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(pace.chunk_tokens(1, 100), 512);
    pace.note(1, 512, 1.0);
  }
}

// With 5 a step takes at most 5 times as long as one of those that write, and 1 + 4 / 4 = 2 times as long as one of all. 8 write: of 12 ms
// and 1 ms a row these are 100 ms and, of 9 / 16 / 100, 42 / 56 / 224 ms, of which their own step takes 20. The closed form.
TEST(StepPaceTest, BothBounds) {
  struct Case {
    Machine machine;
    int32_t all, wanted;
  };
  for (const auto& [machine, all, wanted] : {Case{{0.012, 0.001}, 8, 20},          // nobody waits: 2 · 20 - 20
                                             Case{{0.012, 0.001}, 9, 22},          // 42 - 20
                                             Case{{0.012, 0.001}, 16, 36},         // 56 - 20
                                             Case{{0.012, 0.001}, 100, 80},        // 100 - 20
                                             Case{{0.060, 0.012}, 9, 15},          // (2 · 168 - 156) / 12
                                             Case{{0.0039, 0.0000125}, 100, 504},  // (2 · 5.15 - 4) / 0.0125
                                             Case{{0.0039, 0.0000125}, 200, 512}}) {
    StepPace pace = paced(5, machine, 8);
    EXPECT_NEAR(pace.chunk_tokens(8, all), wanted, 1) << all;
    EXPECT_LE(longest_step(pace, machine, 8, all, 200), 1.001 * std::min(5 * machine.step(8, 0), 2 * machine.step(all, 0)));
  }
}

// 32 come at once, and write one after another. With 5, of 10 ms and 1 ms a row: one of all takes 42 ms, twice that is 84 ms, for which
// few must not take more than five times their own step: 5 · 11, 5 · 14. Known from a step of one answer, or of 32, alone.
TEST(StepPaceTest, ACrowdIsLetInAtAnEvenPace) {
  const Machine machine{0.010, 0.001};
  for (const int32_t measured : {1, 32}) {
    StepPace pace = paced(5, machine, measured);
    for (const auto& [writing, wanted] : {std::pair{1, 55 - 11}, {4, 70 - 14}, {8, 84 - 18}, {20, 84 - 30}, {31, 84 - 41}}) {
      EXPECT_NEAR(pace.chunk_tokens(writing, 32), wanted, 1) << writing << " of 32, measured with " << measured;
    }
  }
}

// 40 answers take 16 ms, and a token 0.5 ms at most, as it seems: for 16 answers that would leave 4 ms, less than their part of 6.4.
TEST(StepPaceTest, ABaseIsNeverLessThanItsPart) {
  StepPace pace(5, 512);
  pace.note(0, 10, 0.005);
  pace.note(40, 0, 0.016);
  EXPECT_NEAR(pace.chunk_tokens(16, 40), 51, 1) << "(min(5 · 6.4, 2 · 16) - 6.4) / 0.5";
  EXPECT_NEAR(pace.chunk_tokens(36, 40), 36, 1) << "(2 · 16 - 14) / 0.5";
}

// Before anything else it is seen how long a step without prompts takes. Short prompts say little of a token's time, and longer ones more.
TEST(StepPaceTest, Beginning) {
  StepPace pace(5, 512);
  EXPECT_EQ(pace.chunk_tokens(1, 8), 1);
  pace.note(1, 1, 0.011);
  EXPECT_EQ(pace.chunk_tokens(1, 8), 32) << "a token's time is not known";
  pace.note(0, 1, 0.011);
  EXPECT_EQ(pace.chunk_tokens(1, 1), 8) << "11 ms a token at most";
  pace.note(0, 100, 0.080);
  EXPECT_EQ(pace.chunk_tokens(1, 1), 13) << "0.8 ms at most: (2 · 11 - 11) / 0.8 = 13.75";
  pace.note(0, 2, 0.012);
  EXPECT_EQ(pace.chunk_tokens(1, 1), 13);
}

// Prompts from the first step on: the base is found out by steps with one token of them, of which there is at least one in 33.
TEST(StepPaceTest, PromptsWithoutAPause) {
  const Machine machine{0.012, 0.001};
  StepPace pace(5, 512);
  int since = 0, longest_since = 0;
  for (int i = 0; i < 1000; ++i) {
    const int32_t tokens = pace.chunk_tokens(8, 9);
    since = tokens == 1 ? 0 : since + 1;
    longest_since = std::max(longest_since, since);
    pace.note(8, tokens, machine.step(8, tokens));
  }
  EXPECT_EQ(longest_since, 32);
  EXPECT_LE(longest_step(pace, machine, 8, 9, 100), 1.05 * 0.042);
}

// The machine becomes slower for prompts, as their context grows; and one step that it held up does not decide.
TEST(StepPaceTest, FollowsTheMachine) {
  Machine machine{0.016, 0.0005};
  StepPace pace = paced(5, machine, 8);
  const int32_t before = pace.chunk_tokens(8, 9);
  EXPECT_NEAR(before, 42, 1);  // (2 · 20.5 - 20) / 0.5 = 42
  StepPace held_up = pace;
  held_up.note(8, 42, 0.050);  // 30 / 42 = 0.714 ms a token, of which a quarter counts: 0.554
  EXPECT_NEAR(held_up.chunk_tokens(8, 9), 38, 1) << "(2 · 20.554 - 20) / 0.554 = 38.1";
  held_up = pace;
  held_up.note(8, 42, 0.410);  // ten times as long, which counts as 1 ms a token: 0.625
  EXPECT_NEAR(held_up.chunk_tokens(8, 9), 34, 1) << "(2 · 20.625 - 20) / 0.625 = 34";
  held_up = pace;
  held_up.note(8, 0, 0.200);  // the base counts as 40 ms: 25
  EXPECT_NEAR(held_up.chunk_tokens(8, 9), 52, 1) << "(2 · 25.5 - 25) / 0.5 = 52";
  machine = {0.004, 0.002};  // 8 answers take 20 ms as before
  longest_step(pace, machine, 8, 9, 20);
  EXPECT_LE(longest_step(pace, machine, 8, 9, 100), 1.05 * 2 * 0.022);
}

TEST(StepPaceTest, Bounds) {
  StepPace slow(5, 512);
  slow.note(1, 0, 0.001);
  slow.note(1, 64, 64.0);  // a second a token
  EXPECT_EQ(slow.chunk_tokens(1, 1), 8) << "prompts advance all the same";
  EXPECT_EQ(paced(1, {0.012, 0.001}, 8).chunk_tokens(8, 100), 8);
  StepPace small(5, 4);
  small.note(1, 0, 0.001);
  EXPECT_EQ(small.chunk_tokens(1, 1), 4);
  small.note(1, 4, 4.0);
  EXPECT_EQ(small.chunk_tokens(1, 1), 4);
  StepPace random(5, 64);
  std::mt19937 generator(1);
  for (int i = 0; i < 10000; ++i) {
    const auto writing = static_cast<int32_t>(generator() % 4), all = static_cast<int32_t>(generator() % 40);
    ASSERT_GE(random.chunk_tokens(writing, all), 1);
    ASSERT_LE(random.chunk_tokens(writing, all), 64);
    random.note(static_cast<int32_t>(generator() % 3), static_cast<int32_t>(generator() % 65), static_cast<double>(generator() % 1000) / 500);
  }
}

}  // namespace
}  // namespace headroom
