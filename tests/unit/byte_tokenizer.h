// A tokenizer whose ids can be read: id b is the byte b, and three special tokens follow. Made from a tokenizer.json of
// the byte-level kind, so that what is tested is the real class.
#pragma once

#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace headroom {

inline constexpr TokenId kEos = 256;   // <|eos|>
inline constexpr TokenId kTurn = 257;  // <|turn|>
inline constexpr TokenId kBos = 258;   // <|bos|>, which the post-processor puts in front
inline constexpr int32_t kByteVocab = 259;

// The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for U+0100 and up, in order.
inline std::string byte_level_character(int byte) {
  const auto stands_for_itself = [](int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  int code = byte;
  if (!stands_for_itself(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += stands_for_itself(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

inline std::string byte_tokenizer_json() {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string name = byte_level_character(byte);
    if (name == "\"" || name == "\\") name = "\\" + name;
    vocab += "\"" + name + "\":" + std::to_string(byte) + ",";
  }
  vocab.pop_back();
  std::string added;
  for (const auto& [name, id] : {std::pair("<|eos|>", kEos), {"<|turn|>", kTurn}, {"<|bos|>", kBos}}) {
    added += std::string(added.empty() ? "" : ",") + R"({"id":)" + std::to_string(id) + R"(,"content":")" + name +
             R"(","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})";
  }
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added + R"(],"normalizer":null,
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},
    "post_processor":{"type":"TemplateProcessing",
      "single":[{"SpecialToken":{"id":"<|bos|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
      "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
      "special_tokens":{"<|bos|>":{"id":"<|bos|>","ids":[258],"tokens":["<|bos|>"]}}},
    "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
    "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
      "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{)" +
         vocab + R"(},"merges":[]}})";
}

}  // namespace headroom
