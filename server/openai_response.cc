#include "server/openai_response.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

constexpr float kLogprobMin = -9999.0f;  // what OpenAI's API shows for a probability of zero

float shown_logprob(float logprob) { return std::max(kLogprobMin, logprob); }

bool shows_echo(const ChoiceOutput& choice) { return choice.is_first && choice.echo != nullptr; }

void write_token_id_array(std::string_view key, const std::vector<TokenId>& ids, JsonWriter* json) {
  json->key(key).begin_array();
  for (const TokenId id : ids) json->integer(id);
  json->end_array();
}

void write_token_counts(const UsageTotals& usage, JsonWriter* json) {
  json->key("prompt_tokens").integer(usage.prompt_tokens);
  json->key("completion_tokens").integer(usage.completion_tokens);
  json->key("total_tokens").integer(usage.prompt_tokens + usage.completion_tokens);
}

}  // namespace

void UsageTotals::add(const RequestUsage& usage) {
  cached_tokens += usage.cached_tokens;
  kv_pages += usage.kv_pages;
  kv_bytes += usage.kv_bytes;
  kv_shared_bytes += usage.kv_shared_bytes;
  kv_mha_equivalent_bytes += usage.kv_mha_equivalent_bytes;
  preemptions += usage.preemptions;
}

void write_usage(const UsageTotals& usage, JsonWriter* json) {
  json->begin_object();
  write_token_counts(usage, json);
  json->key("prompt_tokens_details").begin_object().key("cached_tokens").integer(usage.cached_tokens).end_object();
  json->key("kv_cache").begin_object();
  json->key("pages").integer(usage.kv_pages).key("bytes").integer(usage.kv_bytes);
  json->key("shared_bytes").integer(usage.kv_shared_bytes);
  json->key("mha_equivalent_bytes").integer(usage.kv_mha_equivalent_bytes);
  const auto mha_bytes = static_cast<double>(usage.kv_mha_equivalent_bytes);
  json->key("saving_ratio").number(mha_bytes == 0 ? 0.0 : 1.0 - static_cast<double>(usage.kv_bytes) / mha_bytes);
  json->key("preemptions").integer(usage.preemptions).end_object();
  json->end_object();
}

ResponseFormat::ResponseFormat(const Tokenizer& tokenizer, ResponseStyle style)
    : tokenizer_(tokenizer), style_(std::move(style)), chunk_begin_("data: ") {
  JsonWriter json(&chunk_begin_);
  begin_response(&json, true);
  json.key("choices").begin_array();
}

void ResponseFormat::begin_response(JsonWriter* json, bool is_chunk) const {
  const std::string_view chat_object = is_chunk ? "chat.completion.chunk" : "chat.completion";
  json->begin_object().key("id").string(style_.id);
  json->key("object").string(style_.is_chat ? chat_object : "text_completion");
  json->key("created").integer(style_.created).key("model").string(style_.model);
  if (!style_.system_fingerprint.empty()) json->key("system_fingerprint").string(style_.system_fingerprint);
}

std::string ResponseFormat::body(std::span<const ChoiceOutput> choices, const UsageTotals& usage) const {
  std::string body;
  JsonWriter json(&body);
  begin_response(&json, false);
  json.key("choices").begin_array();
  for (const ChoiceOutput& choice : choices) write_choice(choice, false, &json);
  json.end_array();
  if (style_.is_chat && !choices.empty() && choices.front().prompt_ids != nullptr) {
    write_token_id_array("prompt_token_ids", *choices.front().prompt_ids, &json);
  }
  json.key("usage");
  write_usage(usage, &json);
  json.end_object();
  return body;
}

void ResponseFormat::append_chunk(const ChoiceOutput& choice, const UsageTotals& so_far, std::string* out) const {
  if (style_.is_chat && choice.is_first) append_role_chunk(choice, so_far, out);
  *out += chunk_begin_;
  JsonWriter json(out);
  write_choice(choice, true, &json);
  end_chunk(so_far, nullptr, &json, out);
}

void ResponseFormat::append_role_chunk(const ChoiceOutput& choice, const UsageTotals& so_far, std::string* out) const {
  *out += chunk_begin_;
  JsonWriter json(out);
  json.begin_object().key("index").integer(choice.index);
  json.key("delta").begin_object().key("role").string("assistant").key("content").string("").end_object();
  json.key("logprobs").null().key("finish_reason").null().end_object();
  end_chunk(so_far, choice.prompt_ids, &json, out);
}

// Closes "choices" and the chunk.
void ResponseFormat::end_chunk(const UsageTotals& so_far, const std::vector<TokenId>* prompt_ids, JsonWriter* json,
                               std::string* out) const {
  *out += ']';
  if (prompt_ids != nullptr) write_token_id_array("prompt_token_ids", *prompt_ids, json);
  if (style_.continuous_usage) {
    json->key("usage").begin_object();
    write_token_counts(so_far, json);
    json->end_object();
  } else if (style_.include_usage) {
    json->key("usage").null();
  }
  *out += "}\n\n";
}

void ResponseFormat::append_usage_chunk(const UsageTotals& usage, std::string* out) const {
  *out += chunk_begin_;
  *out += "],\"usage\":";
  JsonWriter json(out);
  write_usage(usage, &json);
  *out += "}\n\n";
}

void ResponseFormat::write_choice(const ChoiceOutput& choice, bool is_chunk, JsonWriter* json) const {
  json->begin_object().key("index").integer(choice.index);
  write_text(choice, is_chunk, json);
  json->key("logprobs");
  if (style_.top_logprobs < 0 || (is_chunk && choice.tokens.empty() && !shows_echo(choice))) {
    json->null();
  } else if (style_.is_chat) {
    write_chat_logprobs(choice, json);
  } else {
    write_completion_logprobs(choice, json);
  }
  write_ending(choice, json);
  write_token_ids(choice, json);
  json->end_object();
}

void ResponseFormat::write_text(const ChoiceOutput& choice, bool is_chunk, JsonWriter* json) const {
  if (!style_.is_chat) {
    json->key("text");
    json->string(shows_echo(choice) ? choice.echo->text + choice.text : choice.text);
  } else if (is_chunk) {
    json->key("delta").begin_object();
    if (!choice.text.empty() || !choice.ending) json->key("content").string(choice.text);
    json->end_object();
  } else {
    json->key("message").begin_object().key("role").string("assistant").key("content").string(choice.text);
    json->key("refusal").null().end_object();
  }
}

void ResponseFormat::write_ending(const ChoiceOutput& choice, JsonWriter* json) const {
  json->key("finish_reason");
  if (!choice.ending) {
    json->null();
    return;
  }
  json->string(choice.ending->is_length ? "length" : "stop");
  json->key("stop_reason");
  if (!choice.ending->stop_string.empty()) {
    json->string(choice.ending->stop_string);
  } else if (choice.ending->stop_token >= 0) {
    json->integer(choice.ending->stop_token);
  } else {
    json->null();
  }
}

void ResponseFormat::write_token_ids(const ChoiceOutput& choice, JsonWriter* json) const {
  if (!style_.return_token_ids) return;
  json->key("token_ids").begin_array();
  for (const TokenOutput& token : choice.tokens) json->integer(token.token);
  json->end_array();
  if (!style_.is_chat && choice.is_first && choice.prompt_ids != nullptr) {
    write_token_id_array("prompt_token_ids", *choice.prompt_ids, json);
  }
}

// The completions API names a token by its text, and one that is no whole character by its bytes, so that the names of
// different tokens differ.
std::string ResponseFormat::token_name(TokenId token) const {
  if (style_.tokens_as_ids) return "token_id:" + std::to_string(token);
  const std::string_view bytes = tokenizer_.token_bytes(token);
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto value = static_cast<unsigned char>(byte);
    name += "\\x";
    name += kDigits[value >> 4];
    name += kDigits[value & 15];
  }
  return name;
}

void ResponseFormat::write_completion_logprobs(const ChoiceOutput& choice, JsonWriter* json) const {
  const auto for_each = [&](const auto& visit) {
    if (shows_echo(choice)) {
      for (const TokenOutput& token : choice.echo->tokens) visit(token);
    }
    for (const TokenOutput& token : choice.tokens) visit(token);
  };
  json->begin_object();
  json->key("text_offset").begin_array();
  for_each([&](const TokenOutput& token) { json->integer(token.text_offset); });
  json->end_array().key("token_logprobs").begin_array();
  for_each([&](const TokenOutput& token) {
    if (token.has_logprobs) {
      json->number(shown_logprob(token.logprobs.logprob));
    } else {
      json->null();
    }
  });
  json->end_array().key("tokens").begin_array();
  for_each([&](const TokenOutput& token) { json->string(token_name(token.token)); });
  json->end_array().key("top_logprobs").begin_array();
  std::unordered_set<std::string> names;
  for_each([&](const TokenOutput& token) {
    if (!token.has_logprobs) {
      json->null();
      return;
    }
    // The likeliest, and the token itself; an object cannot hold the same name twice.
    names.clear();
    json->begin_object();
    const auto write = [&](TokenId id, float logprob) {
      const auto [name, is_new] = names.insert(token_name(id));
      if (is_new) json->key(*name).number(shown_logprob(logprob));
    };
    for (const TokenLogprob& top : token.logprobs.top) write(top.token, top.logprob);
    write(token.token, token.logprobs.logprob);
    json->end_object();
  });
  json->end_array().end_object();
}

// "token", "logprob", "bytes": members of an object that the caller opened.
void ResponseFormat::write_chat_token(TokenId token, float logprob, JsonWriter* json) const {
  const std::string_view bytes = tokenizer_.token_bytes(token);
  json->key("token");
  json->string(style_.tokens_as_ids ? token_name(token) : replace_invalid_utf8(bytes));
  json->key("logprob").number(shown_logprob(logprob)).key("bytes").begin_array();
  for (const char byte : bytes) json->integer(static_cast<unsigned char>(byte));
  json->end_array();
}

void ResponseFormat::write_chat_logprobs(const ChoiceOutput& choice, JsonWriter* json) const {
  json->begin_object().key("content").begin_array();
  for (const TokenOutput& token : choice.tokens) {
    json->begin_object();
    write_chat_token(token.token, token.logprobs.logprob, json);
    json->key("top_logprobs").begin_array();
    for (const TokenLogprob& top : token.logprobs.top) {
      json->begin_object();
      write_chat_token(top.token, top.logprob, json);
      json->end_object();
    }
    json->end_array().end_object();
  }
  json->end_array().key("refusal").null().end_object();
}

}  // namespace headroom
