// The tokenizer of a GGUF file: its arrays of tokens, merges or scores, put into the words of tokenizer.json.
//
// A file names its style and not its rules, so only styles whose rules are known to the letter are taken: byte-level BPE
// ("gpt2") with a pre-tokenizer of kPreTokenizers, and SentencePiece BPE ("llama") as Llama 2's tokenizer.json has it. Any
// other is refused by name.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace headroom {

struct GgufVocabulary {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::string bos_token, eos_token;  // empty: none
};

// `metadata`: the keys of the file (engine/model/gguf.h). Throws std::runtime_error: one line that begins with `source`.
GgufVocabulary read_gguf_vocabulary(const nlohmann::json& metadata, const std::string& source);

}  // namespace headroom
