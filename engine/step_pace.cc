#include "engine/step_pace.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {
namespace {

constexpr int32_t kUnknownChunkTokens = 32;   // until a token's time is known
constexpr int32_t kChunkTokensMin = 8;        // fewer would hold prompts back more than they help
constexpr int32_t kMixedStepsMax = 32;        // in a row; then one that measures the base
constexpr int32_t kMeasuringTokens = 2;       // of a prompt in a step that counts as one without
constexpr double kNewest = 0.25;              // its weight
constexpr double kNewestMax = 2;              // times what was known: one step that the machine held up does not decide
constexpr double kSlowdownOfAll = 0.25;       // of what slowdown_max leaves to prompts, once all write

double follow(double known, double seen) { return known == 0 ? seen : known + kNewest * (std::min(seen, kNewestMax * known) - known); }

}  // namespace

StepPace::StepPace(int32_t slowdown_max, int32_t step_tokens_max) : slowdown_max_(slowdown_max), step_tokens_max_(step_tokens_max) {
  CHECK_GE(slowdown_max, 0);
  CHECK_GE(step_tokens_max, 1);
}

int32_t StepPace::chunk_tokens(int64_t writing, int64_t all) const {
  if (slowdown_max_ == 0) return step_tokens_max_;
  if (base_seconds_ == 0 || mixed_steps_ >= kMixedStepsMax) return 1;
  double tokens = kUnknownChunkTokens;
  if (token_seconds_ > 0) {
    const double base = base_seconds(static_cast<double>(writing));
    const double base_of_all = base_seconds(static_cast<double>(std::max(writing, all)));
    const double most = std::min(slowdown_max_ * base, (1 + kSlowdownOfAll * (slowdown_max_ - 1)) * base_of_all);
    tokens = (most - base) / token_seconds_;
  }
  const double most = step_tokens_max_;
  return static_cast<int32_t>(std::clamp(tokens, std::min<double>(kChunkTokensMin, most), most));
}

// A row of an answer costs no less than one of a prompt. The first of them cost the weights, too: fewer save no more than their part.
double StepPace::base_seconds(double writing) const {
  return std::max(base_seconds_ + (writing - base_writing_) * token_seconds_, base_seconds_ * std::min(1.0, writing / base_writing_));
}

void StepPace::note(int32_t decode_tokens, int32_t prompt_tokens, double seconds) {
  if (decode_tokens == 0) {  // with what the weights cost: an upper bound of a token's time
    if (prompt_tokens == 0) return;
    const double bound = seconds / prompt_tokens;
    token_seconds_ = token_seconds_ == 0 ? bound : std::min(token_seconds_, bound);
    return;
  }
  const double known = base_seconds_ == 0 ? 0 : base_seconds(decode_tokens);
  if (prompt_tokens < kMeasuringTokens) {
    mixed_steps_ = 0;
    const double base = seconds - prompt_tokens * token_seconds_;
    if (base <= 0) return;
    base_seconds_ = follow(known, base);
    base_writing_ = decode_tokens;
    return;
  }
  ++mixed_steps_;
  if (known > 0 && seconds > known) token_seconds_ = follow(token_seconds_, (seconds - known) / prompt_tokens);
}

}  // namespace headroom
