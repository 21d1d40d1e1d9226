// A backend that draws, as a device does, in place of one that leaves it to the host: with the host's sampler. All else is the backend inside.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/analysis/forwarding_backend.h"
#include "engine/sampler.h"

namespace headroom {

// What a backend reports of a row of logits, with the host's sampler. Of temperatures, powers of two alone, whose inverse is exact.
inline SampleResult drawn_on_host(Sampler& sampler, std::span<const float> logits, const SampleRow& row) {
  const std::vector<TokenId> context(static_cast<size_t>(row.position), 0);
  SamplingParams params{.temperature = row.inverse_temperature == 0 ? 0 : 1 / row.inverse_temperature, .top_k = row.top_k, .top_p = row.top_p};
  params.seed = row.seed;
  SampleResult result{};
  result.token = sampler.sample(logits, params, {.tokens = context, .choice = row.choice}).value_or(-1);
  if (result.token < 0 || row.top_logprobs < 0) return result;
  result.logit = logits[static_cast<size_t>(result.token)];
  result.rank = 1 + static_cast<int32_t>(std::ranges::count_if(logits, [&](float other) { return other > result.logit; }));
  result.largest = std::ranges::max(logits);
  for (const float logit : logits) result.weights += score_weight(logit - result.largest);
  std::vector<TokenLogit> all;
  for (const float logit : logits) all.push_back({static_cast<int32_t>(all.size()), logit});
  std::ranges::stable_sort(all, std::ranges::greater(), &TokenLogit::logit);
  result.top_count = std::min(row.top_logprobs, static_cast<int32_t>(all.size()));
  std::copy_n(all.begin(), result.top_count, result.top);
  return result;
}

class DrawingBackend final : public ForwardingBackend {
 public:
  DrawingBackend(std::unique_ptr<Backend> inside, int32_t vocab_size)
      : ForwardingBackend(*inside), inside_(std::move(inside)), sampler_(vocab_size) {}

  void embedding(Matrix out, const Weight& table, std::span<const int32_t> tokens) override {
    tokens_.assign(tokens.begin(), tokens.end());
    for (int32_t& token : tokens_) {
      if (token < 0) token = std::max(drawn_.at(static_cast<size_t>(-1 - token)).token, 0);
    }
    ForwardingBackend::embedding(out, table, tokens_);
  }
  bool samples() const override { return true; }
  void launch_sample(int32_t first, int32_t count, Matrix logits, std::span<const SampleRow> rows) override {
    drawn_.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::span<const float> row(logits.row(rows[i].logits_row), static_cast<size_t>(logits.cols));
      drawn_.at(static_cast<size_t>(first) + i) = drawn_on_host(sampler_, row, rows[i]);
    }
  }
  void send_samples(int place, int32_t count) override { sent_[place].assign(drawn_.begin(), drawn_.begin() + count); }
  std::span<const SampleResult> wait_samples(int place) override { return sent_[place]; }

 private:
  std::unique_ptr<Backend> inside_;
  Sampler sampler_;
  std::vector<int32_t> tokens_;
  std::vector<SampleResult> drawn_, sent_[2];
};

}  // namespace headroom
