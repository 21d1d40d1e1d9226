// What a Tokenizer holds; only the tokenizer's own sources see it. Built once, then only read.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/decoder.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace headroom {

struct TokenEntry {
  std::string text;      // as the file spells it
  std::string spelling;  // from which it is decoded: the normalised text if it was found in that
  std::string bytes;     // what it contributes in the midst of a text
  bool raw = false;      // the bytes may begin or end within a character
  bool special = false;
  bool present = false;
};

struct Tokenizer::Data {
  std::vector<AddedToken> added_tokens;  // not moved any more once the matchers point at them
  std::unordered_map<std::string, TokenId> added_ids;
  AddedTokenMatcher matcher;                  // in the text as it is given
  AddedTokenMatcher normalized_matcher;       // in normalised text
  AddedTokenMatcher span_matcher;             // as `matcher`, with every special token
  AddedTokenMatcher span_normalized_matcher;  // as `normalized_matcher`, without special tokens
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  TokenDecoder decoder;
  std::vector<TokenId> prefix;  // of the post-processor
  std::vector<TokenId> suffix;
  std::vector<TokenEntry> tokens;  // by id
  size_t token_bytes_max = 0;
};

}  // namespace headroom
