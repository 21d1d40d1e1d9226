// How many tokens of prompts a step may compute while answers are being generated: so many that the step takes at most a given
// multiple of one without prompts. Long prompts are then spread over more steps, and no answer waits for another's prompt.
//
// A step is modelled as a base, measured in steps that only generate, and a time for each token of a prompt, measured in the
// others; both follow what they see. While prompts keep coming, now and then a step computes just one token of them, so that the base
// stays known. A chunk's size changes no bit of what it computes, so that the clock may choose it.
//
// Engine thread.
#pragma once

#include <cstdint>

namespace headroom {

class StepPace {
 public:
  // slowdown_max 0: no bound. step_tokens_max: of any step.
  StepPace(int32_t slowdown_max, int32_t step_tokens_max);

  // For the next step, in [1, step_tokens_max].
  int32_t chunk_tokens() const;

  // What a step computed, and how long that took.
  void note(int32_t decode_tokens, int32_t prompt_tokens, double seconds);

 private:
  int32_t slowdown_max_;
  int32_t step_tokens_max_;
  double base_seconds_ = 0;   // of a step that only generates; 0: not known
  double token_seconds_ = 0;  // more for each token of a prompt; 0: not known
  int32_t mixed_steps_ = 0;   // in a row
};

}  // namespace headroom
