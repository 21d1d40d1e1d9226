#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace headroom {
namespace {

using Tokens = std::vector<TokenId>;

SchedulerOptions options_of(int64_t pages, int32_t step_tokens = 64) {
  SchedulerOptions options;
  options.pages_total = pages;
  options.page_tokens = 4;
  options.step_tokens_max = step_tokens;
  options.running_sequences_max = 8;
  options.queue_requests_max = 8;
  options.context_tokens_max = 100;
  options.prefix_cache_key = HashKey{1, 2};
  return options;
}

// first, first + 1, …: prompts of different `first` share nothing.
Tokens counting(int32_t tokens, TokenId first = 0) {
  Tokens prompt(static_cast<size_t>(tokens));
  std::iota(prompt.begin(), prompt.end(), first);
  return prompt;
}

NewRequest request_of(int64_t id, Tokens prompt, int32_t generated_max = 50, int32_t choices = 1) {
  NewRequest request;
  request.id = RequestId{id};
  request.prompt = std::move(prompt);
  request.generated_tokens_max = generated_max;
  request.choices = choices;
  return request;
}

// Every sampled token is 1000 + its request; `finish` says which sequences end.
void commit(Scheduler& scheduler, const StepPlan& plan, const std::function<bool(SequenceId)>& finish = {}) {
  std::vector<SampledToken> sampled;
  for (const SequenceId id : plan.sampled) sampled.push_back({id, 1000, finish && finish(id)});
  scheduler.commit(plan, sampled);
  scheduler.check_conserved();
}

void step(Scheduler& scheduler) { commit(scheduler, scheduler.plan()); }

// "request.choice:first+tokens" of each scheduled sequence.
std::vector<std::string> shape(const StepPlan& plan) {
  std::vector<std::string> parts;
  for (const ScheduledSequence& s : plan.sequences) {
    parts.push_back(std::to_string(static_cast<int64_t>(s.request)) + "." + std::to_string(s.choice) + ":" +
                    std::to_string(s.first_position) + "+" + std::to_string(s.tokens));
  }
  return parts;
}
using Shape = std::vector<std::string>;

TEST(Scheduler, ComputesThePromptThenOneTokenAStep) {
  Scheduler scheduler(options_of(10));
  ASSERT_TRUE(scheduler.submit(request_of(1, counting(6), 3)).accepted());
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{"1.0:0+6"}));
  ASSERT_EQ(plan.sampled.size(), 1u);
  EXPECT_EQ(plan.taken.size(), 2u);
  const SequenceId id = plan.sampled[0];
  EXPECT_EQ(scheduler.page_table(id).size(), 2u);
  EXPECT_EQ(scheduler.stats().live_written_tokens, 0);  // planned is not computed
  commit(scheduler, plan);
  EXPECT_EQ(scheduler.stats().live_written_tokens, 6);
  EXPECT_EQ(scheduler.tokens(id).back(), 1000);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:6+1"}));
  commit(scheduler, scheduler.current_plan());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:7+1"}));
  EXPECT_EQ(scheduler.usage(RequestId{1}).peak_pages, 2);  // 8 positions; the third token is never computed
  commit(scheduler, scheduler.current_plan(), [](SequenceId) { return true; });
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_TRUE(scheduler.plan().empty());
  EXPECT_EQ(scheduler.stats().pages.live, 0);
  EXPECT_EQ(scheduler.stats().pages.cached, 2);
}

TEST(Scheduler, DecodesFirstAndCutsPromptsIntoTheRestOfTheStep) {
  Scheduler scheduler(options_of(40, 10));
  scheduler.submit(request_of(1, counting(3)));
  step(scheduler);
  scheduler.submit(request_of(2, counting(20, 100)));
  scheduler.submit(request_of(3, counting(4, 200)));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:3+1", "2.0:0+9"}));
  EXPECT_EQ(scheduler.current_plan().sampled.size(), 1u);  // no token out of an unfinished prompt
  commit(scheduler, scheduler.current_plan());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:4+1", "2.0:9+9"}));
  commit(scheduler, scheduler.current_plan());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:5+1", "2.0:18+2", "3.0:0+4"}));
  EXPECT_EQ(scheduler.current_plan().sampled.size(), 3u);
  EXPECT_EQ(scheduler.current_plan().tokens, 7);
  commit(scheduler, scheduler.current_plan());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:6+1", "2.0:20+1", "3.0:4+1"}));
}

TEST(Scheduler, RefusesWhatCanNeverRunWithNumbers) {
  Scheduler scheduler(options_of(10));
  const Admission context = scheduler.submit(request_of(1, counting(60), 41));
  EXPECT_EQ(context.status, AdmissionStatus::exceeds_context);
  EXPECT_EQ(context.tokens_needed, 101);
  EXPECT_EQ(context.tokens_max, 100);
  // 30 + 12 tokens, the last of which is never computed: 41 positions in pages of 4.
  const Admission pool = scheduler.submit(request_of(2, counting(30), 12));
  EXPECT_EQ(pool.status, AdmissionStatus::exceeds_pool);
  EXPECT_EQ(pool.pages_needed, 11);
  EXPECT_EQ(pool.pages_total, 10);
  EXPECT_TRUE(scheduler.submit(request_of(3, counting(30), 11)).accepted());
  EXPECT_EQ(scheduler.submit(request_of(4, counting(1), 1, 9)).status, AdmissionStatus::exceeds_running);
}

TEST(Scheduler, CountsTheWorstCaseOfChoices) {
  const Scheduler scheduler(options_of(100));
  // 10 tokens are 2 full pages, which are shared; each choice has the rest of 10 + 7 - 1 = 16 positions for itself.
  EXPECT_EQ(scheduler.can_ever_run(10, 3, 7).pages_needed, 2 + 3 * 2);
  EXPECT_EQ(scheduler.can_ever_run(10, 3, 8).pages_needed, 2 + 3 * 3);
  EXPECT_EQ(scheduler.can_ever_run(8, 3, 5).pages_needed, 2 + 3 * 1);
  // Nothing is computed after the prompt: nothing is copied.
  EXPECT_EQ(scheduler.can_ever_run(10, 3, 1).pages_needed, 3);
  EXPECT_EQ(scheduler.can_ever_run(10, 3, 0).pages_needed, 3);
}

TEST(Scheduler, CountsTheWorstCaseWithAWindow) {
  SchedulerOptions options = options_of(100, 6);
  options.window_tokens = 9;
  const Scheduler scheduler(options);
  // A step of 6 rows sees 8 + 6 = 14 positions, which touch at most 5 pages of 4: 3 | 4 5 6 7 | 8 … 11 | 12 … 15 | 16.
  EXPECT_EQ(scheduler.can_ever_run(50, 1, 50).pages_needed, 5);
  EXPECT_EQ(scheduler.can_ever_run(10, 1, 3).pages_needed, 3);
  EXPECT_EQ(scheduler.can_ever_run(50, 2, 50).pages_needed, 10);
}

TEST(Scheduler, BoundsTheQueue) {
  SchedulerOptions options = options_of(100);
  options.queue_requests_max = 3;
  options.queue_tokens_max = 20;
  Scheduler scheduler(options);
  EXPECT_TRUE(scheduler.submit(request_of(1, counting(30))).accepted());  // alone, so the tokens do not matter
  const Admission tokens = scheduler.submit(request_of(2, counting(1)));
  EXPECT_EQ(tokens.status, AdmissionStatus::queue_full);
  EXPECT_EQ(scheduler.stats().queue_tokens, 30);
  step(scheduler);
  for (int id = 3; id < 6; ++id) EXPECT_TRUE(scheduler.submit(request_of(id, counting(2))).accepted());
  const Admission requests = scheduler.submit(request_of(6, counting(2)));
  EXPECT_EQ(requests.status, AdmissionStatus::queue_full);
  EXPECT_EQ(scheduler.stats().queue_requests, 3);
  scheduler.cancel(RequestId{4});
  step(scheduler);
  EXPECT_TRUE(scheduler.submit(request_of(6, counting(2))).accepted());
}

TEST(Scheduler, PreemptsTheYoungestAndDoesNotSampleAgain) {
  SchedulerOptions options = options_of(5);
  options.prefix_cache = false;
  Scheduler scheduler(options);
  scheduler.submit(request_of(1, counting(4), 12));  // at most 15 positions, 4 pages
  step(scheduler);
  scheduler.submit(request_of(2, counting(8, 100), 8));
  const StepPlan& plan = scheduler.plan();
  // Request 1 takes its second page, request 2 wants two and one is left to spare: 5 - 2 >= 2 + 1.
  EXPECT_EQ(shape(plan), (Shape{"1.0:4+1", "2.0:0+8"}));
  const SequenceId second = plan.sampled[1];
  commit(scheduler, plan);
  step(scheduler);  // request 2 takes the last page at position 8
  EXPECT_EQ(scheduler.stats().pages.free, 0);
  step(scheduler);
  step(scheduler);
  const StepPlan& tight = scheduler.plan();  // request 1 needs a third page at position 8
  EXPECT_EQ(shape(tight), (Shape{"1.0:8+1"}));
  EXPECT_EQ(tight.preempted, (std::vector<SequenceId>{second}));
  commit(scheduler, tight);
  EXPECT_EQ(scheduler.page_table(second).size(), 0u);
  EXPECT_EQ(scheduler.tokens(second).size(), 12u);  // 8 of the prompt and the four that it has sampled
  EXPECT_EQ(scheduler.stats().preemptions_total, 1);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:9+1"}));  // there is no room for 3 pages yet
  commit(scheduler, scheduler.current_plan(), [](SequenceId) { return true; });
  const StepPlan& again = scheduler.plan();
  EXPECT_EQ(shape(again), (Shape{"2.0:0+12"}));
  EXPECT_EQ(again.sequences[0].recomputed_tokens, 11);
  EXPECT_EQ(again.sampled, (std::vector<SequenceId>{second}));
  commit(scheduler, again);
  EXPECT_EQ(scheduler.tokens(second).size(), 13u);
  EXPECT_EQ(scheduler.stats().recomputed_tokens_total, 11);
}

TEST(Scheduler, ThePreemptedIsServedBeforeTheWaiting) {
  SchedulerOptions options = options_of(5);
  options.prefix_cache = false;
  Scheduler scheduler(options);
  scheduler.submit(request_of(1, counting(4), 12));
  step(scheduler);
  scheduler.submit(request_of(2, counting(8, 100), 8));
  for (int i = 0; i < 4; ++i) step(scheduler);
  scheduler.submit(request_of(3, counting(2, 200), 1));  // would fit at once
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:8+1"}));
  EXPECT_EQ(scheduler.current_plan().preempted.size(), 1u);
  commit(scheduler, scheduler.current_plan());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:9+1"}));  // it does not overtake
  commit(scheduler, scheduler.current_plan(), [](SequenceId) { return true; });
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"2.0:0+12", "3.0:0+2"}));
}

TEST(Scheduler, FindsAPrefixAndComputesAtLeastOneToken) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(8)));
  step(scheduler);
  scheduler.submit(request_of(2, counting(8)));  // the same prompt: only its first page may be taken from the cache
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{"1.0:8+1", "2.0:4+4"}));
  EXPECT_EQ(scheduler.page_table(plan.sampled[0])[0], scheduler.page_table(plan.sampled[1])[0]);
  EXPECT_NE(scheduler.page_table(plan.sampled[0])[1], scheduler.page_table(plan.sampled[1])[1]);
  EXPECT_EQ(scheduler.usage(RequestId{2}).cached_prompt_tokens, 4);
  const std::vector<SequenceId> ids = plan.sampled;
  commit(scheduler, plan);
  EXPECT_EQ(scheduler.usage(RequestId{2}).peak_pages, 2);
  EXPECT_EQ(scheduler.usage(RequestId{2}).shared_pages_at_peak, 1);
  // What it computed was there already: the two share it now.
  EXPECT_EQ(scheduler.page_table(ids[0])[1], scheduler.page_table(ids[1])[1]);
  scheduler.submit(request_of(3, counting(9)));
  EXPECT_EQ(shape(scheduler.plan()).back(), "3.0:8+1");
  EXPECT_EQ(scheduler.stats().prefix_query_tokens_total, 8 + 8 + 9);
  EXPECT_EQ(scheduler.stats().prefix_hit_tokens_total, 4 + 8);
}

TEST(Scheduler, TakesNoPrefixAcrossSaltsNorForAllLogits) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(9)));
  step(scheduler);
  NewRequest salted = request_of(2, counting(9));
  salted.cache_salt = "another tenant";
  scheduler.submit(std::move(salted));
  NewRequest all_logits = request_of(3, counting(9));
  all_logits.all_prompt_logits = true;
  scheduler.submit(std::move(all_logits));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:9+1", "2.0:0+9", "3.0:0+9"}));
  EXPECT_EQ(scheduler.stats().prefix_hit_tokens_total, 0);
}

TEST(Scheduler, ForgetsWhatAnInvalidSequenceComputed) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(8)));
  step(scheduler);
  scheduler.submit(request_of(2, counting(13)));  // takes both pages of the first, and publishes one more
  step(scheduler);
  const StepPlan& plan = scheduler.plan();
  ASSERT_EQ(plan.sampled.size(), 2u);
  scheduler.commit(plan,
                   std::vector<SampledToken>{{plan.sampled[0], 7, false, false}, {plan.sampled[1], 0, true, true}});
  scheduler.check_conserved();
  EXPECT_EQ(scheduler.prefix_cache()->published_pages(), 0);
  const int64_t hits = scheduler.stats().prefix_hit_tokens_total;
  scheduler.submit(request_of(3, counting(13)));
  EXPECT_EQ(shape(scheduler.plan()).back(), "3.0:0+13");
  EXPECT_EQ(scheduler.stats().prefix_hit_tokens_total, hits);
  commit(scheduler, scheduler.current_plan());
  for (int i = 0; i < 8; ++i) step(scheduler);  // the first goes on with the pages that it still holds
  scheduler.check_conserved();
}

// Its first page is out of its window when it ends, and may be where the first number went wrong.
TEST(Scheduler, ForgetsWhatAWindowDroppedOfAnInvalidSequence) {
  SchedulerOptions options = options_of(20, 8);
  options.window_tokens = 5;
  Scheduler scheduler(options);
  scheduler.submit(request_of(1, counting(16), 10));
  step(scheduler);
  const StepPlan& plan = scheduler.plan();
  ASSERT_EQ(plan.sampled.size(), 1u);
  ASSERT_EQ(scheduler.page_table(plan.sampled[0])[0], kNoPage);
  scheduler.commit(plan, std::vector<SampledToken>{{plan.sampled[0], 0, true, true}});
  scheduler.check_conserved();
  scheduler.submit(request_of(2, counting(7), 10));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"2.0:0+7"}));
  commit(scheduler, scheduler.current_plan());
}

TEST(Scheduler, ForksAfterThePromptAndCopiesTheSharedPageOnWrite) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(6), 10, 3));
  const StepPlan& prompt = scheduler.plan();
  EXPECT_EQ(shape(prompt), (Shape{"1.0:0+6"}));
  ASSERT_EQ(prompt.sequences[0].samples, 3);
  ASSERT_EQ(prompt.sampled.size(), 3u);
  const std::vector<SequenceId> ids = prompt.sampled;
  commit(scheduler, prompt);
  EXPECT_EQ(scheduler.stats().running_sequences, 3);
  EXPECT_EQ(scheduler.stats().pages.live, 2);
  const PageId shared = scheduler.page_table(ids[2])[1];
  EXPECT_EQ(scheduler.pages().references(shared), 3);

  const StepPlan& decode = scheduler.plan();
  EXPECT_EQ(shape(decode), (Shape{"1.0:6+1", "1.1:6+1", "1.2:6+1"}));
  EXPECT_EQ(decode.sampled, ids);
  ASSERT_EQ(decode.copies.size(), 2u);  // the last holder writes in place
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(decode.copies[i].from, shared);
    EXPECT_EQ(decode.copies[i].to, scheduler.page_table(ids[i])[1]);
  }
  EXPECT_EQ(scheduler.page_table(ids[2])[1], shared);
  EXPECT_TRUE(decode.taken.empty());
  commit(scheduler, decode, [&](SequenceId id) { return id == ids[0]; });  // one choice ends, the others go on
  EXPECT_EQ(scheduler.usage(RequestId{1}).peak_pages, 4);
  EXPECT_EQ(scheduler.stats().pages.live, 3);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.1:7+1", "1.2:7+1"}));
}

TEST(Scheduler, GivesBackPagesBelowTheWindow) {
  SchedulerOptions options = options_of(20, 8);
  options.window_tokens = 5;
  Scheduler scheduler(options);
  scheduler.submit(request_of(1, counting(16), 10));
  step(scheduler);  // positions 0 .. 7; position 8 will see 4 .. 8
  SequenceId id = scheduler.plan().sequences.at(0).id;
  EXPECT_EQ(scheduler.page_table(id).size(), 4u);
  EXPECT_EQ(scheduler.page_table(id)[0], kNoPage);
  EXPECT_NE(scheduler.page_table(id)[1], kNoPage);
  commit(scheduler, scheduler.current_plan());  // position 16 will see 12 .. 16
  EXPECT_EQ(scheduler.stats().pages.live, 1);
  EXPECT_EQ(scheduler.usage(RequestId{1}).peak_pages, 3);
}

TEST(Scheduler, DropsTheCancelledWhereverTheyAre) {
  SchedulerOptions options = options_of(20);
  options.running_sequences_max = 2;
  Scheduler scheduler(options);
  scheduler.submit(request_of(1, counting(4)));
  scheduler.submit(request_of(2, counting(4, 100)));
  scheduler.submit(request_of(3, counting(4, 200)));
  const StepPlan& plan = scheduler.plan();
  scheduler.cancel(RequestId{1});  // in a step
  scheduler.cancel(RequestId{1});
  scheduler.cancel(RequestId{3});   // waiting
  scheduler.cancel(RequestId{99});  // unknown
  commit(scheduler, plan);
  const StepPlan& next = scheduler.plan();
  EXPECT_EQ(next.cancelled, (std::vector<RequestId>{RequestId{1}, RequestId{3}}));
  EXPECT_EQ(shape(next), (Shape{"2.0:4+1"}));
  commit(scheduler, next, [](SequenceId) { return true; });
  scheduler.cancel(RequestId{2});  // ended
  EXPECT_TRUE(scheduler.plan().empty());
  EXPECT_TRUE(scheduler.plan().cancelled.empty());
  EXPECT_EQ(scheduler.stats().pages.live, 0);
}

TEST(Scheduler, StartsAgainAfterAnAbandonedStep) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(6)));
  step(scheduler);
  scheduler.submit(request_of(2, counting(6, 100)));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:6+1", "2.0:0+6"}));
  scheduler.abandon(scheduler.current_plan());
  scheduler.check_conserved();
  EXPECT_EQ(scheduler.stats().pages.live, 0);
  // The first page of request 1 had been committed, and is in the cache.
  EXPECT_EQ(shape(scheduler.plan()), (Shape{"1.0:4+3", "2.0:0+6"}));
}

TEST(Scheduler, SaysWhichOptionIsImpossible) {
  SchedulerOptions options = options_of(0);
  try {
    Scheduler scheduler(options);
    FAIL() << "accepted";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("pages_total"), std::string::npos);
  }
  options = options_of(1);
  options.step_tokens_max = 0;
  EXPECT_THROW(Scheduler{options}, std::runtime_error);
}

TEST(SchedulerDeathTest, StopsAtABugOfItsCaller) {
  Scheduler scheduler(options_of(20));
  scheduler.submit(request_of(1, counting(6), 1));
  EXPECT_DEATH(scheduler.submit(request_of(1, counting(6))), "submitted twice");
  EXPECT_DEATH(scheduler.submit(request_of(2, {})), "prompt_tokens");
  const StepPlan& plan = scheduler.plan();
  EXPECT_DEATH(scheduler.plan(), "neither advanced nor abandoned");
  EXPECT_DEATH(scheduler.commit(plan, {}), "sampled");
  const SampledToken unfinished{plan.sampled[0], 7, false};
  EXPECT_DEATH(scheduler.commit(plan, {&unfinished, 1}), "must finish with its last token");
}

}  // namespace
}  // namespace headroom
