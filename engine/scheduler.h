// Decides which tokens are computed in each step, and in which pages (hops 5 and 7). It knows no model and no backend.
//
//   const StepPlan& plan = scheduler.plan();   // reserves pages; no token moves
//   ... do plan.copies, run the model on plan.sequences, sample one token for each of plan.sampled ...
//   scheduler.commit(plan, sampled);           // only now does anything count as computed
//
// Planning ahead: commit() is advance(), which says that the step is under way, and resolve(), which brings its tokens. A plan can be made
// and launched between the two, so that the device need not wait for the host:
//
//   advance(plan 1)   plan 2   resolve(1)   advance(plan 2)   plan 3   resolve(2)   …
//
// In such a plan a token that is not known yet stands as unknown_token(i): what comes of sampled[i] of the step under way. Who ends with
// that token, as it turns out, has been planned once too often: resolve() ends it all the same, and what the next step gives for it is
// dropped. Whose last token it is by length sits that plan out, and so do choices that are about to be forked. Nobody is preempted before
// it is known who ended, and no page can be found by its tokens before its step is known to have come right. Where that is needed at once,
// because pages run out or those of a window wait to be dropped, the plan is empty, and to be made again after resolve().
//
// Order of service: requests are let in as FairQueue says, first come, first served within a tenant, and from then on go
// by age: who was let in earlier is older. Every running sequence is older than every waiting one. When pages run out,
// the youngest running sequence gives all of its own back and goes to the front of those that wait; when there is room
// again, its tokens are computed again, but never sampled again. Therefore (I3) the oldest sequence is never preempted
// and, as no request is accepted that could not run alone in the pool, it advances in every step: nobody waits for ever.
// At most the youngest running sequence has an unfinished prompt after a step, since nobody is let in before it is done.
//
// A tenant's limits hold by worst cases, when a request of it is let in: then its pages can never exceed its share. Who
// waits for such a limit holds up nobody else.
//
// Thread: the engine thread alone. Cost of a step: linear in the running sequences and in the tenants that wait,
// independent of how many requests wait.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/fair_queue.h"
#include "engine/ids.h"
#include "engine/kv/page_allocator.h"
#include "engine/kv/prefix_cache.h"
#include "engine/scheduler_view.h"
#include "engine/sequence.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

// What one tenant may have at most, and its part when others wait as well. The scheduler heeds the first three, the
// engine's QueueGate the others.
struct TenantLimits {
  int32_t weight = 1;                        // 1 … 1000; of service, beside others that wait
  int32_t running_requests_max = INT32_MAX;  // requests; let in and not ended
  int32_t kv_percent_max = 100;              // of the pool's pages, by the worst cases of those; 100: no limit
  int32_t queue_requests_max = INT32_MAX;    // requests; that wait
  int64_t queue_tokens_max = INT64_MAX;      // tokens; of the prompts of those
  int64_t requests_per_minute = 0;           // 0: no limit
  int64_t tokens_per_minute = 0;             // of prompts and answers; 0: no limit
};

struct SchedulerOptions {
  int64_t pages_total = 0;              // pages; the size of the KV pool. Must be set
  int32_t page_tokens = 16;             // tokens; slots of a page
  int32_t step_tokens_max = 512;        // tokens; computed in one step, which bounds its time. At least 1
  int32_t running_sequences_max = 256;  // sequences; in one step. A request with n choices takes n
  int32_t queue_requests_max = 1024;    // requests; accepted and never yet running. Beyond: queue_full
  int64_t queue_tokens_max = 1 << 24;   // tokens; of the prompts of those. Beyond, if anybody queues: queue_full
  int32_t context_tokens_max = 4096;    // tokens; prompt and generated together. Beyond: exceeds_context
  int32_t window_tokens = 0;            // tokens; that a token attends to, itself included, in every layer. 0: all
  std::vector<TenantLimits> tenants = std::vector<TenantLimits>(1);  // by TenantId; not empty
  bool prefix_cache = true;             // keep full pages of ended sequences, and find them for later prompts
  std::optional<HashKey> prefix_cache_key = std::nullopt;  // tests only; otherwise random for each scheduler
  uint64_t page_order_seed = 0;  // tests only; other than 0, pages are handed out in a permuted order
};

enum class AdmissionStatus : uint8_t {
  accepted,
  exceeds_context,  // prompt and generated tokens against context_tokens_max; can never run
  exceeds_pool,     // its worst case against pages_total; can never run
  exceeds_share,    // its worst case, nothing shared, against its tenant's pages; can never run
  exceeds_running,  // its choices against running_sequences_max; can never run
  queue_full,       // try again later
};

struct Admission {
  AdmissionStatus status = AdmissionStatus::accepted;
  // For the message: what the request needs, and what there is.
  int64_t tokens_needed = 0;  // prompt + generated_tokens_max, of one choice
  int64_t tokens_max = 0;
  int64_t pages_needed = 0;  // its worst case, all choices together
  int64_t pages_total = 0;   // exceeds_share: that its tenant may have

  bool accepted() const { return status == AdmissionStatus::accepted; }
};

struct PageCopy {
  PageId from{};
  PageId to{};
};

struct ScheduledSequence {
  SequenceId id{};
  RequestId request{};
  int32_t choice = 0;
  int32_t first_position = 0;
  int32_t tokens = 0;             // computed in this step, from first_position on
  int32_t recomputed_tokens = 0;  // the first of them, which had been computed before a preemption
  // The logits of its last row give the next token of each of plan.sampled[sampled_begin .. + samples): none while its
  // prompt is unfinished, itself, or at the end of its prompt every choice of its request.
  int32_t samples = 0;
  int32_t sampled_begin = 0;
};

// Cancelled, or let in.
struct LeftQueue {
  RequestId request{};
  TenantId tenant{};
  int32_t prompt_tokens = 0;
};

struct StepPlan {
  std::vector<ScheduledSequence> sequences;  // those with one token to compute first, then chunks; each by age
  std::vector<SequenceId> sampled;           // a token is expected for each of these, in this order
  std::vector<PageCopy> copies;              // whole pages, to be done in this order before the step: copy on write
  std::vector<PageId> taken;                 // new pages with undefined content, without the targets of copies
  std::vector<SequenceId> preempted;
  std::vector<RequestId> cancelled;  // dropped now, their pages are back
  std::vector<LeftQueue> left_queue;  // in this order: those of cancelled that were never let in, then who is let in now
  int32_t tokens = 0;                // of all sequences

  bool empty() const { return sequences.empty(); }
};

struct SampledToken {
  SequenceId sequence{};
  TokenId token = 0;
  bool finished = false;  // it is the sequence's last
  bool invalid = false;   // its logits were no numbers: no other sequence may find what it computed. REQUIRES finished
};

// A token that the step under way will give: sampled[index] of its plan.
constexpr TokenId unknown_token(int32_t index) { return -1 - index; }
constexpr bool is_unknown(TokenId token) { return token < 0; }

struct TenantUse {
  int64_t requests_started = 0;  // let in and not ended
  int64_t pages_promised = 0;    // their worst cases
  int64_t pages = 0;             // distinct ones of each, which several may share
};

struct SchedulerStats {
  int64_t running_sequences = 0;
  int64_t running_requests = 0;   // with a running sequence
  int64_t waiting_sequences = 0;  // for room: never yet running, or preempted
  int64_t queue_requests = 0;     // never yet running
  int64_t queue_tokens = 0;       // of their prompts
  int64_t unfinished_requests = 0;
  int64_t preemptions_total = 0;
  int64_t recomputed_tokens_total = 0;    // computed again after a preemption
  int64_t prefix_query_tokens_total = 0;  // of prompts that were looked up in the prefix cache
  int64_t prefix_hit_tokens_total = 0;
  int64_t evictions_total = 0;  // pages
  PageCounts pages;
  int64_t live_written_tokens = 0;    // of those, the ones that hold a token
};

class Scheduler {
 public:
  // Throws std::runtime_error, naming the option, if one is impossible.
  explicit Scheduler(const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Whether the request would be refused for ever, whatever the load; queue_full is not looked at. Thread-safe: it
  // reads options alone. REQUIRES prompt_tokens >= 1, choices >= 1, generated_tokens_max >= 0.
  Admission can_ever_run(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max, TenantId tenant = {}) const;

  // Takes the request into the queue, or says why not. Same REQUIRES.
  Admission submit(NewRequest request);

  // Its pages are back after the next plan(), which lists it in `cancelled`. A commit in between still wants its
  // tokens. Unknown and ended requests are ignored: a client may go away at any time.
  void cancel(RequestId id);

  // The next step. Valid until it was resolved or abandoned and the next is made. REQUIRES that the last plan, unless empty, was advanced or abandoned.
  // Never empty while a request is unfinished and no step is under way.
  const StepPlan& plan();
  // Of chunks of prompts in the next plans, while a sequence has just one token to compute: they share it. At least 1.
  void set_chunk_tokens_max(int32_t tokens);
  const StepPlan& current_plan() const { return steps_[latest_].plan; }  // what plan() returned last

  // The step was run. `sampled` holds one token for each of plan.sampled, in that order.
  void commit(const StepPlan& plan, std::span<const SampledToken> sampled) {
    advance(plan);
    resolve(plan, sampled);
  }
  // The step is under way, or done: the next one can be planned behind it. REQUIRES that no other one is under way.
  void advance(const StepPlan& plan);
  // What came of the step under way. What is said of sequences that have ended since it was planned is ignored.
  void resolve(const StepPlan& plan, std::span<const SampledToken> sampled);

  // The step that was planned last failed, and the one under way if there is one, and nothing that they should have written can be
  // trusted: every running sequence gives its pages back and waits to be computed again.
  void abandon(const StepPlan& plan);

  bool has_work() const { return !requests_.empty(); }
  bool has_ended(SequenceId id) const { return sequences_.has_ended(id); }

  // Of a sequence that has not ended. Valid until the next submit, plan, advance or resolve.
  std::span<const TokenId> tokens(SequenceId id) const { return sequences_.at(id).tokens; }
  std::span<const PageId> page_table(SequenceId id) const { return sequences_.at(id).pages; }

  // Of a request that has not ended. Pages are only taken in plan(), and count in advance(): after the last it is the final account.
  const PageUsage& usage(RequestId id) const;

  SchedulerStats stats() const;
  void use_by_tenant(std::vector<TenantUse>& use) const;  // by TenantId
  // REQUIRES that no plan is open.
  SchedulerView view() const;
  const SchedulerOptions& options() const { return options_; }
  const PageAllocator& pages() const { return allocator_; }
  const PrefixCache* prefix_cache() const { return prefix_cache_ ? &*prefix_cache_ : nullptr; }

  // I1 and the order of service, for tests and for an idle engine: O(pages + sequences). A violation is a CHECK
  // failure.
  void check_conserved() const;

 private:
  // Submission and the queue.
  int64_t pages_of_one_max(int64_t tokens) const;
  int64_t pages_unshared_max(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max) const;
  int64_t pages_of_tenant_max(TenantId tenant) const;
  int64_t pages_of_request_max(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max) const;
  void leave_queue(const Request& request);
  void stop_waiting(Sequence& sequence);

  // Planning.
  void drop_cancelled();
  bool must_resolve_first() const;
  bool schedule_running(size_t index, int32_t tokens);
  Sequence* next_waiting() const;
  bool within_share(const Sequence& sequence) const;
  int32_t try_admit(Sequence& sequence, int32_t budget);
  void match_prefix(Sequence& sequence);
  void start(Request& request);
  void reserve_room(Sequence& sequence) const;
  bool has_room(const Sequence& sequence, int32_t tokens) const;
  int64_t pages_lacking(const Sequence& sequence, int32_t tokens) const;
  bool take_pages(Sequence& sequence, int32_t tokens);
  void preempt_youngest();
  void plan_step();
  void add_to_plan(Sequence& sequence, int32_t tokens, bool grew);
  void assemble_plan();

  // Committing.
  void advance(Sequence& sequence, const ScheduledSequence& scheduled);
  bool goes_on(const Sequence& sequence, const ScheduledSequence& scheduled) const;
  void publish_full_pages(Sequence& sequence);
  void drop_below_window(Sequence& sequence);
  void fork(Sequence& leader);
  void append(Sequence& sequence, const SampledToken& sampled);
  void forget_pages(const Sequence& sequence);
  void rebuild_running();

  // The only ways in which a sequence gains and loses pages.
  void hold(Sequence& sequence, PageId page);
  void give_back(Sequence& sequence, size_t index);
  void give_back_all(Sequence& sequence);
  void end_sequence(Sequence& sequence);
  int32_t first_page_in_window(int32_t position) const;

  void check_order() const;

  const SchedulerOptions options_;
  PageAllocator allocator_;
  std::optional<PrefixCache> prefix_cache_;
  SequencePool sequences_;
  std::unordered_map<RequestId, Request> requests_;
  FairQueue queue_;                 // never let in
  WaitingList preempted_;           // by age, all younger than the running ones
  std::vector<Sequence*> running_;  // by age
  int64_t running_slots_ = 0;       // of running_sequences_max, with those kept for forks
  std::vector<RequestId> cancelled_;
  std::vector<TenantUse> tenant_use_;  // by TenantId, without `pages`
  int64_t arrivals_ = 0;
  int64_t turns_ = 0;
  int64_t queue_requests_ = 0;
  int64_t queue_tokens_ = 0;
  int32_t chunk_tokens_max_ = std::numeric_limits<int32_t>::max();

  struct Planned {
    Sequence* sequence = nullptr;  // which may have ended since
    bool grew = false;             // took pages

    bool has_ended(const ScheduledSequence& scheduled) const { return sequence->id != scheduled.id; }
  };
  struct Step {
    StepPlan plan;
    std::vector<Planned> planned;  // beside plan.sequences
  };
  Step& latest() { return steps_[latest_]; }
  bool is_under_way(const StepPlan& plan) const { return under_way_ != nullptr && &plan == &under_way_->plan; }

  Step steps_[2];  // the latest, and the one before
  size_t latest_ = 0;
  bool plan_open_ = false;      // handed out, neither advanced nor abandoned
  Step* under_way_ = nullptr;  // advanced and not resolved

  // Kept from step to step for their memory.
  std::vector<Planned> planned_chunks_;  // in the making: appended to the others at the end
  std::vector<ScheduledSequence> chunks_;
  std::vector<PageId> matched_;

  int64_t preemptions_total_ = 0;
  int64_t recomputed_tokens_total_ = 0;
  int64_t prefix_query_tokens_total_ = 0;
  int64_t prefix_hit_tokens_total_ = 0;
};

}  // namespace headroom
