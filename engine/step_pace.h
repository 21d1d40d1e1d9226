// How many tokens of prompts a step may compute while answers are being generated. Long prompts are spread over more steps, so that no
// answer waits for another's prompt, and prompts still get on, so that nobody waits long for a first token. Two bounds, for slowdown_max N:
//
//   step <= N · a step of those that write now, without prompts
//   step <= (1 + (N - 1) / 4) · a step of all that write or wait, without prompts
//
// The second says what all would have once all of them write: while few write and many wait, prompts may take long; as the answers grow
// in number the pace stays as it is, instead of getting slower in proportion. The first bounds what those few have to bear.
//
// A step is modelled as a base, measured in steps that only generate, and a time for each token of a prompt, measured in the
// others; both follow what they see. For another number of answers than it was measured with, the base has a prompt token's time more or
// less for each. While prompts keep coming, now and then a step computes just one token of them, so that the base stays known. A chunk's
// size changes no bit of what it computes, so that the clock may choose it.
//
// Engine thread.
#pragma once

#include <cstdint>

namespace headroom {

class StepPace {
 public:
  // slowdown_max 0: no bound. step_tokens_max: of any step.
  StepPace(int32_t slowdown_max, int32_t step_tokens_max);

  // For the next step, in [1, step_tokens_max]. `writing` sequences have one token to compute, `all` write or wait to.
  int32_t chunk_tokens(int64_t writing, int64_t all) const;

  // What a step computed, and how long that took.
  void note(int32_t decode_tokens, int32_t prompt_tokens, double seconds);

 private:
  double base_seconds(double writing) const;  // REQUIRES that it is known

  int32_t slowdown_max_;
  int32_t step_tokens_max_;
  double base_seconds_ = 0;   // of a step that only generates; 0: not known
  double base_writing_ = 0;   // for how many
  double token_seconds_ = 0;  // more for each token of a prompt; 0: not known
  int32_t mixed_steps_ = 0;   // in a row
};

}  // namespace headroom
