// The bounds of the queue beside figures worked out by hand; and a random run against a naive model.
#include "engine/queue_gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace headroom {
namespace {

using std::chrono::milliseconds;
using Refusal = QueueGate::Refusal;

constexpr TenantId kA{0}, kB{1}, kC{2};
const QueueGate::TimePoint kStart{std::chrono::hours(1)};

SchedulerOptions options_of(int32_t requests, int64_t tokens, std::vector<TenantLimits> tenants) {
  SchedulerOptions options;
  options.queue_requests_max = requests;
  options.queue_tokens_max = tokens;
  options.tenants = std::move(tenants);
  return options;
}

// How many places a tenant gets, one after the other.
int places_for(QueueGate& gate, TenantId tenant) {
  int places = 0;
  while (gate.take_places(tenant, 1, kStart) == Refusal::none) ++places;
  return places;
}

TEST(QueueGate, OneTenantMayHaveTheWholeQueue) {
  QueueGate gate(options_of(10, 100, {{}}), kStart);
  EXPECT_EQ(places_for(gate, kA), 10);
  gate.give_back(kA, 3);
  EXPECT_EQ(gate.take_places(kA, 4, kStart), Refusal::queue_full);  // all or none
  EXPECT_EQ(gate.take_places(kA, 3, kStart), Refusal::none);
  EXPECT_EQ(gate.requests(), 10);
}

TEST(QueueGate, AFloodLeavesRoomForTheNext) {
  QueueGate gate(options_of(12, 1000, {{}, {}, {}}), kStart);
  EXPECT_EQ(places_for(gate, kA), 6);  // a half
  EXPECT_EQ(places_for(gate, kB), 3);  // half of what is free
  EXPECT_EQ(places_for(gate, kA), 0);
  EXPECT_EQ(places_for(gate, kC), 2);
  gate.give_back(kA, 6);
  EXPECT_EQ(places_for(gate, kB), 2);  // 5 of its own, 5 free
  QueueGate smallest(options_of(1, 1000, {{}, {}}), kStart);
  EXPECT_EQ(places_for(smallest, kA), 1);
}

TEST(QueueGate, TokensAreBoundedButOnePromptFindsRoom) {
  QueueGate gate(options_of(10, 100, {{}}), kStart);
  ASSERT_EQ(gate.take_places(kA, 4, kStart), Refusal::none);
  EXPECT_TRUE(gate.add_prompt(kA, 150, kStart));  // nobody waits: it must not be refused for ever
  EXPECT_FALSE(gate.add_prompt(kA, 1, kStart));
  gate.leave(kA, 150);
  EXPECT_TRUE(gate.add_prompt(kA, 60, kStart));
  EXPECT_TRUE(gate.add_prompt(kA, 40, kStart));
  EXPECT_FALSE(gate.add_prompt(kA, 1, kStart));
  EXPECT_EQ(gate.tokens_of(kA), 100);

  QueueGate shared(options_of(10, 100, {{}, {}}), kStart);
  ASSERT_EQ(shared.take_places(kA, 3, kStart), Refusal::none);
  ASSERT_EQ(shared.take_places(kB, 3, kStart), Refusal::none);
  EXPECT_TRUE(shared.add_prompt(kA, 50, kStart));
  EXPECT_FALSE(shared.add_prompt(kA, 1, kStart));  // a half is its part while there are others
  EXPECT_TRUE(shared.add_prompt(kB, 30, kStart));
  EXPECT_FALSE(shared.add_prompt(kB, 21, kStart));
}

TEST(QueueGate, OwnLimitsOfATenant) {
  QueueGate gate(options_of(100, 1000, {{.queue_requests_max = 2, .queue_tokens_max = 10}, {}}), kStart);
  EXPECT_EQ(places_for(gate, kA), 2);
  EXPECT_TRUE(gate.add_prompt(kA, 8, kStart));
  EXPECT_FALSE(gate.add_prompt(kA, 3, kStart));
  EXPECT_TRUE(gate.add_prompt(kA, 2, kStart));
  EXPECT_EQ(gate.take_places(kB, 20, kStart), Refusal::none);
}

TEST(QueueGate, OwnLimitsOfTheOnlyTenant) {
  QueueGate gate(options_of(100, 1000, {{.queue_requests_max = 3, .queue_tokens_max = 10}}), kStart);
  EXPECT_EQ(places_for(gate, kA), 3);
  EXPECT_TRUE(gate.add_prompt(kA, 8, kStart));
  EXPECT_FALSE(gate.add_prompt(kA, 3, kStart));
  EXPECT_TRUE(gate.add_prompt(kA, 2, kStart));
}

// What it says of an empty queue is what an empty queue does.
TEST(QueueGate, KnowsWhatItNeverHasRoomFor) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TenantLimits> tenants(1 + random() % 2);
    if (random() % 2 == 0) tenants[0].queue_tokens_max = 1 + random() % 100;
    std::vector<int64_t> prompts(1 + random() % 4);
    for (int64_t& tokens : prompts) tokens = 1 + random() % 60;
    QueueGate gate(options_of(10, 100, tenants), kStart);
    ASSERT_EQ(gate.take_places(kA, static_cast<int32_t>(prompts.size()), kStart), Refusal::none);
    const bool expected = gate.has_room_when_empty(kA, prompts);
    const bool seen = std::all_of(prompts.begin(), prompts.end(), [&](int64_t tokens) { return gate.add_prompt(kA, tokens, kStart); });
    EXPECT_EQ(seen, expected);
  }
}

TEST(QueueGate, RequestsPerMinute) {
  QueueGate gate(options_of(1000, 1000, {{.requests_per_minute = 6}, {}}), kStart);
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(gate.take_places(kA, 1, kStart), Refusal::none);
    gate.give_back(kA, 1);
  }
  EXPECT_EQ(gate.take_places(kA, 1, kStart), Refusal::too_fast);
  EXPECT_NEAR(gate.seconds_until_allowed(kA, kStart), 10, 1e-6);  // one each ten seconds
  EXPECT_EQ(gate.take_places(kA, 1, kStart + milliseconds(9900)), Refusal::too_fast);
  EXPECT_EQ(gate.take_places(kA, 1, kStart + milliseconds(10100)), Refusal::none);
  EXPECT_EQ(gate.take_places(kB, 1, kStart), Refusal::none);
  EXPECT_NEAR(gate.seconds_until_allowed(kB, kStart), 0, 0);
}

TEST(QueueGate, TokensPerMinuteAreOwedIfNeedBe) {
  QueueGate gate(options_of(1000, 100000, {{.tokens_per_minute = 600}, {}}), kStart);
  ASSERT_EQ(gate.take_places(kA, 1, kStart), Refusal::none);
  ASSERT_TRUE(gate.add_prompt(kA, 500, kStart));
  gate.leave(kA, 500);
  ASSERT_EQ(gate.take_places(kA, 1, kStart), Refusal::none);  // 100 are left
  gate.charge(kA, 300, kStart);
  EXPECT_EQ(gate.take_places(kA, 1, kStart), Refusal::too_fast);
  EXPECT_NEAR(gate.seconds_until_allowed(kA, kStart), 20.1, 1e-6);  // 200 owed and one more, at ten a second
  EXPECT_EQ(gate.take_places(kA, 1, kStart + milliseconds(20200)), Refusal::none);
  // What nobody used for an hour is no more than a minute's.
  gate.charge(kA, 0, kStart + std::chrono::hours(2));
  gate.charge(kA, 600, kStart + std::chrono::hours(2));
  EXPECT_EQ(gate.take_places(kA, 1, kStart + std::chrono::hours(2)), Refusal::too_fast);
}

// Places and tokens, whoever comes and goes: never beyond the bounds, and never refused while the naive rule says that there is room.
TEST(QueueGate, IsANaiveModelOfItself) {
  std::mt19937 random(7);
  const auto below = [&](size_t bound) { return static_cast<int64_t>(random() % bound); };
  for (int round = 0; round < 200; ++round) {
    const auto requests_max = static_cast<int32_t>(1 + below(20));
    const int64_t tokens_max = 1 + below(200);
    const size_t tenants = 1 + static_cast<size_t>(below(3));
    QueueGate gate(options_of(requests_max, tokens_max, std::vector<TenantLimits>(tenants)), kStart);
    std::vector<int64_t> places(tenants);              // reserved
    std::vector<std::vector<int64_t>> prompts(tenants);  // tokens of each that waits
    const auto sum = [](const std::vector<int64_t>& of) { return std::accumulate(of.begin(), of.end(), int64_t{0}); };
    for (int i = 0; i < 300; ++i) {
      const auto t = static_cast<size_t>(below(tenants));
      const TenantId tenant{static_cast<int32_t>(t)};
      int64_t held = 0, tokens = 0, waiting = 0;
      for (size_t k = 0; k < tenants; ++k) {
        held += places[k] + static_cast<int64_t>(prompts[k].size());
        tokens += sum(prompts[k]);
        waiting += static_cast<int64_t>(prompts[k].size());
      }
      const int64_t own = places[t] + static_cast<int64_t>(prompts[t].size());
      ASSERT_EQ(gate.requests(), held);
      ASSERT_EQ(gate.requests_of(tenant), own);
      ASSERT_EQ(gate.tokens_of(tenant), sum(prompts[t]));
      switch (below(4)) {
        case 0: {
          const int64_t wanted = 1 + below(3);
          const int64_t free = requests_max - held;
          const bool room = wanted <= free && (tenants == 1 || own + wanted <= free);
          ASSERT_EQ(gate.take_places(tenant, static_cast<int32_t>(wanted), kStart), room ? Refusal::none : Refusal::queue_full);
          places[t] += room ? wanted : 0;
          break;
        }
        case 1:
          if (places[t] == 0) break;
          gate.give_back(tenant, 1);
          --places[t];
          break;
        case 2: {
          if (places[t] == 0) break;
          const int64_t size = 1 + below(60);
          const int64_t free = std::max<int64_t>(tokens_max - tokens, 0);
          const bool room = (waiting == 0 || size <= free) && (tenants == 1 || prompts[t].empty() || sum(prompts[t]) + size <= free);
          ASSERT_EQ(gate.add_prompt(tenant, size, kStart), room);
          if (room) prompts[t].push_back(size);
          places[t] -= room ? 1 : 0;
          break;
        }
        default:
          if (prompts[t].empty()) break;
          gate.leave(tenant, prompts[t].back());
          prompts[t].pop_back();
      }
    }
  }
}

}  // namespace
}  // namespace headroom
