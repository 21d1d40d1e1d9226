#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

using std::chrono::milliseconds;

constexpr int kEventsPerPumpMax = 1024;
// With several prompts there is no one stream to wait for.
constexpr milliseconds kSharedWait{2};
// Entries of echoed log-probabilities, over all choices: each costs some 30 bytes of answer.
constexpr int64_t kEchoedLogprobsMax = 1 << 21;
// Tokens and log-probabilities that an answer may hold, over all choices: some 300 bytes each until they are sent; a sixteenth of that where
// there is only text.
constexpr int64_t kAnsweredEntriesMax = 1 << 20;
constexpr int64_t kAnsweredTextTokensMax = kAnsweredEntriesMax * 16;

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

struct Generation::Run {
  std::vector<TokenId> prompt;
  EchoedPrompt echo;
  int32_t generated_tokens_max = 0;
  size_t first_choice = 0;
  std::shared_ptr<TokenStream> stream;
  bool finished = false;
};

struct Generation::Choice {
  OutputText text;
  ChoiceOutput output;
  bool ended = false;
};

Generation::Generation(Engine& engine, const Tokenizer& tokenizer, GenerationFields fields, Options options)
    : engine_(engine),
      tokenizer_(tokenizer),
      fields_(std::move(fields)),
      options_(std::move(options)),
      stop_(std::make_shared<const StopStrings>(fields_.stop)) {}

Generation::~Generation() {
  // A run whose choices have all met a stop string ends by itself, and is no abort.
  if (!choices_ended()) cancel();
}

void Generation::cancel() {
  for (const auto& run : runs_) {
    if (run->stream != nullptr && !run->finished) run->stream->cancel();
  }
}

std::optional<ApiError> Generation::submit(std::vector<TokenizedPrompt> prompts, Engine::Reservation places) {
  CHECK(runs_.empty() && !prompts.empty());
  if (std::optional<ApiError> error = prepare(std::move(prompts))) return error;
  for (const auto& run : runs_) {
    Engine::SubmitResult result = engine_.submit(engine_request(*run), places);
    if (const auto* error = std::get_if<SubmitError>(&result)) {
      cancel();
      return from_submit_error(*error, static_cast<int64_t>(run->prompt.size()), options_.context_tokens_max);
    }
    run->stream = std::move(std::get<std::shared_ptr<TokenStream>>(result));
  }
  return std::nullopt;
}

// All that can be refused without the engine, for every prompt, before the first is submitted.
std::optional<ApiError> Generation::prepare(std::vector<TokenizedPrompt> prompts) {
  const int64_t context = options_.context_tokens_max;
  const bool are_listed = fields_.top_logprobs >= 0 || fields_.return_token_ids;
  const int64_t entries_each = static_cast<int64_t>(prompts.size()) * fields_.choices * (std::max(fields_.top_logprobs, 0) + 1);
  const int64_t entries_max = are_listed ? kAnsweredEntriesMax : kAnsweredTextTokensMax;
  const auto answered_max = static_cast<int32_t>(entries_max / entries_each);
  int64_t echoed_logprobs = 0;
  for (TokenizedPrompt& prompt : prompts) {
    const auto prompt_tokens = static_cast<int64_t>(prompt.tokens.size());
    if (prompt_tokens == 0) return invalid_field("prompt", "the prompt is empty: send at least one token");
    const int64_t asked = fields_.generated_tokens_max.value_or(1);
    if (prompt_tokens + asked > context) {
      return ApiError{.message = "this model's maximum context length is " + std::to_string(context) + " tokens; the prompt has " +
                                 std::to_string(prompt_tokens) + ", and " + std::to_string(asked) +
                                 " are to be generated",
                      .code = "context_length_exceeded",
                      .numbers = {{"n_prompt_tokens", prompt_tokens}, {"n_ctx", context}}};
    }
    echoed_logprobs += prompt_tokens * fields_.choices * (std::max(fields_.top_logprobs, 0) + 1);
    auto run = std::make_unique<Run>();
    if (fields_.generated_tokens_max.value_or(0) > answered_max) {
      return invalid_field("max_tokens", std::string("max_tokens times prompts times n") + (are_listed ? " times (logprobs + 1)" : "") +
                                             " must not exceed " + std::to_string(entries_max));
    }
    // Who asks for no number gets what context and pool have room for.
    const int32_t room = std::clamp(engine_.generated_tokens_possible(prompt_tokens, fields_.choices, options_.tenant), 1, answered_max);
    const int32_t unasked = std::min(fields_.generated_tokens_default.value_or(INT32_MAX), room);
    run->generated_tokens_max = fields_.generated_tokens_max.value_or(unasked);
    run->prompt = std::move(prompt.tokens);
    run->echo.characters = count_characters(prompt.echo_text);
    run->echo.text = std::move(prompt.echo_text);
    usage_.prompt_tokens += prompt_tokens;
    runs_.push_back(std::move(run));
  }
  if (options_.echo && fields_.top_logprobs >= 0 && echoed_logprobs > kEchoedLogprobsMax) {
    return invalid_field("logprobs", "with echo, prompt tokens times n times (logprobs + 1) must not exceed " +
                                         std::to_string(kEchoedLogprobsMax));
  }
  std::vector<int64_t> prompt_tokens;
  for (const auto& run : runs_) prompt_tokens.push_back(static_cast<int64_t>(run->prompt.size()));
  if (!engine_.may_wait_together(options_.tenant, prompt_tokens)) {
    return invalid_field("prompt", "the prompts have " + std::to_string(usage_.prompt_tokens) +
                                       " tokens in all, for which the queue has no room even when it is empty: send fewer at once");
  }
  for (const auto& run : runs_) add_choices(run.get());
  open_runs_ = runs_.size();
  return std::nullopt;
}

void Generation::add_choices(Run* run) {
  run->first_choice = choices_.size();
  for (int32_t i = 0; i < fields_.choices; ++i) {
    OutputText text(tokenizer_, {.stop = stop_,
                                 .include_stop_in_output = fields_.include_stop_in_output,
                                 .skip_special_tokens = fields_.skip_special_tokens,
                                 .unstopped_tokens = fields_.generated_tokens_min});
    text.continue_from(run->prompt);
    ChoiceOutput output{.index = static_cast<int32_t>(choices_.size())};
    if (options_.echo) output.echo = &run->echo;
    if (fields_.return_token_ids) output.prompt_ids = &run->prompt;
    choices_.push_back(std::make_unique<Choice>(Choice{std::move(text), std::move(output)}));
    ++open_choices_;
  }
}

GenerateRequest Generation::engine_request(const Run& run) const {
  SamplingParams sampling = fields_.sampling;
  // Equal prompts of one request are different draws, unless the client fixed the seed.
  if (!fields_.is_seeded) sampling.seed += run.first_choice;
  return {.prompt = run.prompt,
          .choices = fields_.choices,
          .generated_tokens_max = run.generated_tokens_max,
          .generated_tokens_min = fields_.generated_tokens_min,
          .sampling = std::move(sampling),
          .stop_token_ids = fields_.stop_token_ids,
          .ignore_eos = fields_.ignore_eos,
          .top_logprobs = fields_.top_logprobs,
          .prompt_logprobs = options_.echo && fields_.top_logprobs >= 0,
          .cache_salt = options_.cache_salt,
          .tenant = options_.tenant};
}

void Generation::pump(milliseconds wait_max) {
  int events = 0;
  const auto take_all = [&](Run* run, milliseconds first_wait) {
    milliseconds wait = first_wait;
    while (!run->finished && events < kEventsPerPumpMax && take_event(run, wait)) {
      ++events;
      wait = milliseconds(0);
    }
  };
  for (const auto& run : runs_) take_all(run.get(), milliseconds(0));
  if (events > 0 || ended()) return;
  do {
    next_run_ = (next_run_ + 1) % runs_.size();
  } while (runs_[next_run_]->finished);
  take_all(runs_[next_run_].get(), open_runs_ == 1 ? wait_max : std::min(wait_max, kSharedWait));
}

bool Generation::take_event(Run* run, milliseconds wait_max) {
  std::optional<StreamEvent> event = run->stream->next(wait_max);
  if (!event) return false;
  if (auto* delta = std::get_if<TokenDelta>(&*event)) on_token(run, delta);
  if (auto* scored = std::get_if<PromptScored>(&*event)) on_scored(run, scored);
  if (const auto* finished = std::get_if<ChoiceFinished>(&*event)) on_choice_finished(run, *finished);
  if (const auto* finished = std::get_if<Finished>(&*event)) on_finished(run, *finished);
  return true;
}

// The engine ends a choice with these too: it is told the same ids.
bool Generation::ends_choice(TokenId token) const {
  return contains(fields_.stop_token_ids, token) ||
         (!fields_.ignore_eos && contains(engine_.options().eos_token_ids, token));
}

void Generation::on_token(Run* run, TokenDelta* delta) {
  Choice& choice = *choices_[run->first_choice + static_cast<size_t>(delta->choice)];
  if (choice.ended) return;  // computed before the engine heard of the stop string
  ChoiceOutput& output = choice.output;
  ++output.token_count;
  ++usage_.completion_tokens;
  if (fields_.top_logprobs >= 0 || fields_.return_token_ids) {
    const int64_t echoed = options_.echo ? run->echo.characters : 0;
    output.tokens.push_back({.token = delta->token,
                             .text_offset = echoed + choice.text.characters(),
                             .has_logprobs = delta->has_logprobs,
                             .logprobs = std::move(delta->logprobs)});
  }
  // The token that ends a choice is a sign for the server, not part of the text, unless it is asked for.
  if (ends_choice(delta->token) && !fields_.include_stop_in_output) return;
  output.text += choice.text.push(delta->token);
  if (!choice.text.stopped()) return;
  run->stream->stop_choice(delta->choice);
  end_choice(&choice, {.stop_string = choice.text.stop_string()});
}

// The log-probabilities of the prompt, for `echo`: where each token begins in the text is found by decoding it again.
void Generation::on_scored(Run* run, PromptScored* scored) {
  CHECK_EQ(scored->tokens.size(), run->prompt.size());
  OutputText text(tokenizer_, {.skip_special_tokens = fields_.skip_special_tokens});
  for (size_t i = 0; i < run->prompt.size(); ++i) {
    run->echo.tokens.push_back({.token = run->prompt[i],
                                .text_offset = std::min(text.characters(), run->echo.characters),
                                .has_logprobs = i > 0,
                                .logprobs = std::move(scored->tokens[i])});
    text.push(run->prompt[i]);
  }
}

void Generation::on_choice_finished(Run* run, const ChoiceFinished& finished) {
  Choice& choice = *choices_[run->first_choice + static_cast<size_t>(finished.choice)];
  if (choice.ended) return;
  choice.output.text += choice.text.finish();
  if (choice.text.stopped()) return end_choice(&choice, {.stop_string = choice.text.stop_string()});
  const bool is_asked_stop = contains(fields_.stop_token_ids, finished.stop_token);
  end_choice(&choice, {.is_length = finished.reason == FinishReason::length,
                       .stop_token = is_asked_stop ? finished.stop_token : -1});
}

void Generation::end_choice(Choice* choice, ChoiceEnding ending) {
  choice->ended = true;
  choice->output.ending = std::move(ending);
  --open_choices_;
}

void Generation::on_finished(Run* run, const Finished& finished) {
  run->finished = true;
  --open_runs_;
  usage_.add(finished.usage);
  const auto first = choices_.begin() + static_cast<std::ptrdiff_t>(run->first_choice);
  const bool is_complete =
      std::all_of(first, first + fields_.choices, [](const auto& choice) { return choice->ended; });
  if (is_complete || failure_) return;
  if (finished.reason == FinishReason::error) {
    failure_ = ApiError{
        .status = 500, .message = finished.message, .type = "internal_server_error", .code = "generation_failed"};
  } else {
    failure_ = unavailable("the generation was cut off: " + finished.message);
  }
}

const ChoiceOutput& Generation::output(size_t choice) const { return choices_[choice]->output; }

void Generation::clear_output(size_t choice) {
  ChoiceOutput& output = choices_[choice]->output;
  output.is_first = false;
  output.text.clear();
  output.tokens.clear();
  output.token_count = 0;
  output.ending.reset();
}

std::vector<ChoiceOutput> Generation::take_outputs() {
  std::vector<ChoiceOutput> outputs;
  for (const auto& choice : choices_) outputs.push_back(std::move(choice->output));
  return outputs;
}

}  // namespace headroom
