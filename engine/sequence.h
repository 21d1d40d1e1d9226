// The state of one request and of its sequences, as the scheduler keeps it. Owned by the scheduler, engine thread
// alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/ids.h"
#include "engine/kv/prefix_cache.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

// What a client asks for, reduced to what decides about pages.
struct NewRequest {
  RequestId id{};                    // unique among the requests that have not ended
  std::vector<TokenId> prompt;       // at least one token
  int32_t choices = 1;               // sequences that continue the prompt, each on its own
  int32_t generated_tokens_max = 1;  // per choice; 0: the prompt is only scored
  std::string cache_salt;            // only requests with the same salt share cached pages
  TenantId tenant{};
  bool all_prompt_logits = false;    // every row of the prompt is computed: no prefix is taken from the cache
};

// The pages of a request, as its client is told.
struct PageUsage {
  int64_t peak_pages = 0;            // distinct pages held at once by all its choices, at most
  int64_t shared_pages_at_peak = 0;  // of those, the ones that came out of the prefix cache
  int64_t cached_prompt_tokens = 0;  // not computed, because the prefix cache had them
  int32_t preemptions = 0;           // of its sequences
};

// Counts the distinct pages that the sequences of one request hold.
class RequestPages {
 public:
  explicit RequestPages(int32_t choices) : choices_(choices) {}

  // `shared`: it came out of the prefix cache. REQUIRES that remove() is told the same as add() for a page.
  void add(PageId page, bool shared);
  void remove(PageId page, bool shared);
  void note_peak(PageUsage& usage) const;

  int64_t held() const { return held_; }

 private:
  struct Holders {
    int32_t count = 0;
    bool shared = false;
  };

  int32_t choices_;
  int64_t held_ = 0;
  int64_t shared_ = 0;
  std::unordered_map<int32_t, Holders> holders_;  // by page; only with several choices, which may hold the same page
};

enum class SequenceState : uint8_t {
  awaiting_fork,  // a choice whose prompt is still being computed by choice 0
  waiting,        // for room; holds no pages
  running,
  ended,
};

struct Request;

// What every step reads comes first and fills two lines of the CPU's cache; a decode does not look at the request.
struct Sequence {
  SequenceId id{};
  RequestId request_id{};
  std::vector<TokenId> tokens;  // the prompt, then what was sampled
  std::vector<PageId> pages;    // of positions 0 .. computed - 1, rounded up; kNoPage below the window
  int32_t choice = 0;
  int32_t slots = 1;          // of running_sequences_max: choice 0 keeps those of all choices until it has forked them
  int32_t computed = 0;       // positions whose K and V are in the pages
  int32_t computed_max = 0;   // the most that `computed` ever was; below it, work is done again after a preemption
  int32_t tokens_max = 0;     // prompt and generated
  int32_t matched_pages = 0;  // the first pages of the table, which came out of the prefix cache
  int32_t dropped_pages = 0;  // the first pages of the table, given back because they are below the window
  int32_t published_pages = 0;  // the first pages of the table, which were offered to the prefix cache
  TenantId tenant{};
  SequenceState state = SequenceState::ended;
  bool forked = false;  // other choices of its request may hold its last page too while that is partial
  Request* request = nullptr;
  PrefixCache::ChainEnd chain;  // behind the published pages
  int64_t pages_wanted = 0;     // what it lacked when it was last refused room, 0: never refused
  Sequence* waiting_previous = nullptr;
  Sequence* waiting_next = nullptr;

  int32_t uncomputed() const { return static_cast<int32_t>(tokens.size()) - computed; }
};

struct Request {
  RequestId id{};
  TenantId tenant{};
  int64_t arrival = 0;  // into the queue
  int64_t turn = 0;     // out of it, once started; smaller is older
  int32_t choices = 1;
  int32_t prompt_tokens = 0;
  int64_t pages_max = 0;  // its worst case, nothing shared
  std::string cache_salt;
  bool all_prompt_logits = false;
  bool started = false;  // it was given room once, and left the bounded queue
  bool cancelled = false;
  int32_t unfinished = 0;            // choices
  std::vector<Sequence*> sequences;  // by choice, null once ended; choice 0 alone until the request is started
  RequestPages pages{1};
  PageUsage usage;
};

// True if a was let in before b, or is an earlier choice of the same request. REQUIRES that both were let in.
bool is_older(const Sequence& a, const Sequence& b);

// Hands out sequences with ids that are never used twice, and recycles their vectors.
class SequencePool {
 public:
  Sequence& create();
  void destroy(Sequence& sequence);
  // REQUIRES a sequence that has not ended.
  Sequence& at(SequenceId id);
  const Sequence& at(SequenceId id) const { return const_cast<SequencePool*>(this)->at(id); }
  bool has_ended(SequenceId id) const;

  int64_t size() const { return places_ - static_cast<int64_t>(free_.size()); }

 private:
  // Sequences stay where they are; a step walks the running ones, so they lie close together.
  static constexpr int32_t kChunkPlaces = 256;
  Sequence& at_place(int32_t place) { return chunks_[static_cast<size_t>(place / kChunkPlaces)][place % kChunkPlaces]; }

  std::vector<std::unique_ptr<Sequence[]>> chunks_;  // by the low bits of the id
  int32_t places_ = 0;
  std::vector<int32_t> free_;
};

// Sequences without room, in some order. A linked list through the sequences: any of them leaves in O(1).
class WaitingList {
 public:
  bool empty() const { return first_ == nullptr; }
  int64_t size() const { return size_; }
  Sequence* first() const { return first_; }
  void push_front(Sequence& sequence);
  void push_back(Sequence& sequence);
  void remove(Sequence& sequence);

 private:
  Sequence* first_ = nullptr;
  Sequence* last_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace headroom
