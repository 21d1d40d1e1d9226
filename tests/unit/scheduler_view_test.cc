// The picture of the scheduler beside what it is a picture of: every page in the state that the allocator and the page tables say, and
// as many of each as stats() counts.
#include "engine/scheduler_view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "engine/scheduler.h"

namespace headroom {
namespace {

SchedulerOptions options_of(int64_t pages) {
  SchedulerOptions options;
  options.pages_total = pages;
  options.step_tokens_max = 64;
  options.running_sequences_max = 12;
  options.context_tokens_max = 400;
  return options;
}

// Random requests with few distinct beginnings, so that pages are cached and shared; some are cancelled.
class Driver {
 public:
  Driver(const SchedulerOptions& options, uint64_t seed) : scheduler(options), random_(seed) {}

  void step() {
    if (random_() % 3 == 0 && scheduler.stats().unfinished_requests < 30) submit();
    if (random_() % 23 == 0 && next_ > 1) scheduler.cancel(RequestId{next_ - 1 - static_cast<int64_t>(random_() % 8)});
    const StepPlan& plan = scheduler.plan();
    if (plan.empty()) return;
    std::vector<SampledToken> sampled;
    for (const SequenceId id : plan.sampled) {
      sampled.push_back({id, static_cast<TokenId>(random_() % 50), ++generated_[id] == kGeneratedMax || random_() % 40 == 0});
    }
    scheduler.commit(plan, sampled);
  }

  Scheduler scheduler;

 private:
  void submit() {
    NewRequest request;
    request.id = RequestId{next_++};
    const TokenId beginning = static_cast<TokenId>(random_() % 3);
    for (uint64_t i = 0, n = 1 + random_() % 200; i < n; ++i) request.prompt.push_back(i < 64 ? beginning : static_cast<TokenId>(random_() % 50));
    request.choices = random_() % 4 == 0 ? 3 : 1;
    request.generated_tokens_max = kGeneratedMax;
    ASSERT_TRUE(scheduler.submit(std::move(request)).accepted());
  }

  std::mt19937_64 random_;
  static constexpr int32_t kGeneratedMax = 60;
  std::map<SequenceId, int32_t> generated_;
  int64_t next_ = 1;
};

TEST(SchedulerView, CellsOfOnePageAreTheStatesThatStatsCounts) {
  int64_t cached_seen = 0, shared_seen = 0, preempted_seen = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Driver driver(options_of(80), seed);
    for (int step = 0; step < 150; ++step) {
      driver.step();
      const SchedulerView view = driver.scheduler.view();
      const SchedulerStats stats = driver.scheduler.stats();
      ASSERT_EQ(view.pages_per_cell, 1);
      ASSERT_EQ(static_cast<int64_t>(view.cells.size()), stats.pages.total());
      const auto count = [&](auto matches) { return std::ranges::count_if(view.cells, matches); };
      EXPECT_EQ(count([](uint8_t c) { return c == kCellFree; }), stats.pages.free);
      EXPECT_EQ(count([](uint8_t c) { return c == kCellCached; }), stats.pages.cached);
      EXPECT_EQ(count([](uint8_t c) { return c >= kCellShared; }), stats.pages.live);
      EXPECT_EQ(count([](uint8_t c) { return c == kCellLive; }), 0) << "a live page whose holder was not found";

      int64_t held = 0, own = 0;
      for (const SchedulerView::Request& request : view.requests) {
        held += request.pages;
        own += count([&](uint8_t c) { return c == cell_of(request.id); });
        EXPECT_LE(count([&](uint8_t c) { return c == cell_of(request.id); }), request.pages);
        EXPECT_EQ(request.state == SchedulerView::State::waiting, request.pages == 0);
        preempted_seen += request.preemptions;
      }
      const int64_t shared = count([](uint8_t c) { return c == kCellShared; });
      EXPECT_EQ(own + shared, stats.pages.live);
      EXPECT_GE(held, own + 2 * shared) << "a shared page has two holders at least";
      cached_seen += stats.pages.cached;
      shared_seen += shared;
    }
  }
  EXPECT_GT(cached_seen, 0);
  EXPECT_GT(shared_seen, 0);
  EXPECT_GT(preempted_seen, 0);
}

TEST(SchedulerView, RequestsAreListedOldestFirstWithWhatTheyHold) {
  Scheduler scheduler(options_of(100));
  NewRequest first{.id = RequestId{5}, .prompt = std::vector<TokenId>(100, 1), .generated_tokens_max = 10};
  NewRequest second{.id = RequestId{9}, .prompt = std::vector<TokenId>(20, 2), .generated_tokens_max = 10};
  ASSERT_TRUE(scheduler.submit(first).accepted());
  ASSERT_TRUE(scheduler.submit(second).accepted());
  ASSERT_EQ(scheduler.view().requests.size(), 2u);
  EXPECT_EQ(scheduler.view().requests[0].state, SchedulerView::State::waiting);

  scheduler.commit(scheduler.plan(), {});  // 64 of the 100 tokens: the second is not let in before the first is read
  SchedulerView view = scheduler.view();
  ASSERT_EQ(view.requests.size(), 2u);
  EXPECT_EQ(view.requests[0].id, RequestId{5});
  EXPECT_EQ(view.requests[0].state, SchedulerView::State::prefill);
  EXPECT_EQ(view.requests[0].prompt_tokens, 100);
  EXPECT_EQ(view.requests[0].computed_tokens, 64);
  EXPECT_EQ(view.requests[0].pages, 4);
  EXPECT_EQ(std::ranges::count(view.cells, cell_of(RequestId{5})), 4);
  EXPECT_EQ(view.requests[1].id, RequestId{9});
  EXPECT_EQ(view.requests[1].state, SchedulerView::State::waiting);

  const StepPlan& plan = scheduler.plan();
  ASSERT_EQ(plan.sampled.size(), 2u);
  scheduler.commit(plan, std::vector<SampledToken>{{plan.sampled[0], 1, false}, {plan.sampled[1], 1, false}});
  view = scheduler.view();
  EXPECT_EQ(view.requests[0].state, SchedulerView::State::decode);
  EXPECT_EQ(view.requests[0].computed_tokens, 100);
  EXPECT_EQ(view.requests[0].pages, 7);
  EXPECT_EQ(view.requests[1].pages, 2);
}

// A million pages and a single small request: it must show, in the cells where its pages are.
TEST(SchedulerView, ALargePoolIsBoundedAndASmallRequestStillShows) {
  SchedulerOptions options = options_of(1000000);
  options.page_order_seed = 7;
  Scheduler scheduler(options);
  ASSERT_TRUE(scheduler.submit({.id = RequestId{3}, .prompt = std::vector<TokenId>(33, 1), .generated_tokens_max = 5}).accepted());
  const StepPlan& plan = scheduler.plan();
  const std::vector<PageId> table(scheduler.page_table(plan.sampled[0]).begin(), scheduler.page_table(plan.sampled[0]).end());
  scheduler.commit(plan, std::vector<SampledToken>{{plan.sampled[0], 1, false}});

  const SchedulerView view = scheduler.view();
  EXPECT_EQ(view.pages_per_cell, 62);  // 1,000,000 / 16,384, rounded up
  EXPECT_EQ(view.cells.size(), 16130u);
  EXPECT_LE(static_cast<int64_t>(view.cells.size()), kViewCellsMax);
  ASSERT_EQ(table.size(), 3u);
  std::set<size_t> live;
  for (size_t cell = 0; cell < view.cells.size(); ++cell) {
    if (view.cells[cell] != kCellFree) live.insert(cell);
  }
  EXPECT_TRUE(live.contains(static_cast<size_t>(index_of(table.front()) / 62)));
  EXPECT_TRUE(live.contains(static_cast<size_t>(index_of(table.back()) / 62)));
  for (const size_t cell : live) {
    EXPECT_TRUE(std::ranges::any_of(table, [cell](PageId page) { return static_cast<size_t>(index_of(page) / 62) == cell; }));
  }
}

TEST(SchedulerView, TheListIsBounded) {
  SchedulerOptions options = options_of(10);
  Scheduler scheduler(options);
  for (int64_t id = 1; id <= 200; ++id) {
    ASSERT_TRUE(scheduler.submit({.id = RequestId{id}, .prompt = {1, 2, 3}, .generated_tokens_max = 5}).accepted());
  }
  EXPECT_EQ(scheduler.view().requests.size(), kViewRequestsMax);
  EXPECT_EQ(scheduler.view().requests.back().id, RequestId{static_cast<int64_t>(kViewRequestsMax)});
}

}  // namespace
}  // namespace headroom
