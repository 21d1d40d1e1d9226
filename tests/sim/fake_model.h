// A model whose K and V can be read by eye. The content of the slot of position p is one number that depends on the
// salt of the request and on its tokens 0 .. p, and on nothing else; the next token depends on the content of the last
// slot, the request's seed and the choice. So a slot that was not written, or written for anybody else, shows at once,
// and what a request must answer is known from its prompt alone. A row can be spoiled, as by a device that computes no
// number there: its slot still tells whose it is, and every row that reads it is spoiled too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/tokenizer/token_id.h"
#include "tests/sim/random.h"

namespace headroom::sim {

using Content = uint64_t;

// What a page holds before anybody wrote to it.
inline constexpr Content kPoison = 0;

// The lowest bit says that a content is sound.
inline Content spoiled(Content content) { return content & ~Content{1}; }
inline Content sound(Content content) { return content | 1; }
inline bool is_spoiled(Content content) { return (content & 1) == 0; }

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

// The answer of one choice, computed alone and without any cache, into `generated`.
inline void solo_run(std::span<const TokenId> prompt, int32_t salt, const FakeSampler& sampler, int32_t choice,
                     int32_t generated_tokens_max, std::vector<TokenId>& generated) {
  Content content = content_of_root(salt);
  for (TokenId token : prompt) content = content_after(content, token);
  generated.clear();
  bool ended = false;
  while (!ended) {
    const TokenId token = sampler.token(content, choice);
    ended = sampler.ends(content, choice) || static_cast<int32_t>(generated.size()) + 1 >= generated_tokens_max;
    generated.push_back(token);
    content = content_after(content, token);
  }
}

// The pool: [pages, page_tokens].
class FakePool {
 public:
  FakePool(int64_t pages, int32_t page_tokens)
      : page_tokens_(page_tokens), slots_(static_cast<size_t>(pages) * static_cast<size_t>(page_tokens), kPoison) {}

  Content* page(PageId page) {
    return slots_.data() + static_cast<size_t>(index_of(page)) * static_cast<size_t>(page_tokens_);
  }
  void poison(PageId id) { std::fill_n(page(id), page_tokens_, kPoison); }
  void copy(PageId from, PageId to) { std::copy_n(page(from), page_tokens_, page(to)); }

 private:

  int32_t page_tokens_;
  std::vector<Content> slots_;
};

}  // namespace headroom::sim
