#include "engine/step_pace.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {
namespace {

constexpr int32_t kUnknownChunkTokens = 32;   // until both times are known
constexpr int32_t kChunkTokensMin = 8;        // fewer would hold prompts back more than they help
constexpr int32_t kMixedStepsMax = 32;        // in a row; then one that measures the base
constexpr int32_t kMeasuringTokens = 2;       // of a prompt in a step that counts as one without
constexpr double kNewest = 0.25;              // its weight, so that one step which the machine held up does not decide

void follow(double& value, double seen) { value = value == 0 ? seen : value + kNewest * (seen - value); }

}  // namespace

StepPace::StepPace(int32_t slowdown_max, int32_t step_tokens_max) : slowdown_max_(slowdown_max), step_tokens_max_(step_tokens_max) {
  CHECK_GE(slowdown_max, 0);
  CHECK_GE(step_tokens_max, 1);
}

int32_t StepPace::chunk_tokens() const {
  if (slowdown_max_ == 0) return step_tokens_max_;
  if (mixed_steps_ >= kMixedStepsMax) return 1;
  double tokens = kUnknownChunkTokens;
  if (base_seconds_ > 0 && token_seconds_ > 0) tokens = (slowdown_max_ - 1) * base_seconds_ / token_seconds_;
  const double most = step_tokens_max_;
  return static_cast<int32_t>(std::clamp(tokens, std::min<double>(kChunkTokensMin, most), most));
}

void StepPace::note(int32_t decode_tokens, int32_t prompt_tokens, double seconds) {
  if (decode_tokens == 0) {  // its base is not that of a step which generates: an upper bound of a token's time, to begin with
    if (prompt_tokens > 0 && token_seconds_ == 0) token_seconds_ = seconds / prompt_tokens;
    return;
  }
  if (prompt_tokens < kMeasuringTokens) {
    mixed_steps_ = 0;
    if (const double base = seconds - prompt_tokens * token_seconds_; base > 0) follow(base_seconds_, base);
    return;
  }
  ++mixed_steps_;
  if (base_seconds_ > 0 && seconds > base_seconds_) follow(token_seconds_, (seconds - base_seconds_) / prompt_tokens);
}

}  // namespace headroom
