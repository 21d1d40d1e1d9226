// What the engine tells about itself while it runs. Called on the engine thread, so it must be quick and must not throw.
#pragma once

#include <cstdint>

#include "engine/request.h"

namespace headroom {

struct StepObservation {
  int32_t sequences = 0;
  int32_t prefill_tokens = 0;
  int32_t decode_tokens = 0;
  double plan_seconds = 0, run_seconds = 0, commit_seconds = 0;
};

// A request's first token, or a later one.
struct TokenObservation {
  bool first = false;
  double seconds = 0;  // since arrival for the first token; since the token before for a later one
  int64_t context_tokens = 0;  // that it attended to: the prompt and what was generated before it
};

struct RequestObservation {
  FinishReason reason = FinishReason::stop;
  RequestUsage usage;
  int32_t choices = 1;
  int32_t generated_tokens_max = 0;
  int32_t longest_choice_tokens = 0;  // generated for the choice that got the most
  double queue_seconds = 0;      // arrival to first scheduled
  double prefill_seconds = 0;    // first scheduled to first token
  double decode_seconds = 0;     // first token to last token
  double inference_seconds = 0;  // first scheduled to last token
  double e2e_seconds = 0;        // arrival to the end
};

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void on_step(const StepObservation&) {}
  virtual void on_token(const TokenObservation&) {}
  virtual void on_request_finished(const RequestObservation&) {}
};

}  // namespace headroom
