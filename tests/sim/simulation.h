// Drives a Scheduler with random clients and the fake model, and checks after every step, from outside, that
//   I1  pages are conserved and every reference is accounted for by a page table,
//   I2  every slot that a scheduled token may read was written for exactly that prefix; nobody writes to a page that
//       another holds or that the prefix cache can find; every answer equals that of the request computed alone,
//   I3  the oldest sequence advances in every step, service is first come first served, and no wait exceeds its bound,
//   I4  every accepted request ends once, and in the end all pages are back.
// One Simulation is one episode: its options and its clients are drawn from its seed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/scheduler.h"
#include "tests/sim/fake_model.h"
#include "tests/sim/random.h"

namespace headroom::sim {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How busy the episodes of a run were: a simulation that never preempts proves nothing about preemption.
struct Coverage {
  int64_t steps = 0;
  int64_t accepted = 0;
  int64_t refused_for_ever = 0;
  int64_t refused_full = 0;
  int64_t finished_choices = 0;
  int64_t cancelled = 0;
  int64_t preempted = 0;
  int64_t abandoned = 0;
  int64_t forks = 0;
  int64_t copies = 0;
  int64_t hit_tokens = 0;
  int64_t recomputed_tokens = 0;
  int64_t evictions = 0;
  int64_t window_drops = 0;
  int64_t slots_verified = 0;

  void add(const Coverage& other);
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
    bool ended = false;
    int32_t computed = 0;
    int32_t computed_max = 0;
    int64_t scheduled_step = 0;
    std::vector<TokenId> tokens;
    std::vector<Content> contents;
    std::vector<PageId> pages;  // as last seen
  };
  struct Client {
    RequestId id{};
    int32_t salt = 0;
    int32_t prompt_tokens = 0;
    int32_t generated_tokens_max = 0;
    bool all_prompt_logits = false;
    bool started = false;
    bool forked = false;
    bool cancelled = false;
    int64_t deadline_step = 0;
    int64_t peak_pages = 0;
    int64_t cached_prompt_tokens = 0;
    FakeSampler sampler;
    std::vector<Choice> choices;
  };

  void draw_options();
  void draw_stems();

  // Clients.
  std::vector<TokenId> draw_prompt();
  void submit();
  bool check_admission(const Client& client, const Admission& admission);
  int64_t steps_bound(const Client& client) const;
  void cancel_somebody();
  void append(const Client& client, Choice& choice, TokenId token);
  void end_client(int64_t id);
  Client& client_of(RequestId id);

  // One step.
  void step();
  void copy_page(const PageCopy& copy);
  void poison(PageId page);
  void poison_free_pages();
  void compute(const ScheduledSequence& scheduled);
  void sample(const StepPlan& plan);

  // Checks.
  void observe_plan(const StepPlan& plan);
  void observe_cancelled(const StepPlan& plan);
  void observe_preempted(const StepPlan& plan);
  void observe_scheduled(const StepPlan& plan, const ScheduledSequence& scheduled);
  void see(Choice& choice, SequenceId id);
  void check_progress(const StepPlan& plan);
  void observe_tables();
  int64_t observe_table(Choice& choice);
  void check_new_pages(const StepPlan& plan);
  void observe_commit(const StepPlan& plan);
  void observe_finished(const Client& client, Choice& choice);
  void observe_abandon();
  bool is_published(PageId page) const;

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
  double cancel_chance_ = 0;
  double abandon_chance_ = 0;
  int32_t choices_max_ = 1;
  int32_t salts_ = 1;
  int32_t prompt_tokens_max_ = 1;
  int32_t vocabulary_ = 2;
  int32_t end_one_in_ = 16;
  std::vector<std::vector<TokenId>> stems_;  // prompts start with one of these: shared prefixes
  std::vector<TokenId> last_answer_;         // or with this

  std::optional<Scheduler> scheduler_;
  std::optional<FakePool> pool_;
  std::map<int64_t, Client> clients_;  // by id, which is also by age
  int64_t next_id_ = 1;
  int64_t steps_owed_ = 0;          // in which all the clients will have been served
  const Choice* oldest_ = nullptr;  // in the last step; it may have ended since
  std::vector<SampledToken> sampled_;
  std::vector<PageId> new_pages_;
  std::vector<int32_t> references_;  // by page, recounted
  std::vector<int64_t> seen_by_;     // by page: the stamp of the client that it was counted for last
  std::vector<char> is_poisoned_;    // by page
  int64_t seen_stamp_ = 0;
  Coverage coverage_;
};

}  // namespace headroom::sim
