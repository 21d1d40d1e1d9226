// A scheduler under full load, for its benchmark and for the test of its bounds: `running` sequences decode, `waiting`
// requests of `tenants` tenants queue behind them.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/scheduler.h"
#include "kernels/check.h"

namespace headroom {

inline constexpr int64_t kLoadPages = 1000000;
inline constexpr int32_t kLoadPromptTokens = 500;

class SchedulerLoad {
 public:
  SchedulerLoad(int32_t running, int32_t waiting, int32_t tenants = 1)
      : scheduler_(options(running, waiting, tenants)), tenants_(tenants) {
    for (int32_t i = 0; i < running + waiting; ++i) {
      submit();
      if (i + 1 == running) {
        while (scheduler_.stats().queue_requests > 0) step();
      }
    }
    step();
    CHECK_EQ(scheduler_.stats().running_sequences, running);
    CHECK_EQ(scheduler_.stats().waiting_sequences, waiting);
  }

  // Plans and commits one token for each running sequence.
  void step() {
    const StepPlan& plan = scheduler_.plan();
    sampled_.clear();
    for (const SequenceId id : plan.sampled) sampled_.push_back({id, 7, false});
    scheduler_.commit(plan, sampled_);
  }

  SchedulerView view() const { return scheduler_.view(); }

  void submit() {
    NewRequest request;
    request.id = RequestId{next_id_++};
    request.tenant = TenantId{static_cast<int32_t>(next_id_ % tenants_)};
    for (int32_t i = 0; i < kLoadPromptTokens; ++i) {
      request.prompt.push_back(static_cast<TokenId>(next_id_ * 31 + i));  // nothing is shared
    }
    request.generated_tokens_max = 1 << 20;  // no benchmark gets there
    CHECK(scheduler_.submit(std::move(request)).accepted());
  }

  // Cancels the one that came last, which waits, and lets another come.
  void replace_waiting() {
    scheduler_.cancel(RequestId{next_id_ - 1});
    submit();
  }

 private:
  static SchedulerOptions options(int32_t running, int32_t waiting, int32_t tenants) {
    SchedulerOptions options;
    options.tenants.resize(static_cast<size_t>(tenants));
    options.pages_total = kLoadPages;
    options.step_tokens_max = 8192;
    options.running_sequences_max = running;
    options.queue_requests_max = running + waiting + 1;
    options.queue_tokens_max = int64_t{1} << 40;
    options.context_tokens_max = 1 << 23;
    return options;
  }

  Scheduler scheduler_;
  int32_t tenants_;
  std::vector<SampledToken> sampled_;
  int64_t next_id_ = 1;
};

}  // namespace headroom
