// What /v1/attention answers: the attention probabilities of one layer for a prompt, as JSON. Runs on the caller's
// thread, beside the engine.
#pragma once

#include <functional>
#include <span>

#include "engine/tokenizer/token_id.h"
#include "server/http_server.h"
#include "server/served_model.h"

namespace headroom {

// The longest prompt that is shown, in tokens: 256, or fewer where the heads are so many that their triangles would
// have more than 2^21 numbers, about 20 MB of text.
int32_t attention_tokens_max(const ModelConfig& config);

// {"tokens", "layer", "layers", "query_heads", "kv_heads", "group_size", "heads": [{"query_head", "kv_head", "rows"}]};
// rows[i] has the i + 1 probabilities that token i gives to the tokens up to itself, rounded to 6 decimals. A prompt
// that is too long is a 400. REQUIRES: served.attention.
void answer_attention(const ServedModel& served, std::span<const TokenId> tokens, int32_t layer,
                      const std::function<bool()>& client_gone, HttpResponse* response);

}  // namespace headroom
