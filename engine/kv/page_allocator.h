// The pages of the KV pool: who holds each, and which may be taken. It knows numbers, not bytes.
//
// A page is in exactly one state:
//   live    at least one reference; never given to anybody else
//   cached  no reference, but the prefix cache can still find its content; evictable room, oldest first
//   free    no reference, no content
// Invariant I1: free + cached + live == total, and the reference counts are exact.
//
// Thread: the engine thread alone. Cost: every operation is O(1) and touches no memory but the records of the pages it
// names and their list neighbours; construction is O(pages).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/ids.h"
#include "engine/kv/huge_page_allocator.h"

namespace headroom {

struct PageCounts {
  int64_t free = 0;
  int64_t cached = 0;
  int64_t live = 0;
  int64_t total() const { return free + cached + live; }
};

class PageAllocator {
 public:
  // Told when a cached page is taken for new content, before take() returns: it must forget the page.
  class EvictionListener {
   public:
    virtual ~EvictionListener() = default;
    virtual void page_evicted(PageId page) = 0;
  };

  // REQUIRES 1 <= pages_total < 2^31. order_seed 0 hands the pages out in ascending order at first; any other value
  // permutes them, so that a test can show that placement does not matter.
  explicit PageAllocator(int64_t pages_total, uint64_t order_seed = 0);
  PageAllocator(const PageAllocator&) = delete;
  PageAllocator& operator=(const PageAllocator&) = delete;

  // At most one listener, which must outlive its last eviction. Without one, no page may be made cacheable.
  void set_eviction_listener(EvictionListener* listener) { listener_ = listener; }

  // A page with one reference and undefined content: a free one, else the least recently released cached one, which is
  // evicted. Nothing when every page is live.
  std::optional<PageId> take();

  // One more holder. REQUIRES a live or cached page: a free page has no content to share.
  void add_reference(PageId page);

  // One holder less. The last one leaves the page cached if it is cacheable, else free. REQUIRES a live page.
  void release(PageId page);

  // From now on the page is worth keeping when nobody holds it, until it is evicted. REQUIRES a live page.
  void set_cacheable(PageId page);

  // It is not worth keeping after all: nobody can find it any more. REQUIRES a live page.
  void clear_cacheable(PageId page);

  // Counts `tokens` more slots of a live page as written, for the accounting of written against allocated room.
  void record_written(PageId page, int32_t tokens);

  int32_t references(PageId page) const { return record(page).references; }
  bool is_cacheable(PageId page) const { return record(page).cacheable != 0; }
  int32_t written_tokens(PageId page) const { return static_cast<int32_t>(record(page).written_tokens); }

  PageCounts counts() const { return {free_, cached_, total() - free_ - cached_}; }
  int64_t available() const { return free_ + cached_; }  // what take() can still give
  int64_t total() const { return static_cast<int64_t>(records_.size()); }
  int64_t live_written_tokens() const { return live_written_tokens_; }
  int64_t evictions_total() const { return evictions_total_; }

  // I1, for tests and for an idle engine: walks every page, O(pages). A violation is a CHECK failure.
  void check_conserved() const;

 private:
  static constexpr int32_t kEnd = -1;  // no neighbour in a list

  struct Record {  // 16 bytes, four to a line of the CPU's cache
    int32_t references = 0;
    uint32_t written_tokens : 31 = 0;
    uint32_t cacheable : 1 = 0;
    int32_t previous = kEnd;  // of the cached list
    int32_t next = kEnd;      // of the free list or of the cached list
  };

  Record& record(PageId page);
  const Record& record(PageId page) const;
  void append_cached(int32_t page);  // as the most recently released
  void unlink_cached(int32_t page);

  std::vector<Record, HugePageAllocator<Record>> records_;
  int32_t free_first_ = kEnd;     // a stack: a page just freed is still warm
  int32_t cached_oldest_ = kEnd;  // evicted first
  int32_t cached_newest_ = kEnd;
  int64_t free_ = 0;
  int64_t cached_ = 0;
  int64_t live_written_tokens_ = 0;
  int64_t evictions_total_ = 0;
  EvictionListener* listener_ = nullptr;
};

}  // namespace headroom
