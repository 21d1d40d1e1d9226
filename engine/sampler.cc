#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace headroom {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr float kGreedyTemperature = 1e-5f;  // below it the division would overflow; it means greedy

// Likelier first; among equals the smaller id, so that no order depends on memory.
struct Likelier {
  template <typename C>
  bool operator()(const C& a, const C& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
};

// The first of the largest values; nullopt when a NaN is among them or nothing is finite.
std::optional<TokenId> argmax(std::span<const float> values) {
  float largest = kLowest;
  TokenId best = -1;
  bool nan = false;
  for (size_t i = 0; i < values.size(); ++i) {
    nan |= std::isnan(values[i]);
    if (values[i] > largest) {
      largest = values[i];
      best = static_cast<TokenId>(i);
    }
  }
  if (nan || best < 0 || largest == -kLowest) return std::nullopt;
  return best;
}

}  // namespace

Sampler::Sampler(int32_t vocab_size) : scores_(static_cast<size_t>(vocab_size)), counts_(static_cast<size_t>(vocab_size)) {
  candidates_.reserve(static_cast<size_t>(vocab_size));
}

std::optional<SampleRow> Sampler::device_row(const SamplingParams& params, const SamplerContext& context, int32_t top_logprobs) {
  const bool changes_logits = !params.logit_bias.empty() || !context.forbidden.empty() || params.repetition_penalty != 1.0f ||
                              params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
  if (changes_logits || top_logprobs > kTopLogprobsMax) return std::nullopt;
  SampleRow row{.choice = context.choice,
                .position = static_cast<int64_t>(context.tokens.size()),
                .seed = params.seed,
                .top_k = params.top_k,
                .top_p = params.top_p,
                .top_logprobs = top_logprobs};
  if (params.temperature >= kGreedyTemperature) row.inverse_temperature = 1.0f / params.temperature;
  if (params.min_p > 0.0f) row.score_min = std::log(params.min_p);
  return row;
}

std::optional<TokenId> Sampler::sample(std::span<const float> logits, const SamplingParams& params, const SamplerContext& context) {
  CHECK_EQ(logits.size(), scores_.size());
  const std::optional<TokenId> likeliest = argmax(logits);
  if (!likeliest) return std::nullopt;

  std::copy(logits.begin(), logits.end(), scores_.begin());
  apply_bias_and_penalties(params, context);
  const std::optional<TokenId> greedy = argmax(scores_);
  if (!greedy) return likeliest;  // a bias of −∞ on everything leaves the raw choice
  if (params.temperature < kGreedyTemperature) return greedy;

  const float largest = scores_[static_cast<size_t>(*greedy)];
  const float scale = 1.0f / params.temperature;
  candidates_.clear();
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (scores_[i] != kLowest) candidates_.push_back({(scores_[i] - largest) * scale, static_cast<TokenId>(i)});
  }
  if (params.min_p > 0.0f) keep_min_p(params.min_p);
  if (params.top_k > 0) keep_top_k(params.top_k);
  if (params.top_p < 1.0f) keep_top_p(params.top_p);
  return draw(params, context);
}

void Sampler::apply_bias_and_penalties(const SamplingParams& params, const SamplerContext& context) {
  for (const auto& [token, bias] : params.logit_bias) scores_[static_cast<size_t>(token)] += bias;
  for (TokenId token : context.forbidden) {
    if (static_cast<size_t>(token) < scores_.size()) scores_[static_cast<size_t>(token)] = kLowest;
  }
  if (params.repetition_penalty != 1.0f) {
    for (TokenId token : context.tokens) {
      int32_t& seen = counts_[static_cast<size_t>(token)];
      if (seen++ != 0) continue;
      float& score = scores_[static_cast<size_t>(token)];
      score = score > 0.0f ? score / params.repetition_penalty : score * params.repetition_penalty;
    }
    for (TokenId token : context.tokens) counts_[static_cast<size_t>(token)] = 0;
  }
  if (params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f) {
    const auto output = context.tokens.subspan(static_cast<size_t>(context.prompt_tokens));
    for (TokenId token : output) ++counts_[static_cast<size_t>(token)];
    for (TokenId token : output) {
      int32_t& count = counts_[static_cast<size_t>(token)];
      if (count == 0) continue;  // a token that was there before in the output is done
      scores_[static_cast<size_t>(token)] -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
      count = 0;
    }
  }
}

// Keeps tokens of at least min_p times the largest probability: logit ≥ log(min_p), the largest being 0.
void Sampler::keep_min_p(float min_p) {
  const float threshold = std::log(min_p);
  std::erase_if(candidates_, [threshold](const Candidate& c) { return c.logit < threshold; });
}

void Sampler::keep_top_k(int32_t top_k) {
  if (static_cast<size_t>(top_k) >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + (top_k - 1), candidates_.end(), Likelier());
  candidates_.resize(static_cast<size_t>(top_k));
}

// Keeps the fewest likeliest tokens whose probabilities sum to at least top_p (Holtzman et al., 2020).
void Sampler::keep_top_p(float top_p) {
  uint64_t total = 0;
  for (const Candidate& c : candidates_) total += score_weight(c.logit);
  const uint64_t enough = top_p_weight(total, top_p);
  // Tokens below this share sum to less than what may be left out, so they are never needed; sorting the rest is cheap.
  const double share = 0.99 * static_cast<double>(total - enough) / static_cast<double>(candidates_.size());
  const float threshold = static_cast<float>(std::log(share * 0x1p-44));
  std::erase_if(candidates_, [threshold](const Candidate& c) { return c.logit < std::min(threshold, 0.0f); });
  std::sort(candidates_.begin(), candidates_.end(), Likelier());
  uint64_t sum = 0;
  size_t kept = 0;
  while (kept < candidates_.size()) {
    sum += score_weight(candidates_[kept++].logit);
    if (sum >= enough) break;
  }
  candidates_.resize(kept);
}

// argmax(logit + Gumbel): needs no sum and no order, so a device draws the same token in any order.
TokenId Sampler::draw(const SamplingParams& params, const SamplerContext& context) const {
  const int64_t position = static_cast<int64_t>(context.tokens.size());
  double best = -std::numeric_limits<double>::infinity();
  TokenId chosen = candidates_.front().token;
  for (const Candidate& c : candidates_) {
    if (c.logit + gumbel_bound(~0u) < best) continue;  // cannot win
    const uint32_t bits = token_bits(params.seed, context.choice, position, c.token);
    if (c.logit + gumbel_bound(bits) < best) continue;
    const double value = c.logit + gumbel(bits);
    if (value > best || (value == best && c.token < chosen)) {
      best = value;
      chosen = c.token;
    }
  }
  return chosen;
}

Logprobs Sampler::logprobs(std::span<const float> logits, TokenId token, int32_t top) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  uint64_t weights = 0;
  for (float logit : logits) weights += score_weight(logit - largest);
  const float own = logits[static_cast<size_t>(token)];
  const auto likelier = std::count_if(logits.begin(), logits.end(), [own](float l) { return l > own; });
  candidates_.clear();
  if (top > 0) {
    for (size_t i = 0; i < logits.size(); ++i) candidates_.push_back({logits[i], static_cast<TokenId>(i)});
    const auto end = candidates_.begin() + std::min<int64_t>(top, static_cast<int64_t>(candidates_.size()));
    std::partial_sort(candidates_.begin(), end, candidates_.end(), Likelier());
    candidates_.erase(end, candidates_.end());
  }
  return finished(own, 1 + static_cast<int32_t>(likelier), largest, weights);
}

Logprobs Sampler::logprobs(const SampleResult& result) {
  candidates_.clear();
  for (int32_t i = 0; i < result.top_count; ++i) candidates_.push_back({result.top[i].logit, result.top[i].token});
  std::sort(candidates_.begin(), candidates_.end(), Likelier());
  return finished(result.logit, result.rank, result.largest, result.weights);
}

Logprobs Sampler::finished(float logit, int32_t rank, float largest, uint64_t weights) const {
  const double log_sum = natural_log(static_cast<double>(weights) * 0x1p-44) + largest;
  const auto logprob = [&](float value) { return static_cast<float>(value - log_sum); };
  Logprobs result{.logprob = logprob(logit), .rank = rank, .top = {}};
  for (const Candidate& c : candidates_) result.top.push_back({c.token, logprob(c.logit)});
  return result;
}

}  // namespace headroom
