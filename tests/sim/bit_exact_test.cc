// I5: the logits of (sequence, position) depend on its tokens and the model alone, to the bit.
//
// Every request is first run alone: one prefill, contiguous pages in order, no prefix cache, one thread. Its logits at
// every position are the reference. Then random schedules run the same requests in company: batch mates, chunk cuts,
// page sizes, permuted pages, prefix hits, small pools (preemption), steps thrown away (recomputation from any
// position), forks, cancelled neighbours, several backends; every page is filled with NaN before it is given out. Each
// row of logits is compared with the reference, all bits of it. Controls that break the engine on purpose must be seen.
//
// HEADROOM_SCHEDULES=20000 runs more of them; HEADROOM_SEED picks others. What they run on: bit_exact.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string_view>

#include "engine/batch.h"
#include "engine/kv/kv_cache.h"
#include "engine/model/transformer.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "kernels/backend.h"
#include "tests/sim/bit_exact.h"
#include "tests/unit/sanitizer_slowdown.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {
namespace {

constexpr int32_t kVocab = 64;
constexpr int32_t kContextTokens = 1024;
constexpr int32_t kStepTokensMax = 1024;
constexpr int32_t kLogitsRows = 1024;
constexpr int32_t kSequencesMax = 64;

struct Job {
  std::vector<TokenId> prompt;
  int32_t choices = 1;
  int32_t generated_tokens_max = 8;
  uint64_t seed = 0;
};

// logits[choice][position], each V floats; positions of the prompt are in choice 0.
using Reference = std::map<std::pair<int32_t, int32_t>, std::vector<float>>;

enum class Sabotage { none, swap_pages, skip_copies, stale_page, wrong_token };

// One model on one backend.
struct Model {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Transformer> transformer;

  Model(std::unique_ptr<Backend> on, int32_t window_tokens, DType weights) : backend(std::move(on)) {
    const ModelConfig config =
        TinyLlama{.query_heads = 6, .vocab_size = kVocab, .context_tokens = kContextTokens, .window_tokens = window_tokens}.config();
    const TransformerOptions sizes{
        .step_tokens_max = kStepTokensMax, .logits_rows_max = kLogitsRows, .served_context_tokens = kContextTokens};
    transformer = std::make_unique<Transformer>(config, random_weights(config, weights, 7, *backend), *backend, sizes);
    backend->reserve(step_limits(config, sizes, kSequencesMax, kContextTokens / 16));
  }
};

struct Outcome {
  int64_t rows = 0, rows_different = 0;
  int64_t preemptions = 0, abandoned = 0, prefix_hits = 0, copies = 0;
};

// Runs requests through scheduler, batch, transformer and sampler, the way the engine does, one step at a time.
class Driver {
 public:
  Driver(Model& model, const KvShape& shape, const SchedulerOptions& options, Sabotage sabotage)
      : model_(model),
        scheduler_(options),
        cache_(shape, options.pages_total, *model.backend),
        sampler_(kVocab),
        sabotage_(sabotage) {}

  // `reference` null: records instead of comparing.
  void submit(int64_t id, const Job& job, Reference* record, const Reference* compare) {
    const Admission admission = scheduler_.submit({.id = RequestId{id},
                                                   .prompt = job.prompt,
                                                   .choices = job.choices,
                                                   .generated_tokens_max = job.generated_tokens_max});
    ASSERT_TRUE(admission.accepted());
    running_[RequestId{id}] = {&job, record, compare};
  }
  void cancel(int64_t id) { scheduler_.cancel(RequestId{id}); }
  bool has_work() const { return scheduler_.has_work(); }

  void step(bool abandon) {
    const StepPlan& plan = scheduler_.plan();
    if (plan.empty()) return;
    for (PageId page : plan.taken) cache_.poison_page(page);
    if (sabotage_ != Sabotage::skip_copies) {
      for (const PageCopy& copy : plan.copies) cache_.copy_page(copy.from, copy.to);
    }
    outcome.copies += static_cast<int64_t>(plan.copies.size());
    batch_.build(plan, scheduler_);
    model_.transformer->forward(sabotaged(batch_.view()), cache_.layers());
    std::vector<int32_t> rows(static_cast<size_t>(batch_.view().rows));
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
    const Matrix logits = on_host(model_.transformer->logits(rows));
    for (size_t i = 0; i < plan.sequences.size(); ++i) hold_against_reference(plan.sequences[i], i, logits);
    if (abandon) {
      ++outcome.abandoned;
      scheduler_.abandon(plan);
    } else {
      commit(plan, logits);
    }
    const SchedulerStats stats = scheduler_.stats();
    outcome.preemptions = stats.preemptions_total;
    outcome.prefix_hits = stats.prefix_hit_tokens_total;
  }

  void check_empty() const {
    scheduler_.check_conserved();
    EXPECT_EQ(scheduler_.stats().pages.live, 0);
  }

  Outcome outcome;

 private:
  struct Running {
    const Job* job;
    Reference* record;
    const Reference* compare;
  };

  Matrix on_host(const Matrix& logits) {
    model_.backend->synchronize();
    if (model_.backend->host_readable()) return logits;
    logits_.resize(static_cast<size_t>(logits.rows * logits.cols));
    model_.backend->copy_out(logits_.data(), reinterpret_cast<const std::byte*>(logits.data), logits_.size() * sizeof(float));
    return {logits_.data(), logits.rows, logits.cols};
  }

  BatchView sabotaged(BatchView view) {
    page_tables_.assign(view.page_tables.begin(), view.page_tables.end());
    tokens_.assign(view.tokens.begin(), view.tokens.end());
    if (sabotage_ == Sabotage::swap_pages) {
      for (size_t s = 0; s + 1 < view.page_table_begin.size(); ++s) {
        // The last two full pages: those below a window are not there.
        const auto end = static_cast<size_t>(view.page_table_begin[s + 1]);
        if (end - static_cast<size_t>(view.page_table_begin[s]) < 3 || page_tables_[end - 3] < 0) continue;
        std::swap(page_tables_[end - 3], page_tables_[end - 2]);
      }
    } else if (sabotage_ == Sabotage::stale_page && page_tables_.front() >= 0) {
      page_tables_.front() = page_tables_.back();
    } else if (sabotage_ == Sabotage::wrong_token) {
      tokens_.back() = (tokens_.back() + 1) % kVocab;  // of one row of the batch
    }
    view.page_tables = page_tables_;
    view.tokens = tokens_;
    return view;
  }

  void hold_against_reference(const ScheduledSequence& scheduled, size_t index, const Matrix& logits) {
    const Running& running = running_.at(scheduled.request);
    const auto prompt_tokens = static_cast<int32_t>(running.job->prompt.size());
    const int32_t first_row = batch_.last_row(index) - scheduled.tokens + 1;
    for (int32_t r = 0; r < scheduled.tokens; ++r) {
      const int32_t position = scheduled.first_position + r;
      const std::pair<int32_t, int32_t> key{position < prompt_tokens ? 0 : scheduled.choice, position};
      const float* row = logits.row(first_row + r);
      if (running.record != nullptr) (*running.record)[key].assign(row, row + kVocab);
      if (running.compare != nullptr) {
        ++outcome.rows;
        const auto expected = running.compare->find(key);
        ASSERT_NE(expected, running.compare->end()) << "position " << position << " is not in the reference";
        outcome.rows_different += std::memcmp(row, expected->second.data(), kVocab * sizeof(float)) != 0;
      }
    }
  }

  void commit(const StepPlan& plan, const Matrix& logits) {
    sampled_.clear();
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const ScheduledSequence& scheduled = plan.sequences[i];
      const Job& job = *running_.at(scheduled.request).job;
      const auto tokens = scheduler_.tokens(scheduled.id);
      for (int32_t s = 0; s < scheduled.samples; ++s) {
        const std::optional<TokenId> token =
            sampler_.sample({logits.row(batch_.last_row(i)), kVocab}, {.temperature = 1.0f, .seed = job.seed},
                            {.tokens = tokens,
                             .prompt_tokens = static_cast<int32_t>(job.prompt.size()),
                             .choice = scheduled.choice + s});
        const auto generated = static_cast<int32_t>(tokens.size() - job.prompt.size()) + 1;
        sampled_.push_back({plan.sampled[static_cast<size_t>(scheduled.sampled_begin + s)], token.value_or(0),
                            generated >= job.generated_tokens_max});
      }
    }
    scheduler_.commit(plan, sampled_);
  }

  Model& model_;
  Scheduler scheduler_;
  KvCache cache_;
  Sampler sampler_;
  Sabotage sabotage_;
  Batch batch_;
  std::map<RequestId, Running> running_;
  std::vector<SampledToken> sampled_;
  std::vector<int32_t> page_tables_, tokens_;
  std::vector<float> logits_;
};

// Requests with and without common beginnings; one reaches past the first split of the attention.
std::vector<Job> make_jobs(std::mt19937_64& random) {
  const auto tokens = [&random](int count) {
    std::vector<TokenId> result;
    for (int i = 0; i < count; ++i) result.push_back(static_cast<TokenId>(random() % kVocab));
    return result;
  };
  const std::vector<TokenId> common = tokens(70);
  std::vector<Job> jobs;
  for (int i = 0; i < 12; ++i) {
    Job job;
    if (i % 2 == 0) job.prompt.assign(common.begin(), common.begin() + static_cast<long>(16 + random() % 54));
    const std::vector<TokenId> own = tokens(1 + static_cast<int>(random() % 60));
    job.prompt.insert(job.prompt.end(), own.begin(), own.end());
    job.choices = i % 3 == 2 ? 3 : 1;
    job.generated_tokens_max = 1 + static_cast<int32_t>(random() % 24);
    job.seed = random();
    jobs.push_back(std::move(job));
  }
  jobs.push_back({.prompt = tokens(530), .choices = 1, .generated_tokens_max = 6, .seed = random()});
  return jobs;
}

class BitExact : public ::testing::TestWithParam<BitExactVariant> {
 protected:
  void SetUp() override {
    std::mt19937_64 random(11);
    jobs_ = make_jobs(random);
    for (auto& backend : bit_exact_backends(GetParam())) {
      models_.push_back(std::make_unique<Model>(std::move(backend), GetParam().window_tokens, GetParam().weights));
    }
    if (models_.empty()) GTEST_SKIP() << "SKIPPED: this CPU has no AVX-512 BF16";
    for (const Job& job : jobs_) references_.push_back(reference_of(job));
  }

  KvShape shape(int32_t page_tokens) const {
    return kv_shape(models_[0]->transformer->config(), GetParam().kv, page_tokens);
  }

  SchedulerOptions options(int32_t page_tokens) const {
    SchedulerOptions options;
    options.page_tokens = page_tokens;
    options.context_tokens_max = kContextTokens;
    options.window_tokens = GetParam().window_tokens;
    options.step_tokens_max = kStepTokensMax;
    options.running_sequences_max = kSequencesMax;
    return options;
  }

  Reference reference_of(const Job& job) {
    SchedulerOptions solo = options(64);
    solo.pages_total = 64;
    solo.prefix_cache = false;
    Reference reference;
    Driver driver(*models_[0], shape(64), solo, Sabotage::none);
    driver.submit(1, job, &reference, nullptr);
    while (driver.has_work()) driver.step(false);
    return reference;
  }

  Outcome run_schedule(uint64_t seed, Sabotage sabotage) {
    std::mt19937_64 random(seed);
    const auto chance = [&random](int percent) { return static_cast<int>(random() % 100) < percent; };
    const int32_t page_tokens = std::array{16, 32, 64}[random() % 3];
    SchedulerOptions schedule = options(page_tokens);
    schedule.step_tokens_max = chance(20) ? 1 : 1 + static_cast<int32_t>(random() % (chance(50) ? 24 : 200));
    schedule.prefix_cache = chance(70);
    schedule.page_order_seed = random() | 1;
    const bool with_long = chance(8);
    // Room for the widest request alone, up to room for all.
    const int64_t widest = (with_long ? 540 : 3 * 160) / page_tokens + 6;
    schedule.pages_total = widest + static_cast<int64_t>(random() % (chance(60) ? 4 : 64));
    const int abandon_percent = chance(40) ? 6 : 0;

    Driver driver(*models_[random() % models_.size()], shape(page_tokens), schedule, sabotage);
    const int count = 2 + static_cast<int>(random() % 6);
    int submitted = 0;
    for (int step = 0; submitted < count || driver.has_work(); ++step) {
      while (submitted < count && chance(step == 0 ? 60 : 25)) {
        const size_t job = with_long && submitted == 0 ? jobs_.size() - 1 : random() % (jobs_.size() - 1);
        driver.submit(++submitted, jobs_[job], nullptr, &references_[job]);
      }
      if (chance(2) && submitted > 0)
        driver.cancel(1 + static_cast<int64_t>(random() % static_cast<uint64_t>(submitted)));
      driver.step(chance(abandon_percent));
    }
    driver.check_empty();
    return driver.outcome;
  }

  std::vector<Job> jobs_;
  std::vector<std::unique_ptr<Model>> models_;
  std::vector<Reference> references_;
};

int64_t from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

TEST_P(BitExact, RandomSchedulesChangeNoBit) {
  const std::vector<BitExactVariant> variants = bit_exact_variants();
  const auto every = static_cast<int64_t>(variants.size());  // each variant runs schedules of its own
  const int64_t schedules = (from_environment("HEADROOM_SCHEDULES", 2000) + every - 1) / every;
  const auto variant = std::ranges::find(variants, std::string_view(GetParam().name), &BitExactVariant::name) - variants.begin();
  const int64_t first_seed = from_environment("HEADROOM_SEED", 1) + variant;
  Outcome total;
  for (int64_t i = 0; i < schedules; ++i) {
    const auto seed = static_cast<uint64_t>(first_seed + i * every);
    const Outcome outcome = run_schedule(seed, Sabotage::none);
    ASSERT_EQ(outcome.rows_different, 0) << "of " << outcome.rows << " rows, seed " << seed << ", " << GetParam().name;
    total.rows += outcome.rows;
    total.preemptions += outcome.preemptions;
    total.abandoned += outcome.abandoned;
    total.prefix_hits += outcome.prefix_hits;
    total.copies += outcome.copies;
  }
  std::printf(
      "%s: %lld schedules, %lld rows of logits, 0 bits different; %lld preemptions, %lld steps thrown away, %lld "
      "tokens from the prefix cache, %lld pages copied on write\n",
      GetParam().name, static_cast<long long>(schedules), static_cast<long long>(total.rows),
      static_cast<long long>(total.preemptions), static_cast<long long>(total.abandoned),
      static_cast<long long>(total.prefix_hits), static_cast<long long>(total.copies));
  // The schedules must have met what they are there for.
  EXPECT_GT(total.preemptions, schedules / 20);
  EXPECT_GT(total.abandoned, schedules / 20);
  EXPECT_GT(total.prefix_hits, schedules);
  EXPECT_GT(total.copies, schedules / 20);
}

TEST_P(BitExact, SabotageIsSeen) {
  // The races are the sabotage's own, and ThreadSanitizer ends the program at the first; every other build runs this.
  if (kRacesAreFound) GTEST_SKIP() << "SKIPPED: two threads write to the page that sabotage gives to two sequences, and that is a race";
  const std::map<Sabotage, const char*> controls = {
      {Sabotage::swap_pages, "two pages of a sequence swapped"},
      {Sabotage::skip_copies, "copy on write left out"},
      {Sabotage::stale_page, "a foreign page read"},
      {Sabotage::wrong_token, "a row given another token"}};
  for (const auto& [sabotage, what] : controls) {
    int64_t different = 0;
    for (uint64_t seed = 1; seed <= 40; ++seed) different += run_schedule(seed, sabotage).rows_different;
    EXPECT_GT(different, 0) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(Kv, BitExact, ::testing::ValuesIn(bit_exact_variants()), [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace headroom
