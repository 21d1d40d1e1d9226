#include "server/attention_view.h"

#include <cmath>
#include <string>

#include "kernels/check.h"
#include "server/api_error.h"
#include "server/json_writer.h"

namespace headroom {
namespace {

constexpr int32_t kTokensMax = 256;
constexpr int64_t kNumbersMax = 1 << 21;
constexpr float kSteps = 1e6f;  // of a probability: more digits would only be more bytes

void write_heads(const AttentionPatterns& patterns, JsonWriter* json) {
  for (int32_t head = 0; head < patterns.query_heads; ++head) {
    json->begin_object()
        .key("query_head")
        .integer(head)
        .key("kv_head")
        .integer(head / patterns.group())
        .key("rows")
        .begin_array();
    for (int32_t i = 0; i < patterns.tokens; ++i) {
      json->begin_array();
      for (const float p : patterns.row(head, i).first(static_cast<size_t>(i) + 1))
        json->number(std::round(p * kSteps) / kSteps);
      json->end_array();
    }
    json->end_array().end_object();
  }
}

}  // namespace

int32_t attention_tokens_max(const ModelConfig& config) {
  int32_t tokens = kTokensMax;
  while (int64_t{config.query_heads} * tokens * (tokens + 1) / 2 > kNumbersMax) --tokens;
  return tokens;
}

void answer_attention(const ServedModel& served, std::span<const TokenId> tokens, int32_t layer,
                      const std::function<bool()>& client_gone, HttpResponse* response) {
  CHECK(served.attention != nullptr);
  const int32_t tokens_max =
      std::min(attention_tokens_max(served.attention->config()), served.limits.context_tokens_max);
  if (tokens.empty() || std::ssize(tokens) > tokens_max) {
    return respond_with_error(
        invalid_field("prompt", "the prompt must have 1 to " + std::to_string(tokens_max) +
                                    " tokens to show their attention; it has " + std::to_string(tokens.size())),
        response);
  }
  AttentionPatterns patterns;
  try {
    patterns = served.attention->read(tokens, layer, false, client_gone);
  } catch (const AttentionProbe::Abandoned&) {
    return respond_with_error(client_closed(), response);
  } catch (const BackendError&) {
    return respond_with_error(unavailable("there is not enough memory to compute it now"), response);
  }
  JsonWriter json(&response->body);
  json.begin_object().key("tokens").begin_array();
  for (const TokenId token : tokens) json.string(served.tokenizer.token_bytes(token));
  json.end_array().key("layer").integer(patterns.layer).key("layers").integer(patterns.layers);
  json.key("query_heads").integer(patterns.query_heads).key("kv_heads").integer(patterns.kv_heads);
  json.key("group_size").integer(patterns.group()).key("heads").begin_array();
  write_heads(patterns, &json);
  json.end_array().end_object();
}

}  // namespace headroom
