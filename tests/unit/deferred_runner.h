// A model on a device that is as late as it may be: what it is told is done when somebody waits for it, and not before. It draws by itself,
// and fills in the tokens that its caller does not know yet. Until a result was waited for, who reads it finds no token. The numbers are
// those of a real (tiny) model on the CPU, so that a page which is read too early, or given to somebody else too early, shows as well.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine/transformer_runner.h"
#include "tests/unit/drawing_backend.h"

namespace headroom {

class DeferredRunner final : public TransformerRunner {
 public:
  struct Options {
    TokenId nan_after_token = -1;              // rows of this token give NaN
    std::function<void(int64_t)> before_launch;  // of a step, counted; may throw
    std::function<void(int64_t)> before_wait;    // likewise
  };

  DeferredRunner(Options options, std::unique_ptr<Backend> backend, std::unique_ptr<KvCache> cache, std::unique_ptr<Transformer> transformer,
                 int32_t logits_rows_max)
      : TransformerRunner(std::move(backend), std::move(cache), std::move(transformer), logits_rows_max),
        options_(std::move(options)),
        sampler_(vocab_size()) {}

  void copy_page(PageId from, PageId to) override {
    queue_.push_back([=, this] { TransformerRunner::copy_page(from, to); });
  }
  void run(const BatchView& batch) override {
    if (options_.before_launch) options_.before_launch(launches_++);
    queue_.push_back([this, step = Step(batch)]() mutable {
      for (int32_t& token : step.tokens) {
        if (token < 0) token = std::max(table_.at(static_cast<size_t>(-1 - token)).token, 0);
      }
      TransformerRunner::run(step.view());
      step_ = std::move(step);
    });
  }
  Matrix logits(std::span<const int32_t> rows) override {
    do_all();
    return broken(rows, TransformerRunner::logits(rows));
  }
  bool samples() const override { return true; }
  void sample(std::span<const int32_t> rows, std::span<const SampleRow> samples, std::span<SampleResult> results) override {
    do_all();
    draw(rows, samples);
    std::ranges::copy(table_, results.begin());
  }

  bool samples_ahead() const override { return true; }
  void launch_samples(int place, std::span<const int32_t> rows, std::span<const SampleRow> samples) override {
    places_[place].assign(samples.size(), SampleResult{.token = -12345});
    queue_.push_back([=, this, rows = std::vector(rows.begin(), rows.end()), samples = std::vector(samples.begin(), samples.end())] {
      draw(rows, samples);
      done_[place] = table_;
    });
    launched_up_to_[place] = begun_ + static_cast<int64_t>(queue_.size());
  }
  std::span<const SampleResult> wait_samples(int place) override {
    if (options_.before_wait) options_.before_wait(waits_++);
    while (begun_ < launched_up_to_[place]) do_next();
    places_[place] = done_[place];
    return places_[place];
  }
  int64_t launches() const { return launches_; }
  int64_t waits() const { return waits_; }

 private:
  struct Step {
    std::vector<int32_t> tokens, positions, first_rows, pages, begin;
    explicit Step(const BatchView& batch)
        : tokens(batch.tokens.begin(), batch.tokens.end()),
          positions(batch.positions.begin(), batch.positions.end()),
          first_rows(batch.sequence_first_row.begin(), batch.sequence_first_row.end()),
          pages(batch.page_tables.begin(), batch.page_tables.end()),
          begin(batch.page_table_begin.begin(), batch.page_table_begin.end()) {}
    BatchView view() const { return {static_cast<int32_t>(tokens.size()), tokens, positions, first_rows, pages, begin}; }
  };

  void do_next() {
    ++begun_;
    const auto work = std::move(queue_.front());
    queue_.pop_front();
    work();
  }
  void do_all() {
    while (!queue_.empty()) do_next();
  }
  void draw(std::span<const int32_t> rows, std::span<const SampleRow> samples) {
    table_.clear();
    for (size_t begin = 0, next = 0; begin < rows.size(); begin += static_cast<size_t>(logits_rows_max())) {
      const auto block = rows.subspan(begin, std::min(rows.size() - begin, static_cast<size_t>(logits_rows_max())));
      const Matrix logits = broken(block, TransformerRunner::logits(block));
      for (; next < samples.size() && static_cast<size_t>(samples[next].logits_row) < begin + block.size(); ++next) {
        const float* row = logits.row(samples[next].logits_row - static_cast<int64_t>(begin));
        table_.push_back(drawn_on_host(sampler_, {row, static_cast<size_t>(vocab_size())}, samples[next]));
      }
    }
  }
  Matrix broken(std::span<const int32_t> rows, Matrix logits) const {
    for (size_t i = 0; i < rows.size(); ++i) {
      const bool is_broken = step_.tokens.at(static_cast<size_t>(rows[i])) == options_.nan_after_token;
      if (is_broken) logits.row(static_cast<int64_t>(i))[3] = std::numeric_limits<float>::quiet_NaN();
    }
    return logits;
  }

  const Options options_;
  Sampler sampler_;
  std::deque<std::function<void()>> queue_;
  int64_t begun_ = 0;  // of what was ever queued
  int64_t launches_ = 0, waits_ = 0;
  int64_t launched_up_to_[2] = {};
  Step step_{BatchView{}};            // the latest that was run
  std::vector<SampleResult> table_;   // of the latest draws, on the device
  std::vector<SampleResult> done_[2], places_[2];
};

}  // namespace headroom
