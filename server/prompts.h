// Texts and conversations of a request → token ids (hop 3). Pure functions of the model's immutable parts, any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "server/openai_request.h"
#include "server/served_model.h"

namespace headroom {

// `param` is the field at fault in an error.
Parsed<std::vector<TokenId>> tokenize_text(const ServedModel& served, std::string_view text, bool add_special_tokens,
                                           std::string_view param);

// The conversation as the model's template writes it. What the client sent never becomes a special token.
Parsed<std::vector<TokenId>> tokenize_chat(const ServedModel& served, const ChatInput& chat, int64_t now_unix_seconds);

}  // namespace headroom
