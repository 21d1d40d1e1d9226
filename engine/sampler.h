// Chooses the next token from a row of logits. The choice depends on the logits, the parameters, the sequence's own tokens and
// (seed, choice, position) alone: never on the batch or on what was sampled before. Engine thread; keeps scratch of V floats.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"
#include "kernels/sampling.h"

namespace headroom {

// What the sampler needs to know of a sequence at this position.
struct SamplerContext {
  std::span<const TokenId> tokens;   // prompt, then output so far
  int32_t prompt_tokens = 0;
  int32_t choice = 0;
  std::span<const TokenId> forbidden;  // ids that may not be sampled now (end-of-sequence below min_tokens)
};

class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // The next token; nullopt when the logits hold a NaN or no finite value (the model is broken for this sequence).
  // Order of effects: logit_bias, forbidden, repetition, frequency and presence penalty, then greedy if temperature is 0, else
  // temperature, min_p, top_k, top_p and the draw.
  std::optional<TokenId> sample(std::span<const float> logits, const SamplingParams& params, const SamplerContext& context);

  // The same choice for a backend that draws by itself, to the token; nullopt where the logits must be changed first. The row of
  // logits is left to the caller.
  static std::optional<SampleRow> device_row(const SamplingParams& params, const SamplerContext& context, int32_t top_logprobs);

  // Log-probabilities of the raw logits, as vLLM reports them: of `token`, its rank, and the `top` likeliest.
  Logprobs logprobs(std::span<const float> logits, TokenId token, int32_t top);
  // The same, to the bit, of what a backend drew.
  Logprobs logprobs(const SampleResult& result);

 private:
  void apply_bias_and_penalties(const SamplingParams& params, const SamplerContext& context);
  void keep_min_p(float min_p);
  void keep_top_k(int32_t top_k);
  void keep_top_p(float top_p);
  TokenId draw(const SamplingParams& params, const SamplerContext& context) const;

  // candidates_ are the likeliest, in order.
  Logprobs finished(float logit, int32_t rank, float largest, uint64_t weights) const;

  struct Candidate {
    float logit;  // divided by the temperature, relative to the largest
    TokenId token;
  };
  std::vector<float> scores_;          // [V]
  std::vector<int32_t> counts_;        // [V] zero between calls
  std::vector<Candidate> candidates_;  // ≤ V
};

}  // namespace headroom
