#include "engine/kv/page_allocator.h"

#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "tests/sim/random.h"
#include "tests/unit/sanitizer_slowdown.h"

namespace headroom {
namespace {

class Evictions : public PageAllocator::EvictionListener {
 public:
  void page_evicted(PageId page) override { pages.push_back(page); }
  std::vector<PageId> pages;
};

void expect_counts(const PageAllocator& allocator, int64_t free, int64_t cached, int64_t live) {
  allocator.check_conserved();
  EXPECT_EQ(allocator.counts().free, free);
  EXPECT_EQ(allocator.counts().cached, cached);
  EXPECT_EQ(allocator.counts().live, live);
  EXPECT_EQ(allocator.available(), free + cached);
}

TEST(PageAllocator, GivesEveryPageOnceThenNothing) {
  PageAllocator allocator(3);
  expect_counts(allocator, 3, 0, 0);
  std::set<PageId> taken;
  for (int i = 0; i < 3; ++i) taken.insert(allocator.take().value());
  EXPECT_EQ(taken, (std::set<PageId>{PageId{0}, PageId{1}, PageId{2}}));
  EXPECT_EQ(allocator.take(), std::nullopt);
  expect_counts(allocator, 0, 0, 3);
  allocator.release(PageId{1});
  expect_counts(allocator, 1, 0, 2);
  EXPECT_EQ(allocator.take(), PageId{1});
}

TEST(PageAllocator, IsFreeOnlyAfterItsLastHolder) {
  PageAllocator allocator(1);
  const PageId page = allocator.take().value();
  allocator.add_reference(page);
  allocator.release(page);
  EXPECT_EQ(allocator.references(page), 1);
  expect_counts(allocator, 0, 0, 1);
  allocator.release(page);
  expect_counts(allocator, 1, 0, 0);
}

TEST(PageAllocator, EvictsTheLeastRecentlyReleasedAndOnlyWhenNoPageIsFree) {
  PageAllocator allocator(4);
  Evictions evictions;
  allocator.set_eviction_listener(&evictions);
  for (int i = 0; i < 3; ++i) allocator.set_cacheable(allocator.take().value());
  for (PageId page : {PageId{2}, PageId{0}, PageId{1}}) allocator.release(page);
  expect_counts(allocator, 1, 3, 0);
  allocator.add_reference(PageId{0});  // found again: live, and the most recent when it is released
  expect_counts(allocator, 1, 2, 1);
  allocator.release(PageId{0});
  EXPECT_EQ(allocator.take(), PageId{3});  // the free one
  EXPECT_TRUE(evictions.pages.empty());
  for (int i = 0; i < 3; ++i) allocator.take();
  EXPECT_EQ(evictions.pages, (std::vector<PageId>{PageId{2}, PageId{1}, PageId{0}}));
  EXPECT_EQ(allocator.evictions_total(), 3);
  expect_counts(allocator, 0, 0, 4);
  EXPECT_FALSE(allocator.is_cacheable(PageId{2}));  // its new content is not what was cached
}

TEST(PageAllocator, CountsTheWrittenSlotsOfLivePages) {
  PageAllocator allocator(2);
  Evictions evictions;
  allocator.set_eviction_listener(&evictions);
  const PageId a = allocator.take().value();
  const PageId b = allocator.take().value();
  allocator.record_written(a, 16);
  allocator.record_written(b, 3);
  allocator.record_written(b, 2);
  EXPECT_EQ(allocator.live_written_tokens(), 21);
  allocator.add_reference(a);
  EXPECT_EQ(allocator.live_written_tokens(), 21);  // shared, but written once
  allocator.set_cacheable(a);
  allocator.release(a);
  allocator.release(a);
  EXPECT_EQ(allocator.live_written_tokens(), 5);
  allocator.add_reference(a);
  EXPECT_EQ(allocator.live_written_tokens(), 21);
  allocator.release(b);
  EXPECT_EQ(allocator.live_written_tokens(), 16);
  EXPECT_EQ(allocator.written_tokens(b), 0);
}

TEST(PageAllocator, PermutesTheFirstPagesFromASeed) {
  PageAllocator a(64, 7);
  PageAllocator b(64, 7);
  std::vector<PageId> order;
  for (int i = 0; i < 64; ++i) {
    order.push_back(a.take().value());
    EXPECT_EQ(order.back(), b.take().value());
  }
  EXPECT_FALSE(std::ranges::is_sorted(order));
  std::ranges::sort(order);
  for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], PageId{i});
}

TEST(PageAllocatorDeathTest, StopsAtABug) {
  PageAllocator allocator(2);
  const PageId page = allocator.take().value();
  EXPECT_DEATH(allocator.add_reference(PageId{1}), "is free");
  EXPECT_DEATH(allocator.set_cacheable(page), "listener_");
  EXPECT_DEATH(allocator.release(PageId{2}), "page 2");
  EXPECT_DEATH(allocator.release(kNoPage), "page -1");
  allocator.release(page);
  EXPECT_DEATH(allocator.release(page), "released twice");
}

// The same, in the plainest way: references by page, and one list of cached pages from oldest to newest.
struct NaiveAllocator {
  std::map<PageId, int> references;  // of live pages
  std::set<PageId> cacheable;
  std::deque<PageId> cached;
  int64_t total = 0;

  int64_t live() const { return static_cast<int64_t>(references.size()); }
  int64_t free() const { return total - live() - static_cast<int64_t>(cached.size()); }

  void take(PageId page, std::optional<PageId> evicted) {
    if (free() > 0) {
      ASSERT_FALSE(evicted.has_value());
      ASSERT_FALSE(references.contains(page));
      ASSERT_EQ(std::ranges::count(cached, page), 0);
    } else {
      ASSERT_EQ(evicted, page);
      ASSERT_EQ(cached.front(), page);
      cached.pop_front();
      cacheable.erase(page);
    }
    references[page] = 1;
  }
  void add(PageId page) {
    std::erase(cached, page);
    ++references[page];
  }
  void release(PageId page) {
    if (--references[page] > 0) return;
    references.erase(page);
    if (cacheable.contains(page)) cached.push_back(page);
  }
};

TEST(PageAllocator, AgreesWithANaiveModel) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    sim::Random random(seed);
    const int32_t pages = random.between(1, 24);
    PageAllocator allocator(pages, seed);
    Evictions evictions;
    allocator.set_eviction_listener(&evictions);
    NaiveAllocator naive;
    naive.total = pages;
    std::vector<PageId> held;  // once for each reference
    for (int step = 0; step < 500; ++step) {
      const int32_t what = random.below(10);
      const size_t any = held.empty() ? 0 : static_cast<size_t>(random.below(static_cast<int32_t>(held.size())));
      if (what < 4) {
        evictions.pages.clear();
        const std::optional<PageId> page = allocator.take();
        ASSERT_EQ(page.has_value(), naive.live() < pages);
        if (!page) continue;
        naive.take(*page, evictions.pages.empty() ? std::nullopt : std::optional(evictions.pages.at(0)));
        held.push_back(*page);
      } else if (what < 7 && !held.empty()) {
        allocator.release(held[any]);
        naive.release(held[any]);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(any));
      } else if (what == 7 && !held.empty()) {
        allocator.set_cacheable(held[any]);
        naive.cacheable.insert(held[any]);
      } else if (what == 8 && !held.empty()) {
        allocator.add_reference(held[any]);
        naive.add(held[any]);
        held.push_back(held[any]);
      } else if (what == 9 && !naive.cached.empty()) {
        const PageId page = naive.cached[static_cast<size_t>(random.below(static_cast<int32_t>(naive.cached.size())))];
        allocator.add_reference(page);
        naive.add(page);
        held.push_back(page);
      }
      expect_counts(allocator, naive.free(), static_cast<int64_t>(naive.cached.size()), naive.live());
      for (const auto& [page, references] : naive.references) ASSERT_EQ(allocator.references(page), references);
      ASSERT_FALSE(HasFailure());
    }
  }
}

// Nothing after the construction may look at all the pages. Time is that of the thread, which counts little of what
// else the machine does; three pauses are forgiven for that little.
TEST(PageAllocator, ManagesAMillionPagesWithoutAPause) {
  constexpr int64_t kPages = 1000000;
  PageAllocator allocator(kPages, 1);
  Evictions evictions;
  evictions.pages.reserve(kPages);
  allocator.set_eviction_listener(&evictions);
  std::vector<PageId> held;
  held.reserve(kPages);
  const auto now_seconds = [] {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const auto pauses = [&](const auto& call) {  // of more than a millisecond within 20 calls
    int count = 0;
    for (int64_t i = 0; i < kPages; i += 20) {
      const double start = now_seconds();
      for (int k = 0; k < 20; ++k) call();
      if (now_seconds() - start > 1e-3 * kSanitizerSlowdown) ++count;
    }
    return count;
  };
  const auto take = [&] {
    held.push_back(allocator.take().value());
    allocator.set_cacheable(held.back());
  };
  const auto release = [&] {
    allocator.release(held.back());
    held.pop_back();
  };
  EXPECT_LE(pauses(take), 3);
  EXPECT_EQ(allocator.counts().live, kPages);
  EXPECT_LE(pauses(release), 3);
  EXPECT_EQ(allocator.counts().cached, kPages);
  EXPECT_LE(pauses(take), 3);  // each one an eviction
  EXPECT_EQ(allocator.evictions_total(), kPages);
}

}  // namespace
}  // namespace headroom
