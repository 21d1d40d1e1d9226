// Finds the pages that already hold the K and V of a prompt's first tokens.
//
// Only full pages are kept. A page is named by its chain: the salt of its tenant, then the tokens of every page before
// it, then its own. The 128-bit keyed hash of the chain is only a hint of where to look: on a hit the page's own tokens
// are compared, and its parent must be the very publication that was matched before it, so equality holds by induction
// from the root, where the salt is compared. Invariant I2: a page is published only after it was computed, and never
// written again while it can be found.
//
// A page taken for new content is forgotten first (PageAllocator::EvictionListener). Holders release a chain from its
// end, so that leaves are evicted before their parents. Only a sliding window can drop a parent earlier; its children
// then cannot be found any more, and age out of the cache like any other page.
//
// Thread: the engine thread alone. Cost: matching and publishing are linear in the pages of the prompt, eviction is
// O(1).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/ids.h"
#include "engine/kv/huge_page_allocator.h"
#include "engine/kv/page_allocator.h"
#include "engine/kv/siphash.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

class PrefixCache final : public PageAllocator::EvictionListener {
 public:
  // Where a sequence stands in its chain: behind the last page that it matched or published.
  struct ChainEnd {
    Hash128 salt;
    Hash128 hash;               // of all before
    PageId parent = kNoPage;    // the last page, kNoPage at the root
    int64_t parent_serial = 0;  // the publication of `parent` that is meant, 0 at the root
  };

  // The allocator must outlive the cache. The key must be unknown to clients: random_key() in a server.
  PrefixCache(PageAllocator& allocator, int32_t page_tokens, const HashKey& key);
  ~PrefixCache() override;
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  static HashKey random_key();

  // The start of the chains of one tenant; chains of different salts never meet.
  ChainEnd root(std::string_view salt) const;

  // Appends to `pages` the longest run of cached pages that holds the tokens from `end` on, full pages only, moves
  // `end` behind them, and takes a reference to each: lookup and pin are one call, so nothing can be evicted in
  // between.
  void match_and_pin(std::span<const TokenId> tokens, ChainEnd& end, std::vector<PageId>& pages);

  // Makes `page`, which the caller alone holds and has just filled with the K and V of `tokens`, findable behind `end`,
  // and moves `end` behind it. If a page with the same content is already there, the caller's reference moves to that
  // one and `page` is released. Returns the page the caller now holds. Does nothing when the chain behind `end` has
  // been broken by an eviction. REQUIRES page_tokens tokens.
  PageId publish(PageId page, std::span<const TokenId> tokens, ChainEnd& end);

  // The page, which is live, cannot be found from now on, nor what was published behind it. Holders keep it. Nothing
  // happens if it is not published.
  void forget(PageId page);

  bool is_published(PageId page) const { return entries_[static_cast<size_t>(index_of(page))].serial != 0; }
  int64_t published_pages() const { return published_; }

  void page_evicted(PageId page) override;

  // For tests: every published page can be found, once, and is cacheable; O(pages).
  void check_conserved() const;

 private:
  struct Entry {
    Hash128 salt;
    Hash128 hash;
    int64_t serial = 0;         // of this publication, counted from 1; 0: the page is not published
    int64_t parent_serial = 0;  // 0: the first page of a chain
    int32_t next = -1;          // in the same bucket
  };

  Hash128 extend(const ChainEnd& end, std::span<const TokenId> tokens) const;
  int32_t find(const Hash128& hash, const ChainEnd& end, std::span<const TokenId> tokens) const;
  bool holds(int32_t page, const Hash128& hash, const ChainEnd& end, std::span<const TokenId> tokens) const;
  void advance(ChainEnd& end, int32_t page) const;
  bool is_broken(const ChainEnd& end) const;
  void unpublish(PageId page);
  size_t bucket_of(const Hash128& hash) const { return static_cast<size_t>(hash.low) & (buckets_.size() - 1); }
  std::span<TokenId> tokens_of(int32_t page) const;

  PageAllocator& allocator_;
  const int32_t page_tokens_;
  const HashKey key_;
  std::vector<Entry, HugePageAllocator<Entry>> entries_;      // by page
  std::vector<int32_t, HugePageAllocator<int32_t>> buckets_;  // first page of each, -1: none
  std::unique_ptr<TokenId[]> tokens_;                         // [pages, page_tokens], written as pages are published
  int64_t serials_ = 0;
  int64_t published_ = 0;
};

}  // namespace headroom
