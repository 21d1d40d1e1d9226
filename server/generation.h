// One HTTP request's generation: its prompts are submitted to the engine, one engine request each, and their events are
// gathered into what is to be shown of each choice. Choice i of prompt p has index p·n + i.
// Owned by the one worker that answers the request. When it goes away early, the engine frees what it still held.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/output_text.h"
#include "server/api_error.h"
#include "server/openai_request.h"
#include "server/openai_response.h"

namespace headroom {

// A prompt in tokens, and its text where the answer repeats it.
struct TokenizedPrompt {
  std::vector<TokenId> tokens;
  std::string echo_text;
};

class Generation {
 public:
  struct Options {
    bool echo = false;
    std::string cache_salt;
    int32_t context_tokens_max = 0;
    TenantId tenant{};
  };
  // The engine and the tokenizer outlive it.
  Generation(Engine& engine, const Tokenizer& tokenizer, GenerationFields fields, Options options);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Hands all prompts to the engine, or says why not; then none of them runs. Call it once. REQUIRES: prompts not
  // empty, and a place for each.
  std::optional<ApiError> submit(std::vector<TokenizedPrompt> prompts, Engine::Reservation places);

  // Takes the events that have arrived; waits for at most `wait_max` if there are none.
  void pump(std::chrono::milliseconds wait_max);

  bool choices_ended() const { return open_choices_ == 0; }  // all that will be shown is known
  bool ended() const { return open_runs_ == 0; }             // so is what it took
  // A choice cannot be completed. Nothing follows.
  const std::optional<ApiError>& failure() const { return failure_; }
  void cancel();

  // What is new of a choice since clear_output(); choices by index.
  size_t choice_count() const { return choices_.size(); }
  const ChoiceOutput& output(size_t choice) const;
  void clear_output(size_t choice);
  std::vector<ChoiceOutput> take_outputs();

  // cached tokens and KV are complete once ended().
  const UsageTotals& usage() const { return usage_; }

 private:
  struct Run;     // a prompt in the engine
  struct Choice;  // a choice of it

  std::optional<ApiError> prepare(std::vector<TokenizedPrompt> prompts);
  GenerateRequest engine_request(const Run& run) const;
  void add_choices(Run* run);
  bool take_event(Run* run, std::chrono::milliseconds wait_max);
  void on_token(Run* run, TokenDelta* delta);
  void on_scored(Run* run, PromptScored* scored);
  void on_choice_finished(Run* run, const ChoiceFinished& finished);
  void on_finished(Run* run, const Finished& finished);
  void end_choice(Choice* choice, ChoiceEnding ending);
  bool ends_choice(TokenId token) const;

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const GenerationFields fields_;
  const Options options_;
  std::shared_ptr<const StopStrings> stop_;
  std::vector<std::unique_ptr<Run>> runs_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t open_choices_ = 0;
  size_t open_runs_ = 0;
  size_t next_run_ = 0;  // that pump() waits for
  UsageTotals usage_;
  std::optional<ApiError> failure_;
};

}  // namespace headroom
