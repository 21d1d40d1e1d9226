// Drives a Scheduler with random clients, faults and the fake model, and checks in every step, from outside, that
//   I1  pages are conserved and every reference is accounted for by a page table,
//   I2  every slot that a scheduled token may read was written for exactly that prefix; nobody writes to a page that
//       another holds or that the prefix cache can find; every answer equals that of the request computed alone; what
//       was seen to be no number is never found again,
//   I3  the oldest sequence advances in every step; who is let in is whom a naive model of fair shares names, no tenant
//       exceeds its limits, and with one tenant no wait exceeds its bound,
//   I4  every accepted request ends once, and after a drain all pages are back.
// In most episodes steps are planned and computed while what the step before gave is not told yet, as behind a device.
// One Simulation is one episode: its options, its clients and their fate are drawn from its seed. There is no swapping of
// pages to be simulated: a preempted sequence is computed again.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "engine/scheduler.h"
#include "tests/sim/events.h"
#include "tests/sim/fake_model.h"
#include "tests/sim/random.h"

namespace headroom::sim {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed);

  // Clients come and go for `steps` steps, then no more come and the rest is served. Throws Violation.
  void run(int64_t steps);

  const Coverage& coverage() const { return coverage_; }

 private:
  // What a client knows of one choice: its own tokens and, position by position, what their slots must hold.
  struct Choice {
    SequenceId id{};
    bool seen = false;     // its id is known
    bool running = false;  // it was given room
    bool guessed = false;  // its last token is the device's knowledge, and not told yet
    bool ended = false;
    bool spoiled_itself = false;  // one of its own rows was no number
    int32_t computed = 0;
    int32_t computed_max = 0;
    int64_t scheduled_step = 0;
    int64_t admitted_step = 0;
    std::vector<TokenId> tokens;
    std::vector<Content> contents;
    std::vector<PageId> pages;  // as last seen
    std::vector<std::pair<PageId, int64_t>> held;  // all pages since it was given room, each with its use

    void reset();  // to a new one, with its memory
  };
  struct Client {
    RequestId id{};
    TenantId tenant{};
    int64_t turn = 0;          // in which it was let in
    int64_t pages_needed = 0;  // its worst case, nothing shared
    int32_t salt = 0;
    int32_t prompt_tokens = 0;
    int32_t generated_tokens_max = 0;
    int32_t choices_unfinished = 0;
    bool all_prompt_logits = false;
    bool started = false;
    bool forked = false;
    bool cancelled = false;
    bool failed = false;  // a sample was no number
    int64_t arrival_step = 0;
    int64_t deadline_step = 0;
    int64_t held_pages = 0;  // distinct, as last counted
    int64_t peak_pages = 0;
    int64_t cached_prompt_tokens = 0;
    FakeSampler sampler;
    std::vector<Choice> choices;

    void reset(int32_t choice_count);
  };

  // What the device drew for one of plan.sampled.
  struct Drawn {
    TokenId token = 0;
    bool invalid = false;
    bool ends = false;
  };
  struct UnderWay {
    const StepPlan* plan = nullptr;  // null: nothing is under way
    std::vector<Drawn> drawn;
    std::vector<PageId> written;
  };

  struct Tenant {
    double service = 0;  // tokens computed, over its weight
    int64_t pages = 0;   // held by its requests, as last counted
  };

  void draw_options();
  void draw_stems();

  // Clients.
  void draw_prompt(int32_t salt, std::vector<TokenId>& prompt);
  void submit(bool in_burst);
  bool check_admission(const Client& client, const Admission& admission);
  int64_t steps_bound(const Client& client) const;
  void cancel_somebody();
  void cancel(Client& client);
  void note_cancelled(const Client& client);
  void end_client(const Client& client);
  Client* find_client(int64_t id);
  Client& client_of(RequestId id);

  // Time.
  void step();
  void drain();
  bool fail_step(const StepPlan& plan);
  void advance(const StepPlan& plan);
  void resolve();
  void settle(const StepPlan& plan);

  // The model.
  void copy_page(const PageCopy& copy);
  void poison(PageId page);
  void compute(const ScheduledSequence& scheduled);
  bool read_slots(const Choice& choice, std::span<const PageId> pages, int32_t first);
  void check_token(const ScheduledSequence& scheduled, const Choice& choice, std::span<const TokenId> tokens);
  void draw(const StepPlan& plan);

  // Fair shares, in simulation_turns.cc.
  void draw_tenants();
  int64_t pages_max_of(TenantId tenant) const;
  int64_t pages_needed(const NewRequest& request) const;
  void begin_waiting(const Client& client);
  void charge(TenantId tenant, int32_t tokens);
  void check_turns(const StepPlan& plan);
  Client* first_waiting(TenantId tenant);
  bool within_limits(const Client& client) const;
  void observe_let_in(Client& client);
  void check_nobody_overtakes() const;
  void check_shares();

  // Checks, in simulation_checks.cc.
  void observe_plan(const StepPlan& plan);
  void observe_cancelled(const StepPlan& plan);
  void observe_preempted(const StepPlan& plan);
  void observe_scheduled(const StepPlan& plan, const ScheduledSequence& scheduled);
  void observe_admitted(Client& client, Choice& choice, const ScheduledSequence& scheduled);
  void see(Choice& choice, SequenceId id);
  void check_progress(const StepPlan& plan);
  Choice* oldest_choice(bool to_advance);
  void observe_tables();
  int64_t observe_table(Choice& choice);
  void check_new_pages(const StepPlan& plan);
  void observe_advance(const StepPlan& plan);
  void observe_resolve(const StepPlan& plan);
  void observe_sampled(Client& client, Choice& choice, const SampledToken& sampled);
  void observe_finished(const Client& client, Choice& choice);
  void observe_invalid(const Choice& choice);
  void observe_abandon();
  void check_all_back();

  bool is_published(PageId page) const { return prefix_cache_ != nullptr && prefix_cache_->is_published(page); }

  template <typename... Parts>
  void require(bool condition, const Parts&... message) const {
    if (condition) [[likely]]
      return;
    std::ostringstream text;
    (text << ... << message);
    throw Violation(text.str());
  }

  Random random_;
  SchedulerOptions options_;
  double submit_chance_ = 0;
  double burst_chance_ = 0;
  double cancel_chance_ = 0;
  double fault_chance_ = 0;
  double spoil_chance_ = 0;
  double drain_chance_ = 0;
  double ahead_chance_ = 0;
  int32_t choices_max_ = 1;
  int32_t salts_ = 1;
  int32_t prompt_tokens_max_ = 1;
  int32_t vocabulary_ = 2;
  int32_t end_one_in_ = 16;
  std::vector<std::vector<TokenId>> stems_;  // prompts start with one of these: shared prefixes
  std::vector<TokenId> last_answer_;         // or with this
  int32_t last_answer_salt_ = 0;

  std::optional<Scheduler> scheduler_;
  int32_t chunk_tokens_max_ = std::numeric_limits<int32_t>::max();
  const PrefixCache* prefix_cache_ = nullptr;
  std::optional<FakePool> pool_;
  std::vector<std::unique_ptr<Client>> clients_;  // by id, which is also by age
  std::vector<std::unique_ptr<Client>> spare_;    // for their memory
  int64_t next_id_ = 1;
  bool step_open_ = false;
  bool sample_failed_ = false;  // in this step
  std::vector<Tenant> tenants_;
  std::vector<TenantUse> tenant_use_;
  double floor_service_ = 0;  // of the tenant let in last, then
  int64_t turns_ = 0;
  int64_t turns_before_ = 0;  // this plan
  int64_t steps_owed_ = 0;          // in which all the clients will have been served
  std::optional<SequenceId> oldest_;  // in the last step; it may have ended since
  UnderWay under_way_;
  UnderWay launched_;  // in this step, maybe behind that one
  std::vector<SampledToken> sampled_;
  std::vector<TokenId> alone_;
  std::vector<PageId> new_pages_;
  std::vector<PageId> unheld_pages_;  // that nobody holds or can find, and which are not poisoned yet
  std::vector<int32_t> references_;   // by page, recounted
  std::vector<int64_t> seen_by_;      // by page: the stamp of the client that it was counted for last
  std::vector<char> is_poisoned_;     // by page
  std::vector<int64_t> use_;          // by page: how often it was taken for new content
  std::vector<int64_t> reported_;     // by page: its use that a request held which was told of numbers that are none
  int64_t seen_stamp_ = 0;
  Coverage coverage_;
};

}  // namespace headroom::sim
