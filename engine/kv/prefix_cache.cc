#include "engine/kv/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <random>

#include "kernels/check.h"

namespace headroom {

PrefixCache::PrefixCache(PageAllocator& allocator, int32_t page_tokens, const HashKey& key)
    : allocator_(allocator), page_tokens_(page_tokens), key_(key) {
  CHECK_GE(page_tokens, 1);
  const auto pages = static_cast<size_t>(allocator.total());
  entries_.resize(pages);
  buckets_.assign(std::bit_ceil(pages), -1);
  // Uninitialised: the system gives memory only for pages that are really published.
  tokens_ = std::make_unique_for_overwrite<TokenId[]>(pages * static_cast<size_t>(page_tokens));
  allocator_.set_eviction_listener(this);
}

PrefixCache::~PrefixCache() { allocator_.set_eviction_listener(nullptr); }

HashKey PrefixCache::random_key() {
  std::random_device device;
  const auto word = [&device] { return static_cast<uint64_t>(device()) << 32 | device(); };
  return {word(), word()};
}

PrefixCache::ChainEnd PrefixCache::root(std::string_view salt) const {
  SipHash128 hash(key_);
  ChainEnd end;
  end.salt = hash.finish({reinterpret_cast<const unsigned char*>(salt.data()), salt.size()});
  end.hash = end.salt;
  return end;
}

void PrefixCache::match_and_pin(std::span<const TokenId> tokens, ChainEnd& end, std::vector<PageId>& pages) {
  const auto page_tokens = static_cast<size_t>(page_tokens_);
  if (is_broken(end)) return;
  for (size_t first = 0; first + page_tokens <= tokens.size(); first += page_tokens) {
    const std::span<const TokenId> wanted = tokens.subspan(first, page_tokens);
    const int32_t page = find(extend(end, wanted), end, wanted);
    if (page < 0) return;
    allocator_.add_reference(PageId{page});
    pages.push_back(PageId{page});
    advance(end, page);
  }
}

PageId PrefixCache::publish(PageId page, std::span<const TokenId> tokens, ChainEnd& end) {
  CHECK_EQ(tokens.size(), static_cast<size_t>(page_tokens_));
  CHECK_EQ(allocator_.references(page), 1);
  if (is_broken(end)) return page;
  const Hash128 hash = extend(end, tokens);
  const int32_t same = find(hash, end, tokens);
  if (same >= 0) {
    CHECK_NE(same, index_of(page));
    allocator_.add_reference(PageId{same});
    allocator_.release(page);
    advance(end, same);
    return PageId{same};
  }
  Entry& entry = entries_[static_cast<size_t>(index_of(page))];
  CHECK_EQ(entry.serial, 0);
  int32_t& first = buckets_[bucket_of(hash)];
  entry = {end.salt, hash, ++serials_, end.parent_serial, first};
  first = index_of(page);
  std::ranges::copy(tokens, tokens_of(index_of(page)).begin());
  allocator_.set_cacheable(page);
  ++published_;
  advance(end, index_of(page));
  return page;
}

void PrefixCache::page_evicted(PageId page) { unpublish(page); }

void PrefixCache::forget(PageId page) {
  if (!is_published(page)) return;
  unpublish(page);
  allocator_.clear_cacheable(page);
}

void PrefixCache::unpublish(PageId page) {
  Entry& entry = entries_[static_cast<size_t>(index_of(page))];
  CHECK_GT(entry.serial, 0);
  int32_t* link = &buckets_[bucket_of(entry.hash)];
  while (*link != index_of(page)) {
    CHECK_GE(*link, 0) << "page " << index_of(page) << " is not in its bucket";
    link = &entries_[static_cast<size_t>(*link)].next;
  }
  *link = entry.next;
  entry = Entry{};
  --published_;
}

Hash128 PrefixCache::extend(const ChainEnd& end, std::span<const TokenId> tokens) const {
  SipHash128 hash(key_);
  hash.add_word(end.hash.low);
  hash.add_word(end.hash.high);
  size_t i = 0;
  for (; i + 1 < tokens.size(); i += 2) {
    hash.add_word(static_cast<uint64_t>(static_cast<uint32_t>(tokens[i + 1])) << 32 | static_cast<uint32_t>(tokens[i]));
  }
  if (i < tokens.size()) hash.add_word(static_cast<uint32_t>(tokens[i]));
  return hash.finish();
}

int32_t PrefixCache::find(const Hash128& hash, const ChainEnd& end, std::span<const TokenId> tokens) const {
  int32_t page = buckets_[bucket_of(hash)];
  while (page >= 0 && !holds(page, hash, end, tokens)) page = entries_[static_cast<size_t>(page)].next;
  return page;
}

bool PrefixCache::holds(int32_t page, const Hash128& hash, const ChainEnd& end, std::span<const TokenId> tokens) const {
  const Entry& entry = entries_[static_cast<size_t>(page)];
  if (!(entry.hash == hash)) return false;  // most often; the rest makes a hit certain
  if (entry.parent_serial != end.parent_serial || !(entry.salt == end.salt)) return false;
  return std::ranges::equal(tokens_of(page), tokens);
}

void PrefixCache::advance(ChainEnd& end, int32_t page) const {
  const Entry& entry = entries_[static_cast<size_t>(page)];
  end.hash = entry.hash;
  end.parent = PageId{page};
  end.parent_serial = entry.serial;
}

bool PrefixCache::is_broken(const ChainEnd& end) const {
  if (end.parent == kNoPage) return false;
  return entries_[static_cast<size_t>(index_of(end.parent))].serial != end.parent_serial;
}

std::span<TokenId> PrefixCache::tokens_of(int32_t page) const {
  const auto page_tokens = static_cast<size_t>(page_tokens_);
  return {tokens_.get() + static_cast<size_t>(page) * page_tokens, page_tokens};
}

void PrefixCache::check_conserved() const {
  std::vector<int32_t> found(entries_.size(), 0);
  for (size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    for (int32_t page = buckets_[bucket]; page >= 0; page = entries_[static_cast<size_t>(page)].next) {
      CHECK_EQ(bucket_of(entries_[static_cast<size_t>(page)].hash), bucket);
      CHECK_EQ(++found[static_cast<size_t>(page)], 1) << "page " << page << " is listed twice";
    }
  }
  int64_t published = 0;
  for (size_t page = 0; page < entries_.size(); ++page) {
    const bool is_published = entries_[page].serial != 0;
    CHECK_EQ(found[page], is_published ? 1 : 0) << "page " << page;
    CHECK_EQ(allocator_.is_cacheable(PageId{static_cast<int32_t>(page)}), is_published) << "page " << page;
    published += is_published ? 1 : 0;
  }
  CHECK_EQ(published, published_);
}

}  // namespace headroom
