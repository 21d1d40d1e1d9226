#include "engine/kv/page_allocator.h"

#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "kernels/check.h"

namespace headroom {

PageAllocator::PageAllocator(int64_t pages_total, uint64_t order_seed) {
  CHECK_GE(pages_total, 1);
  CHECK_LT(pages_total, std::numeric_limits<int32_t>::max());
  records_.resize(static_cast<size_t>(pages_total));
  std::vector<int32_t> order(records_.size());
  std::iota(order.begin(), order.end(), 0);
  if (order_seed != 0) {
    std::mt19937_64 random(order_seed);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  }
  for (size_t i = order.size(); i-- > 0;) {
    records_[static_cast<size_t>(order[i])].next = free_first_;
    free_first_ = order[i];
  }
  free_ = pages_total;
}

PageAllocator::Record& PageAllocator::record(PageId page) {
  CHECK(index_of(page) >= 0 && index_of(page) < total()) << "page " << index_of(page);
  return records_[static_cast<size_t>(index_of(page))];
}

const PageAllocator::Record& PageAllocator::record(PageId page) const {
  return const_cast<PageAllocator*>(this)->record(page);
}

std::optional<PageId> PageAllocator::take() {
  int32_t page = free_first_;
  if (page != kEnd) {
    free_first_ = records_[static_cast<size_t>(page)].next;
    --free_;
  } else if (cached_oldest_ != kEnd) {
    page = cached_oldest_;
    unlink_cached(page);
    ++evictions_total_;
    listener_->page_evicted(PageId{page});
  } else {
    return std::nullopt;
  }
  Record& taken = records_[static_cast<size_t>(page)];
  CHECK_EQ(taken.references, 0);
  taken = Record{};
  taken.references = 1;
  return PageId{page};
}

void PageAllocator::add_reference(PageId page) {
  Record& r = record(page);
  CHECK(r.references > 0 || r.cacheable) << "page " << index_of(page) << " is free";
  if (r.references == 0) {
    unlink_cached(index_of(page));
    live_written_tokens_ += r.written_tokens;
  }
  CHECK_LT(r.references, std::numeric_limits<int32_t>::max());
  ++r.references;
}

void PageAllocator::release(PageId page) {
  Record& r = record(page);
  CHECK_GT(r.references, 0) << "page " << index_of(page) << " released twice";
  if (--r.references > 0) return;
  live_written_tokens_ -= r.written_tokens;
  if (r.cacheable) {
    append_cached(index_of(page));
    return;
  }
  r = Record{};
  r.next = free_first_;
  free_first_ = index_of(page);
  ++free_;
}

void PageAllocator::set_cacheable(PageId page) {
  Record& r = record(page);
  CHECK_GT(r.references, 0);
  CHECK(listener_ != nullptr);
  r.cacheable = 1;
}

void PageAllocator::clear_cacheable(PageId page) {
  Record& r = record(page);
  CHECK_GT(r.references, 0);
  r.cacheable = 0;
}

void PageAllocator::record_written(PageId page, int32_t tokens) {
  Record& r = record(page);
  CHECK_GT(r.references, 0);
  CHECK_GE(tokens, 0);
  r.written_tokens += static_cast<uint32_t>(tokens);
  live_written_tokens_ += tokens;
}

void PageAllocator::append_cached(int32_t page) {
  Record& r = records_[static_cast<size_t>(page)];
  r.previous = cached_newest_;
  r.next = kEnd;
  if (cached_newest_ != kEnd) {
    records_[static_cast<size_t>(cached_newest_)].next = page;
  } else {
    cached_oldest_ = page;
  }
  cached_newest_ = page;
  ++cached_;
}

void PageAllocator::unlink_cached(int32_t page) {
  Record& r = records_[static_cast<size_t>(page)];
  if (r.previous != kEnd) {
    records_[static_cast<size_t>(r.previous)].next = r.next;
  } else {
    cached_oldest_ = r.next;
  }
  if (r.next != kEnd) {
    records_[static_cast<size_t>(r.next)].previous = r.previous;
  } else {
    cached_newest_ = r.previous;
  }
  r.previous = r.next = kEnd;
  --cached_;
}

void PageAllocator::check_conserved() const {
  int64_t free_listed = 0;
  for (int32_t page = free_first_; page != kEnd; page = records_[static_cast<size_t>(page)].next) {
    const Record& r = records_[static_cast<size_t>(page)];
    CHECK(r.references == 0 && !r.cacheable && r.written_tokens == 0) << "page " << page << " is in the free list";
    ++free_listed;
    CHECK_LE(free_listed, total()) << "the free list has a cycle";
  }
  int64_t cached_listed = 0;
  int32_t previous = kEnd;
  for (int32_t page = cached_oldest_; page != kEnd; page = records_[static_cast<size_t>(page)].next) {
    const Record& r = records_[static_cast<size_t>(page)];
    CHECK(r.references == 0 && r.cacheable) << "page " << page << " is in the cached list";
    CHECK_EQ(r.previous, previous);
    previous = page;
    ++cached_listed;
    CHECK_LE(cached_listed, total()) << "the cached list has a cycle";
  }
  CHECK_EQ(cached_newest_, previous);
  int64_t live = 0;
  int64_t written = 0;
  for (const Record& r : records_) {
    CHECK_GE(r.references, 0);
    if (r.references == 0) continue;
    ++live;
    written += r.written_tokens;
  }
  CHECK_EQ(free_listed, free_);
  CHECK_EQ(cached_listed, cached_);
  CHECK_EQ(free_ + cached_ + live, total());
  CHECK_EQ(written, live_written_tokens_);
}

}  // namespace headroom
