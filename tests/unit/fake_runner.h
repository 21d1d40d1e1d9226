// A model of known behaviour for tests of what stands around the model: after token t at position p the likeliest token is
// next(t, p). It can be told to be slow, to fail at a given call, or to give NaN for a given token.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "engine/model_runner.h"

namespace headroom {

class FakeRunner : public ModelRunner {
 public:
  struct Options {
    int32_t vocab_size = 64;
    int32_t logits_rows_max = 4;
    std::chrono::microseconds step_time{0}, row_time{0};           // row_time: more for each token
    std::function<int32_t(int32_t token, int32_t position)> next;  // default: (31·token + position + 7) mod V
    std::function<void(int64_t call)> before_run;                  // may throw BackendError
    int32_t nan_after_token = -1;                                  // rows of this token give NaN
  };

  explicit FakeRunner(Options options) : options_(std::move(options)) {
    if (!options_.next) {
      options_.next = [vocab = options_.vocab_size](int32_t token, int32_t position) { return (31 * token + position + 7) % vocab; };
    }
  }

  int32_t vocab_size() const override { return options_.vocab_size; }
  int32_t logits_rows_max() const override { return options_.logits_rows_max; }
  void copy_page(PageId, PageId) override {}

  void run(const BatchView& batch) override {
    if (options_.before_run) options_.before_run(calls_++);
    const auto time = options_.step_time + static_cast<int64_t>(batch.tokens.size()) * options_.row_time;
    if (time.count() > 0) std::this_thread::sleep_for(time);
    tokens_.assign(batch.tokens.begin(), batch.tokens.end());
    positions_.assign(batch.positions.begin(), batch.positions.end());
  }

  Matrix logits(std::span<const int32_t> rows) override {
    const auto vocab = static_cast<size_t>(options_.vocab_size);
    logits_.assign(rows.size() * vocab, 0.0f);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<size_t>(rows[i]);
      logits_[i * vocab + static_cast<size_t>(options_.next(tokens_[row], positions_[row]))] = 5.0f;
      if (tokens_[row] == options_.nan_after_token) logits_[i * vocab] = std::numeric_limits<float>::quiet_NaN();
    }
    return Matrix(logits_.data(), static_cast<int64_t>(rows.size()), options_.vocab_size);
  }

 private:
  Options options_;
  int64_t calls_ = 0;
  std::vector<int32_t> tokens_, positions_;
  std::vector<float> logits_;
};

}  // namespace headroom
