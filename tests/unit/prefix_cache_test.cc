#include "engine/kv/prefix_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tests/sim/random.h"

namespace headroom {
namespace {

using Tokens = std::vector<TokenId>;

std::string hex(const Hash128& hash) {
  std::string text;
  for (uint64_t word : {hash.low, hash.high}) {
    for (int byte = 0; byte < 8; ++byte) {
      constexpr char kDigits[] = "0123456789ABCDEF";
      text += kDigits[word >> (8 * byte + 4) & 15];
      text += kDigits[word >> (8 * byte) & 15];
    }
  }
  return text;
}

// Expected values: openssl mac -macopt hexkey:000102030405060708090a0b0c0d0e0f -macopt size:16 -in FILE SIPHASH, where
// the file holds the bytes 0, 1, 2, … of that length.
TEST(SipHash128, GivesTheValuesOfOpenssl) {
  const HashKey key{0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL};
  const std::map<size_t, std::string> expected = {
      {0, "A3817F04BA25A8E66DF67214C7550293"},  {1, "DA87C1D86B99AF44347659119B22FC45"},
      {7, "A1F1EBBED8DBC153C0B84AA61FF08239"},  {8, "3B62A9BA6258F5610F83E264F31497B4"},
      {15, "5493E99933B0A8117E08EC0F97CFC3D9"}, {16, "6EE2A4CA67B054BBFD3315BF85230577"},
      {63, "5150D1772F50834A503E069A973FBD7C"}};
  std::array<unsigned char, 64> bytes;
  std::iota(bytes.begin(), bytes.end(), static_cast<unsigned char>(0));
  for (const auto& [length, hash] : expected) {
    EXPECT_EQ(hex(SipHash128(key).finish(std::span(bytes).first(length))), hash) << length << " bytes";
  }
  SipHash128 words(key);  // the same 16 bytes as words
  words.add_word(0x0706050403020100ULL);
  words.add_word(0x0f0e0d0c0b0a0908ULL);
  EXPECT_EQ(hex(words.finish()), expected.at(16));
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  // Takes pages for the full pages of the tokens and publishes them, as a sequence that computed them would.
  std::vector<PageId> compute(const Tokens& tokens, const std::string& salt = "") {
    auto end = cache.root(salt);
    std::vector<PageId> pages;
    for (size_t i = 0; i + 4 <= tokens.size(); i += 4) {
      pages.push_back(cache.publish(allocator.take().value(), std::span(tokens).subspan(i, 4), end));
    }
    return pages;
  }
  std::vector<PageId> match(const Tokens& tokens, const std::string& salt = "") {
    auto end = cache.root(salt);
    std::vector<PageId> pages;
    cache.match_and_pin(tokens, end, pages);
    return pages;
  }
  void release(const std::vector<PageId>& pages) {
    for (size_t i = pages.size(); i-- > 0;) allocator.release(pages[i]);
  }
  void TearDown() override {
    allocator.check_conserved();
    cache.check_conserved();
  }

  PageAllocator allocator{8};
  PrefixCache cache{allocator, 4, HashKey{1, 2}};
  const Tokens abc = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
};

TEST_F(PrefixCacheTest, FindsFullPagesOnly) {
  const std::vector<PageId> pages = compute(abc);
  ASSERT_EQ(pages.size(), 3u);
  EXPECT_EQ(match({1, 2, 3}), (std::vector<PageId>{}));
  EXPECT_EQ(match({1, 2, 3, 4}), (std::vector<PageId>{pages[0]}));
  EXPECT_EQ(match({1, 2, 3, 4, 5, 6, 7}), (std::vector<PageId>{pages[0]}));
  EXPECT_EQ(match({1, 2, 3, 4, 5, 6, 7, 8, 9}), (std::vector<PageId>{pages[0], pages[1]}));
  EXPECT_EQ(match({1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12}), (std::vector<PageId>{pages[0]}));
  EXPECT_EQ(match({5, 6, 7, 8}), (std::vector<PageId>{}));  // the same tokens at another place
  EXPECT_EQ(allocator.references(pages[0]), 5);             // each match has pinned it
}

TEST_F(PrefixCacheTest, GoesOnWhereTheChainStands) {
  const std::vector<PageId> pages = compute(abc);
  auto end = cache.root("");
  std::vector<PageId> found;
  cache.match_and_pin(std::span(abc).first(4), end, found);
  EXPECT_EQ(found, (std::vector<PageId>{pages[0]}));
  cache.match_and_pin(std::span(abc).subspan(4), end, found);
  EXPECT_EQ(found, pages);
}

TEST_F(PrefixCacheTest, SaltsNeverMeet) {
  const std::vector<PageId> pages = compute(abc, "alice");
  EXPECT_TRUE(match(abc, "bob").empty());
  EXPECT_TRUE(match(abc, "").empty());
  EXPECT_EQ(match(abc, "alice"), pages);
  EXPECT_NE(compute({1, 2, 3, 4}, "bob").at(0), pages[0]);  // not merged either
}

TEST_F(PrefixCacheTest, ASecondCopyIsGivenBack) {
  const std::vector<PageId> first = compute(abc);
  const std::vector<PageId> second = compute(abc);
  EXPECT_EQ(first, second);
  EXPECT_EQ(allocator.counts().live, 3);
  EXPECT_EQ(allocator.counts().free, 5);
  EXPECT_EQ(allocator.references(first[2]), 2);
}

TEST_F(PrefixCacheTest, ReleasedPagesStayUntilRoomIsNeededLeavesFirst) {
  const std::vector<PageId> pages = compute(abc);
  release(pages);
  EXPECT_EQ(allocator.counts().cached, 3);
  for (int i = 0; i < 6; ++i) allocator.take();  // the five free ones and one more
  EXPECT_FALSE(cache.is_published(pages[2]));
  EXPECT_EQ(match(abc), (std::vector<PageId>{pages[0], pages[1]}));
  EXPECT_EQ(cache.published_pages(), 2);
}

TEST_F(PrefixCacheTest, APageTakenForNewContentIsForgotten) {
  const std::vector<PageId> old = compute({1, 2, 3, 4});
  release(old);
  std::vector<PageId> taken;
  while (auto page = allocator.take()) taken.push_back(*page);
  EXPECT_TRUE(match({1, 2, 3, 4}).empty());
  auto end = cache.root("");
  EXPECT_EQ(cache.publish(old[0], Tokens{9, 9, 9, 9}, end), old[0]);
  EXPECT_TRUE(match({1, 2, 3, 4}).empty());
  EXPECT_EQ(match({9, 9, 9, 9}), old);
}

// Only a sliding window releases a parent before its child.
TEST_F(PrefixCacheTest, AChildWithoutItsParentIsNotFoundEvenIfTheParentIsComputedAgain) {
  auto end = cache.root("");
  const PageId parent = cache.publish(allocator.take().value(), Tokens{1, 2, 3, 4}, end);
  const PageId child = cache.publish(allocator.take().value(), Tokens{5, 6, 7, 8}, end);
  allocator.release(parent);
  std::vector<PageId> taken;
  while (auto page = allocator.take()) taken.push_back(*page);
  EXPECT_FALSE(cache.is_published(parent));
  EXPECT_TRUE(match({1, 2, 3, 4, 5, 6, 7, 8}).empty());

  const PageId again = taken.at(0);
  auto other = cache.root("");
  EXPECT_EQ(cache.publish(again, Tokens{1, 2, 3, 4}, other), again);
  EXPECT_EQ(match({1, 2, 3, 4, 5, 6, 7, 8}), (std::vector<PageId>{again}));
  const PageId second_child = cache.publish(taken.at(1), Tokens{5, 6, 7, 8}, other);
  EXPECT_EQ(second_child, taken.at(1));
  EXPECT_NE(second_child, child);
  EXPECT_EQ(match({1, 2, 3, 4, 5, 6, 7, 8}), (std::vector<PageId>{again, second_child}));
}

TEST_F(PrefixCacheTest, AChainBrokenByAnEvictionPublishesNothingMore) {
  auto end = cache.root("");
  const PageId parent = cache.publish(allocator.take().value(), Tokens{1, 2, 3, 4}, end);
  allocator.release(parent);
  std::vector<PageId> taken;
  while (auto page = allocator.take()) taken.push_back(*page);
  EXPECT_EQ(cache.publish(taken[0], Tokens{5, 6, 7, 8}, end), taken[0]);
  EXPECT_FALSE(cache.is_published(taken[0]));
  EXPECT_EQ(cache.published_pages(), 0);
}

TEST_F(PrefixCacheTest, OnlyTheSoleHolderPublishes) {
  const PageId page = allocator.take().value();
  allocator.add_reference(page);
  auto end = cache.root("");
  EXPECT_DEATH(cache.publish(page, Tokens{1, 2, 3, 4}, end), "references");
}

TEST(PrefixCache, RandomKeysDiffer) {
  const HashKey a = PrefixCache::random_key();
  const HashKey b = PrefixCache::random_key();
  EXPECT_TRUE(a.low != b.low || a.high != b.high);
}

// The naive model: what is cached, by salt and by all the tokens up to the end of a page.
TEST(PrefixCache, AgreesWithANaiveModel) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    sim::Random random(seed);
    const int32_t page_tokens = random.between(1, 5);
    PageAllocator allocator(random.between(4, 40), seed);
    PrefixCache cache(allocator, page_tokens, HashKey{random.next(), random.next()});
    std::map<std::pair<std::string, Tokens>, PageId> naive;
    std::vector<std::vector<PageId>> held;
    for (int step = 0; step < 300; ++step) {
      if (!held.empty() && (random.chance(0.4) || allocator.available() < 6)) {
        const auto any = static_cast<size_t>(random.below(static_cast<int32_t>(held.size())));
        for (size_t i = held[any].size(); i-- > 0;) allocator.release(held[any][i]);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(any));
        continue;
      }
      const std::string salt(static_cast<size_t>(random.below(2)), 'x');
      Tokens tokens(static_cast<size_t>(random.between(1, 6 * page_tokens)));
      for (TokenId& token : tokens) token = random.below(2);
      auto end = cache.root(salt);
      std::vector<PageId> pages;
      cache.match_and_pin(tokens, end, pages);

      std::vector<PageId> expected;
      const auto prefix = [&](size_t page_count) {
        return std::pair(
            salt, Tokens(tokens.begin(),
                         tokens.begin() + static_cast<std::ptrdiff_t>(page_count * static_cast<size_t>(page_tokens))));
      };
      const size_t full = tokens.size() / static_cast<size_t>(page_tokens);
      while (expected.size() < full && naive.contains(prefix(expected.size() + 1))) {
        expected.push_back(naive.at(prefix(expected.size() + 1)));
      }
      ASSERT_EQ(pages, expected);
      while (pages.size() < full) {
        const auto page = allocator.take();
        if (!page) break;
        std::erase_if(naive, [&](const auto& entry) { return entry.second == *page; });  // evicted
        const auto whole = std::span(tokens).subspan(pages.size() * static_cast<size_t>(page_tokens),
                                                     static_cast<size_t>(page_tokens));
        ASSERT_EQ(cache.publish(*page, whole, end), *page);
        pages.push_back(*page);
        naive[prefix(pages.size())] = *page;
      }
      held.push_back(pages);
      ASSERT_EQ(cache.published_pages(), static_cast<int64_t>(naive.size()));
      allocator.check_conserved();
      cache.check_conserved();
    }
  }
}

}  // namespace
}  // namespace headroom
