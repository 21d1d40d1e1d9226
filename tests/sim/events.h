// What happened in a run of the simulation. A run in which something never happened shows nothing about it, so a long
// run in which one of these counts is zero has failed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace headroom::sim {

enum class Event : uint8_t {
  // Clients.
  accepted,
  accepted_after_burst,
  refused_context,
  refused_running,
  refused_pool,
  refused_share,
  refused_queue_requests,
  refused_queue_tokens,
  finished_choice,
  scored_prompt,
  served_after_long_wait,
  turn_of_later_one,
  tenant_held_back,
  prefix_of_other_salt,
  // Cancellation, by what it met.
  cancelled_in_queue,
  cancelled_in_prefill,
  cancelled_in_decode,
  cancelled_while_preempted,
  cancelled_before_fork,
  cancelled_after_fork,
  cancelled_within_step,
  cancelled_with_last_token,
  cancelled_twice,
  cancelled_after_end,
  // The scheduler at work.
  chunk_of_prompt,
  chunks_held_back,
  fork,
  copy_on_write,
  preempted_in_prefill,
  preempted_in_decode,
  preempted_after_fork,
  recomputed_token,
  prefix_hit_token,
  prefix_hit_token_salted,
  prefix_hit_below_window,
  page_merged,
  page_evicted,
  page_dropped_below_window,
  // Planning ahead.
  planned_ahead,
  plan_waits_for_tokens,
  unknown_token_computed,
  sat_out,
  ended_after_planned,
  dropped_under_way,
  // Faults.
  step_abandoned,
  abandoned_under_way,
  abandoned_behind,
  out_of_memory,
  device_lost,
  spoiled_row,
  invalid_sample,
  invalid_sample_of_sharer,
  drain_completed,
  drain_cut_short,
  // Checks done.
  slot_verified,
};
inline constexpr size_t kEvents = static_cast<size_t>(Event::slot_verified) + 1;

inline constexpr std::array<const char*, kEvents> kEventNames = {
    "requests accepted",
    "of these, in a burst",
    "refused: longer than the context",
    "refused: more choices than can run",
    "refused: more pages than the pool",
    "refused: more pages than its tenant's share",
    "refused: queue full of requests",
    "refused: queue full of tokens",
    "choices answered as if alone",
    "prompts scored, all of their logits",
    "served after 100 steps in the queue",
    "let in before an earlier one of another tenant",
    "held back by the limits of its tenant",
    "prompts that begin as an answer under another salt",
    "cancelled in the queue",
    "cancelled in prefill",
    "cancelled in decode",
    "cancelled while preempted",
    "cancelled before the fork",
    "cancelled after the fork",
    "cancelled while a step ran",
    "cancelled with the last token",
    "cancelled twice",
    "cancelled after the end",
    "chunks of prompts",
    "chunks held back beside answers",
    "forks",
    "copies on write",
    "preempted in prefill",
    "preempted in decode",
    "preempted after a fork",
    "tokens computed again",
    "tokens found in the prefix cache",
    "of these, under a salt",
    "hits that begin below the window",
    "pages merged with equal ones",
    "pages evicted",
    "pages dropped below the window",
    "steps planned while another one was under way",
    "steps that could not be planned before the other one's tokens were known",
    "tokens computed that were not known yet",
    "sequences that sat a step out",
    "sequences that had been planned once more when they ended",
    "sequences that were gone when their step was done",
    "steps abandoned",
    "steps abandoned while under way",
    "steps abandoned behind one under way",
    "steps out of memory: the youngest ends",
    "device lost: all end",
    "rows computed to no number",
    "samples that were no number",
    "of these, by a page of another",
    "drains completed",
    "drains cut short",
    "slots verified",
};

class Coverage {
 public:
  int64_t steps = 0;

  void add(Event event, int64_t count = 1) { counts_[static_cast<size_t>(event)] += count; }
  void add(const Coverage& other) {
    steps += other.steps;
    for (size_t i = 0; i < kEvents; ++i) counts_[i] += other.counts_[i];
  }
  int64_t count(Event event) const { return counts_[static_cast<size_t>(event)]; }

 private:
  std::array<int64_t, kEvents> counts_{};
};

}  // namespace headroom::sim
