// Whose turn it is. Expected orders are written by hand; the bound on unfairness is the one that the paper proves.
#include "engine/fair_queue.h"

#include <gtest/gtest.h>

#include <deque>

namespace headroom {
namespace {

constexpr auto kAnybody = [](const Sequence&) { return true; };

class FairQueueTest : public testing::Test {
 protected:
  void push(FairQueue& queue, int tenant) {
    Request& request = requests_.emplace_back();
    request.tenant = TenantId{tenant};
    request.arrival = static_cast<int64_t>(requests_.size());
    Sequence& sequence = sequences_.emplace_back();
    sequence.request = &request;
    sequence.tenant = request.tenant;
    queue.push_back(sequence);
  }

  // Lets the next one in and charges it; returns its tenant, -1 if there is none.
  template <typename MayRun>
  int serve(FairQueue& queue, int64_t tokens, const MayRun& may_run) {
    Sequence* next = queue.next(may_run);
    if (next == nullptr) return -1;
    queue.let_in(*next, may_run);
    queue.charge(next->tenant, tokens);
    return static_cast<int>(next->tenant);
  }
  int serve(FairQueue& queue, int64_t tokens) { return serve(queue, tokens, kAnybody); }

  std::deque<Request> requests_;
  std::deque<Sequence> sequences_;
};

TEST_F(FairQueueTest, OneTenantIsServedInTheOrderOfArrival) {
  FairQueue queue({1});
  for (int i = 0; i < 5; ++i) push(queue, 0);
  for (int64_t arrival = 1; arrival <= 5; ++arrival) {
    ASSERT_EQ(queue.next(kAnybody)->request->arrival, arrival);
    serve(queue, 100);
  }
  EXPECT_EQ(queue.next(kAnybody), nullptr);
  EXPECT_EQ(queue.size(), 0);
}

TEST_F(FairQueueTest, AFloodIsPassedByWhoHadLess) {
  FairQueue queue({1, 1});
  for (int i = 0; i < 100; ++i) push(queue, 0);
  EXPECT_EQ(serve(queue, 10), 0);
  push(queue, 1);
  push(queue, 1);
  EXPECT_EQ(serve(queue, 10), 1);  // the count of tenant 0 was 0 when it was last let in: tenant 1 begins there
  EXPECT_EQ(serve(queue, 10), 0);  // both had 10, and tenant 0's came first
  EXPECT_EQ(serve(queue, 10), 1);
  EXPECT_EQ(serve(queue, 10), 0);
}

TEST_F(FairQueueTest, APauseSavesUpNoClaim) {
  FairQueue queue({1, 1});
  for (int i = 0; i < 200; ++i) push(queue, 0);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(serve(queue, 10), 0);
  for (int i = 0; i < 100; ++i) push(queue, 1);
  int of_latecomer = 0;
  for (int i = 0; i < 20; ++i) of_latecomer += serve(queue, 10);
  EXPECT_GE(of_latecomer, 10);
  EXPECT_LE(of_latecomer, 11);  // and not 20, for the hundred that it did not ask for
}

TEST_F(FairQueueTest, WhoMayNotRunHoldsUpNobodyAndSavesUpNoClaim) {
  FairQueue queue({1, 1});
  for (int i = 0; i < 200; ++i) push(queue, i % 2);
  const auto not_0 = [](const Sequence& sequence) { return sequence.tenant != TenantId{0}; };
  for (int i = 0; i < 50; ++i) ASSERT_EQ(serve(queue, 10, not_0), 1);
  int of_held_back = 0;
  for (int i = 0; i < 20; ++i) of_held_back += serve(queue, 10) == 0;
  EXPECT_GE(of_held_back, 10);
  EXPECT_LE(of_held_back, 11);
  const auto nobody = [](const Sequence&) { return false; };
  EXPECT_EQ(queue.next(nobody), nullptr);
}

TEST_F(FairQueueTest, LeavingFromAnyPlace) {
  FairQueue queue({1, 1, 1});
  for (int i = 0; i < 9; ++i) push(queue, i % 3);
  for (const size_t i : {4u, 1u, 7u}) queue.remove(sequences_[i]);  // all of tenant 1
  EXPECT_EQ(queue.size(), 6);
  EXPECT_EQ(queue.first_of(TenantId{1}), nullptr);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(serve(queue, 1), i % 2 * 2);
}

// Service follows the weights, and at no time are two tenants that both wait further apart, by weight, than one request each way:
// Theorem 4.8 of Sheng et al., with nothing charged while it runs.
TEST_F(FairQueueTest, ServiceFollowsTheWeights) {
  constexpr int kWeights[] = {1, 2, 5};
  constexpr int64_t kTokensMax = 40;
  FairQueue queue({1, 2, 5});
  int64_t service[3] = {};
  for (int i = 0; i < 6000; ++i) push(queue, i % 3);
  for (int i = 0; i < 2000; ++i) {
    const int64_t tokens = 1 + i * 7919 % kTokensMax;
    service[serve(queue, tokens)] += tokens;
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) {
        ASSERT_LE(static_cast<double>(service[a]) / kWeights[a] - static_cast<double>(service[b]) / kWeights[b], kTokensMax + 1e-2 * i) << "after " << i;
      }
    }
  }
  EXPECT_NEAR(static_cast<double>(service[2]) / static_cast<double>(service[0]), 5, 0.1);
  EXPECT_NEAR(static_cast<double>(service[1]) / static_cast<double>(service[0]), 2, 0.05);
}

}  // namespace
}  // namespace headroom
