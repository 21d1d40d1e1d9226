// A model whose K and V can be read by eye. The content of the slot of position p is one number that depends on the
// salt of the request and on its tokens 0 .. p, and on nothing else; the next token depends on the content of the last
// slot, the request's seed and the choice. So a slot that was not written, or written for anybody else, shows at once,
// and what a request must answer is known from its prompt alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/tokenizer/token_id.h"
#include "tests/sim/random.h"

namespace headroom::sim {

using Content = uint64_t;

// What a page holds before anybody wrote to it: the NaN of this model.
inline constexpr Content kPoison = 0;

inline Content content_of_root(int32_t salt) { return mix(0x5a17, static_cast<uint64_t>(salt)) | 1; }
inline Content content_after(Content before, TokenId token) { return mix(before, static_cast<uint64_t>(token)) | 1; }

struct FakeSampler {
  uint64_t seed = 0;
  int32_t vocabulary = 2;
  int32_t end_one_in = 16;  // a token ends its sequence with this chance

  TokenId token(Content last, int32_t choice) const {
    return static_cast<TokenId>(draw(last, choice) % static_cast<uint64_t>(vocabulary));
  }
  bool ends(Content last, int32_t choice) const {
    return (draw(last, choice) >> 32) % static_cast<uint64_t>(end_one_in) == 0;
  }

 private:
  uint64_t draw(Content last, int32_t choice) const { return mix(last ^ seed, static_cast<uint64_t>(choice)); }
};

// The answer of one choice, computed alone and without any cache.
inline std::vector<TokenId> solo_run(std::span<const TokenId> prompt, int32_t salt, const FakeSampler& sampler,
                                     int32_t choice, int32_t generated_tokens_max) {
  Content content = content_of_root(salt);
  for (TokenId token : prompt) content = content_after(content, token);
  std::vector<TokenId> generated;
  bool ended = false;
  while (!ended) {
    const TokenId token = sampler.token(content, choice);
    ended = sampler.ends(content, choice) || static_cast<int32_t>(generated.size()) + 1 >= generated_tokens_max;
    generated.push_back(token);
    content = content_after(content, token);
  }
  return generated;
}

// The pool: [pages, page_tokens].
class FakePool {
 public:
  FakePool(int64_t pages, int32_t page_tokens)
      : page_tokens_(page_tokens), slots_(static_cast<size_t>(pages) * static_cast<size_t>(page_tokens), kPoison) {}

  Content& slot(PageId page, int32_t offset) { return slots_[begin(page) + static_cast<size_t>(offset)]; }
  void poison(PageId page) { fill(page, kPoison); }
  void copy(PageId from, PageId to) {
    for (int32_t i = 0; i < page_tokens_; ++i) slot(to, i) = slot(from, i);
  }

 private:
  size_t begin(PageId page) const { return static_cast<size_t>(index_of(page)) * static_cast<size_t>(page_tokens_); }
  void fill(PageId page, Content content) {
    for (int32_t i = 0; i < page_tokens_; ++i) slot(page, i) = content;
  }

  int32_t page_tokens_;
  std::vector<Content> slots_;
};

}  // namespace headroom::sim
