#include "server/openai_request.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <utility>

namespace headroom {
namespace {

// Json's own == makes a json of the literal, for which there may be no memory, and may not fail.
bool is_text(const Json& value, std::string_view text) { return value.is_string() && value.get_ref<const std::string&>() == text; }

constexpr size_t kNameBytesMax = 1024;  // model, cache_salt
constexpr int32_t kCompletionTokensDefault = 16;
// Below this, dividing logits by the temperature overflows before it changes the choice.
constexpr float kGreedyBelow = 1e-5f;

// The body as an object.
Parsed<Json> read_object(std::string_view body, const ApiLimits& limits) {
  Parsed<Json> parsed = read_json(body, limits.json);
  if (const Json* json = std::get_if<Json>(&parsed); json != nullptr && !json->is_object()) {
    return invalid_field("", "the body must be a JSON object");
  }
  return parsed;
}

// Fields that change the answer and are not implemented. Null, false, 0, "", [] and {} ask for nothing.
constexpr std::array<std::string_view, 21> kUnsupportedFields = {"suffix",
                                                                 "use_beam_search",
                                                                 "prompt_embeds",
                                                                 "prompt_logprobs",
                                                                 "truncate_prompt_tokens",
                                                                 "guided_json",
                                                                 "guided_regex",
                                                                 "guided_choice",
                                                                 "guided_grammar",
                                                                 "grammar",
                                                                 "json_schema",
                                                                 "structured_outputs",
                                                                 "bad_words",
                                                                 "allowed_token_ids",
                                                                 "functions",
                                                                 "audio",
                                                                 "logits_processors",
                                                                 "chat_template",
                                                                 "mm_processor_kwargs",
                                                                 "documents",
                                                                 "kv_transfer_params"};

bool asks_for_nothing(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

void refuse_unsupported(FieldReader* fields) {
  for (const std::string_view name : kUnsupportedFields) {
    const Json* field = fields->find(name);
    if (field != nullptr && !asks_for_nothing(*field)) fields->fail(name, "is not supported by this server");
  }
  if (const Json* format = fields->find("response_format")) {
    const auto type = format->is_object() ? format->find("type") : format->end();
    if (!format->is_object() || type == format->end() || !is_text(*type, "text")) {
      fields->fail("response_format",
                   "may only be {\"type\": \"text\"}: json_object and json_schema are not supported");
    }
  }
}

void read_sampling(FieldReader* fields, const ApiLimits& limits, const GenerationDefaults& defaults,
                   GenerationFields* out) {
  SamplingParams& sampling = out->sampling;
  sampling.temperature = defaults.temperature;
  sampling.top_k = defaults.top_k;
  sampling.top_p = defaults.top_p;
  sampling.min_p = defaults.min_p;
  sampling.repetition_penalty = defaults.repetition_penalty;

  fields->real("temperature", {0, 100}, &sampling.temperature);
  if (sampling.temperature < kGreedyBelow) sampling.temperature = 0;
  fields->integer("top_k", -1, INT32_MAX, &sampling.top_k);
  if (sampling.top_k == -1) sampling.top_k = 0;
  sampling.top_k = std::min(sampling.top_k, limits.vocab_size);
  fields->real("top_p", {.min = 0, .max = 1, .min_excluded = true}, &sampling.top_p);
  fields->real("min_p", {0, 1}, &sampling.min_p);
  fields->real("repetition_penalty", {.min = 0, .max = 100, .min_excluded = true}, &sampling.repetition_penalty);
  fields->real("presence_penalty", {-2, 2}, &sampling.presence_penalty);
  fields->real("frequency_penalty", {-2, 2}, &sampling.frequency_penalty);
  std::optional<int64_t> seed;
  fields->integer("seed", INT64_MIN, INT64_MAX, &seed);
  out->is_seeded = seed.has_value();
  if (seed) sampling.seed = static_cast<uint64_t>(*seed);
}

// {"17": 1.5, …}
void read_logit_bias(FieldReader* fields, const ApiLimits& limits, SamplingParams* sampling) {
  const Json* field = fields->find("logit_bias");
  if (field == nullptr) return;
  if (!field->is_object()) return fields->fail("logit_bias", "must be an object from token id to bias");
  if (static_cast<int64_t>(field->size()) > limits.logit_bias_max) {
    return fields->fail("logit_bias", "must have at most " + std::to_string(limits.logit_bias_max) + " entries");
  }
  for (const auto& [name, value] : field->get_ref<const Json::object_t&>()) {
    int64_t id = -1;
    const auto result = std::from_chars(name.data(), name.data() + name.size(), id);
    const bool is_number = result.ec == std::errc() && result.ptr == name.data() + name.size();
    if (!is_number || id < 0 || id >= limits.vocab_size) {
      return fields->fail("logit_bias",
                          "must have token ids from 0 to " + std::to_string(limits.vocab_size - 1) + " as keys");
    }
    const double bias = value.is_number() ? value.get<double>() : 1e9;
    if (!(bias >= -100 && bias <= 100)) return fields->fail("logit_bias", "must have biases in [-100, 100]");
    sampling->logit_bias.emplace_back(static_cast<TokenId>(id), static_cast<float>(bias));
  }
  // Two spellings of one id ("7", "07") are two keys: the engine sees each id once.
  std::stable_sort(sampling->logit_bias.begin(), sampling->logit_bias.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  const auto same = std::adjacent_find(sampling->logit_bias.begin(), sampling->logit_bias.end(),
                                       [](const auto& a, const auto& b) { return a.first == b.first; });
  if (same != sampling->logit_bias.end()) fields->fail("logit_bias", "names a token id twice");
}

// An array of ids of the vocabulary. False after a fault.
bool read_token_ids(FieldReader* fields, std::string_view name, const Json& array, const ApiLimits& limits,
                    std::vector<TokenId>* ids) {
  ids->reserve(array.size());
  for (const Json& element : array) {
    const std::optional<int64_t> id = exact_integer(element);
    if (!id || *id < 0 || *id >= limits.vocab_size) {
      fields->fail(name, "must hold token ids, integers from 0 to " + std::to_string(limits.vocab_size - 1));
      return false;
    }
    ids->push_back(static_cast<TokenId>(*id));
  }
  return true;
}

void read_stop(FieldReader* fields, const ApiLimits& limits, GenerationFields* out) {
  if (const Json* field = fields->find("stop")) {
    const std::span<const Json> stops =
        field->is_array() ? std::span(field->get_ref<const Json::array_t&>()) : std::span(field, 1);
    const std::string rule = "must be a string or an array of at most " + std::to_string(limits.stop_strings_max) +
                             " strings, each of 1 to " + std::to_string(limits.stop_string_bytes_max) + " bytes";
    if (static_cast<int64_t>(stops.size()) > limits.stop_strings_max) return fields->fail("stop", rule);
    for (const Json& stop : stops) {
      const std::string* text = stop.get_ptr<const std::string*>();
      const bool is_valid =
          text != nullptr && !text->empty() && static_cast<int64_t>(text->size()) <= limits.stop_string_bytes_max;
      if (!is_valid) return fields->fail("stop", rule);
      out->stop.push_back(*text);
    }
  }
  if (const Json* field = fields->find("stop_token_ids")) {
    if (!field->is_array() || static_cast<int64_t>(field->size()) > limits.stop_token_ids_max) {
      return fields->fail("stop_token_ids",
                          "must be an array of at most " + std::to_string(limits.stop_token_ids_max) + " token ids");
    }
    read_token_ids(fields, "stop_token_ids", *field, limits, &out->stop_token_ids);
  }
  fields->boolean("include_stop_str_in_output", &out->include_stop_in_output);
  fields->boolean("skip_special_tokens", &out->skip_special_tokens);
  fields->boolean("ignore_eos", &out->ignore_eos);
}

void read_stream_options(FieldReader* fields, GenerationFields* out) {
  fields->boolean("stream", &out->stream);
  const Json* options = fields->find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields->fail("stream_options", "must be an object");
  if (!out->stream) return fields->fail("stream_options", "may only be set when stream is true");
  FieldReader inner(*options, "stream_options.");
  inner.boolean("include_usage", &out->include_usage);
  inner.boolean("continuous_usage_stats", &out->continuous_usage);
  fields->adopt_error(inner);
}

// All but the limit of generated tokens and the log-probabilities, which the two APIs spell differently.
void read_generation(FieldReader* fields, const ApiLimits& limits, const GenerationDefaults& defaults,
                     GenerationFields* out) {
  refuse_unsupported(fields);
  fields->string("model", kNameBytesMax, &out->model);
  fields->integer("n", 1, limits.choices_max, &out->choices);
  std::optional<int32_t> best_of;
  fields->integer("best_of", 1, limits.choices_max, &best_of);
  if (best_of && *best_of != out->choices) fields->fail("best_of", "must equal n: ranking choices is not supported");
  read_sampling(fields, limits, defaults, out);
  read_logit_bias(fields, limits, &out->sampling);
  read_stop(fields, limits, out);
  read_stream_options(fields, out);
  fields->integer("min_tokens", 0, limits.context_tokens_max, &out->generated_tokens_min);
  fields->string("cache_salt", kNameBytesMax, &out->cache_salt);
  fields->boolean("return_token_ids", &out->return_token_ids);
  fields->boolean("return_tokens_as_token_ids", &out->tokens_as_ids);
  int64_t priority = 0;  // accepted for clients that send it; admission is first come, first served
  fields->integer("priority", INT64_MIN, INT64_MAX, &priority);
}

void check_token_counts(FieldReader* fields, const GenerationFields& generation) {
  if (generation.generated_tokens_max && generation.generated_tokens_min > *generation.generated_tokens_max) {
    fields->fail("min_tokens", "must not be greater than the limit of generated tokens, " +
                                   std::to_string(*generation.generated_tokens_max));
  }
}

constexpr std::string_view kPromptRule =
    "must be a string, an array of strings, an array of token ids, or an array of arrays of token ids; none empty";

void read_prompts(FieldReader* fields, const ApiLimits& limits, CompletionRequest* out) {
  const Json* field = fields->find("prompt");
  if (field == nullptr) return fields->fail("prompt", "is missing");
  if (const auto* text = field->get_ptr<const std::string*>()) {
    out->prompts.emplace_back(*text);
    return;
  }
  if (!field->is_array() || field->empty()) return fields->fail("prompt", kPromptRule);
  if (field->front().is_number()) {
    std::vector<TokenId> ids;
    if (read_token_ids(fields, "prompt", *field, limits, &ids)) out->prompts.emplace_back(std::move(ids));
    return;
  }
  if (static_cast<int64_t>(field->size()) * out->generation.choices > limits.choices_total_max) {
    return fields->fail("prompt", "asks for more than " + std::to_string(limits.choices_total_max) +
                                      " choices in one request (prompts times n)");
  }
  const bool are_strings = field->front().is_string();
  for (const Json& element : *field) {
    if (element.is_string() != are_strings || (!are_strings && (!element.is_array() || element.empty()))) {
      return fields->fail("prompt", kPromptRule);
    }
    if (are_strings) {
      out->prompts.emplace_back(element.get_ref<const std::string&>());
      continue;
    }
    std::vector<TokenId> ids;
    if (!read_token_ids(fields, "prompt", element, limits, &ids)) return;
    out->prompts.emplace_back(std::move(ids));
  }
}

// A content that is a list of text parts becomes their texts, one per line, as vLLM gives it to templates that take
// strings. False when a part is no text.
bool flatten_content(Json* content) {
  if (content->is_string()) return true;
  if (!content->is_array()) return false;
  std::string text;
  for (const Json& part : *content) {
    const auto type = part.is_object() ? part.find("type") : part.end();
    const auto value = part.is_object() ? part.find("text") : part.end();
    if (!part.is_object() || type == part.end() || !is_text(*type, "text") || value == part.end() || !value->is_string()) {
      return false;
    }
    if (&part != &content->front()) text += '\n';
    text += value->get_ref<const std::string&>();
  }
  *content = std::move(text);
  return true;
}

// Clients send a call's arguments as JSON in a string; templates print them as an object.
// `values_read` counts what all arguments of a request hold.
std::optional<std::string> parse_tool_calls(Json* message, const ApiLimits& limits, int64_t* values_read) {
  const auto calls = message->find("tool_calls");
  if (calls == message->end() || calls->is_null()) return std::nullopt;
  if (!calls->is_array()) return "tool_calls must be an array";
  for (Json& call : *calls) {
    const auto function = call.is_object() ? call.find("function") : call.end();
    if (!call.is_object() || function == call.end() || !function->is_object() || !function->contains("name") ||
        !(*function)["name"].is_string()) {
      return "each of tool_calls must hold a function with a name";
    }
    Json& arguments = (*function)["arguments"];
    if (arguments.is_null()) arguments = Json::object();
    if (arguments.is_object()) continue;
    if (!arguments.is_string()) return "the arguments of tool_calls must be a JSON object in a string";
    const auto& text = arguments.get_ref<const std::string&>();
    Parsed<Json> parsed = text.empty() ? Parsed<Json>(Json::object()) : read_json(text, limits.json, values_read);
    Json* json = std::get_if<Json>(&parsed);
    if (*values_read > limits.json.values_max) return "the arguments of tool_calls hold more than " + std::to_string(limits.json.values_max) + " values in all";
    if (json == nullptr || !json->is_object()) return "the arguments of tool_calls must be a JSON object in a string";
    arguments = std::move(*json);
  }
  return std::nullopt;
}

// What is wrong with a message, or nothing; it then has a string as role and as content.
std::optional<std::string> normalize_message(Json* message, const ApiLimits& limits, int64_t* values_read) {
  if (!message->is_object()) return "must be an object";
  const auto role = message->find("role");
  if (role == message->end() || !role->is_string()) return "must have a role, a string";
  if (std::optional<std::string> fault = parse_tool_calls(message, limits, values_read)) return fault;
  const bool may_lack_content = is_text(*role, "assistant");
  Json& content = (*message)["content"];
  if (content.is_null() && may_lack_content) {
    content = "";
    return std::nullopt;
  }
  if (!flatten_content(&content)) return "must have a content: a string, or an array of {\"type\": \"text\"} parts";
  return std::nullopt;
}

// A field out of the body, which is not copied: that could take as much memory again. REQUIRES: it is there.
Json take(Json* body, const char* name) { return std::move((*body)[name]); }

void read_messages(FieldReader* fields, Json* body, const ApiLimits& limits, ChatInput* chat) {
  const Json* field = fields->find("messages");
  if (field == nullptr) return fields->fail("messages", "is missing");
  if (!field->is_array() || field->empty() || static_cast<int64_t>(field->size()) > limits.messages_max) {
    return fields->fail("messages", "must be an array of 1 to " + std::to_string(limits.messages_max) + " messages");
  }
  chat->messages = take(body, "messages");
  int64_t values_read = 0;
  for (size_t i = 0; i < chat->messages.size(); ++i) {
    if (const std::optional<std::string> fault = normalize_message(&chat->messages[i], limits, &values_read)) {
      return fields->fail("messages", "[" + std::to_string(i) + "] " + *fault);
    }
  }
}

void read_tools(FieldReader* fields, Json* body, ChatInput* chat) {
  bool are_shown = true;
  if (const Json* choice = fields->find("tool_choice")) {
    if (!is_text(*choice, "none") && !is_text(*choice, "auto")) {
      fields->fail("tool_choice", "may only be \"none\" or \"auto\": a call cannot be enforced");
    }
    are_shown = !is_text(*choice, "none");
  }
  const Json* tools = fields->find("tools");
  if (tools == nullptr) return;
  const bool are_objects =
      tools->is_array() && std::all_of(tools->begin(), tools->end(), [](const Json& tool) { return tool.is_object(); });
  if (!are_objects) return fields->fail("tools", "must be an array of objects");
  if (are_shown && !tools->empty()) chat->tools = take(body, "tools");
}

// Names that the server sets itself in a template.
constexpr std::array<std::string_view, 6> kReservedArguments = {"messages",  "tools",     "add_generation_prompt",
                                                                "bos_token", "eos_token", "chat_template"};

void read_chat_input(FieldReader* fields, Json* body, const ApiLimits& limits, ChatInput* chat) {
  read_messages(fields, body, limits, chat);
  read_tools(fields, body, chat);
  fields->boolean("continue_final_message", &chat->continue_final_message);
  chat->add_generation_prompt = !chat->continue_final_message;
  fields->boolean("add_generation_prompt", &chat->add_generation_prompt);
  if (chat->add_generation_prompt && chat->continue_final_message) {
    fields->fail("continue_final_message", "and add_generation_prompt exclude each other");
  }
  chat->template_arguments = Json::object();
  if (const Json* arguments = fields->find("chat_template_kwargs")) {
    if (!arguments->is_object()) return fields->fail("chat_template_kwargs", "must be an object");
    for (const std::string_view name : kReservedArguments) {
      if (arguments->contains(name)) fields->fail("chat_template_kwargs", "must not set " + std::string(name));
    }
    chat->template_arguments = take(body, "chat_template_kwargs");
  }
}

// In a conversation the template writes them.
void refuse_special_tokens(FieldReader* fields) {
  bool add_special_tokens = false;
  fields->boolean("add_special_tokens", &add_special_tokens);
  if (add_special_tokens)
    fields->fail("add_special_tokens", "is not supported with messages: the chat template adds them");
}

// An error of the reader, or the value.
template <typename T>
Parsed<T> finish(const FieldReader& fields, T&& value) {
  if (fields.error()) return *fields.error();
  return std::forward<T>(value);
}

}  // namespace

Parsed<CompletionRequest> parse_completion_request(std::string_view body, const ApiLimits& limits,
                                                   const GenerationDefaults& defaults) {
  Parsed<Json> parsed = read_object(body, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  FieldReader fields(std::get<Json>(parsed));
  CompletionRequest request;
  GenerationFields& generation = request.generation;
  read_generation(&fields, limits, defaults, &generation);
  fields.boolean("echo", &request.echo);
  fields.boolean("add_special_tokens", &request.add_special_tokens);
  fields.integer("logprobs", 0, limits.top_logprobs_max, &generation.top_logprobs);
  // Scoring a prompt generates nothing: 0 makes sense with echo alone.
  generation.generated_tokens_default = kCompletionTokensDefault;
  fields.integer("max_tokens", request.echo ? 0 : 1, INT32_MAX, &generation.generated_tokens_max);
  check_token_counts(&fields, generation);
  read_prompts(&fields, limits, &request);
  return finish(fields, std::move(request));
}

Parsed<ChatRequest> parse_chat_request(std::string_view body, const ApiLimits& limits,
                                       const GenerationDefaults& defaults) {
  Parsed<Json> parsed = read_object(body, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  FieldReader fields(std::get<Json>(parsed));
  ChatRequest request;
  GenerationFields& generation = request.generation;
  read_generation(&fields, limits, defaults, &generation);
  read_chat_input(&fields, &std::get<Json>(parsed), limits, &request.chat);
  refuse_special_tokens(&fields);
  bool wants_logprobs = false;
  fields.boolean("logprobs", &wants_logprobs);
  std::optional<int32_t> top_logprobs;
  fields.integer("top_logprobs", 0, limits.top_logprobs_max, &top_logprobs);
  if (top_logprobs && *top_logprobs > 0 && !wants_logprobs) fields.fail("top_logprobs", "needs logprobs to be true");
  if (wants_logprobs) generation.top_logprobs = top_logprobs.value_or(0);
  generation.generated_tokens_default = defaults.generated_tokens_max;
  fields.integer("max_tokens", 1, INT32_MAX, &generation.generated_tokens_max);
  fields.integer("max_completion_tokens", 1, INT32_MAX, &generation.generated_tokens_max);
  check_token_counts(&fields, generation);
  return finish(fields, std::move(request));
}

namespace {

void read_tokenizable(FieldReader* fields, Json* body, const ApiLimits& limits, TokenizeRequest* out) {
  fields->string("model", kNameBytesMax, &out->model);
  if (fields->find("messages") != nullptr) {
    refuse_special_tokens(fields);
    read_chat_input(fields, body, limits, &out->input.emplace<ChatInput>());
  } else {
    if (fields->find("prompt") == nullptr) fields->fail("prompt", "or messages is missing");
    fields->string("prompt", SIZE_MAX, &std::get<std::string>(out->input));
    fields->boolean("add_special_tokens", &out->add_special_tokens);
  }
}

}  // namespace

Parsed<TokenizeRequest> parse_tokenize_request(std::string_view body, const ApiLimits& limits) {
  Parsed<Json> parsed = read_object(body, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  FieldReader fields(std::get<Json>(parsed));
  TokenizeRequest request;
  fields.boolean("return_token_strs", &request.return_token_strings);
  read_tokenizable(&fields, &std::get<Json>(parsed), limits, &request);
  return finish(fields, std::move(request));
}

Parsed<AttentionRequest> parse_attention_request(std::string_view body, const ApiLimits& limits, int32_t layers) {
  Parsed<Json> parsed = read_object(body, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  FieldReader fields(std::get<Json>(parsed));
  AttentionRequest request{.layer = layers - 1};
  read_tokenizable(&fields, &std::get<Json>(parsed), limits, &request.text);
  fields.integer("layer", 0, layers - 1, &request.layer);
  return finish(fields, std::move(request));
}

Parsed<DetokenizeRequest> parse_detokenize_request(std::string_view body, const ApiLimits& limits) {
  Parsed<Json> parsed = read_object(body, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  FieldReader fields(std::get<Json>(parsed));
  DetokenizeRequest request;
  fields.string("model", kNameBytesMax, &request.model);
  const Json* tokens = fields.find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    fields.fail("tokens", "must be an array of token ids");
  } else if (static_cast<int64_t>(tokens->size()) > limits.context_tokens_max) {
    fields.fail("tokens", "must have at most " + std::to_string(limits.context_tokens_max) + " token ids, this model's context");
  } else {
    read_token_ids(&fields, "tokens", *tokens, limits, &request.tokens);
  }
  return finish(fields, std::move(request));
}

}  // namespace headroom
