#include "engine/tokenizer/tokenizer.h"

#include <utility>

#include "engine/tokenizer/tokenizer_data.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

// The longest text that is encoded: far above any context, far below what the 32-bit positions within could hold.
constexpr size_t kTextBytesMax = size_t{64} << 20;

void require_size(size_t bytes) {
  if (bytes > kTextBytesMax) throw std::runtime_error("a text of more than 64 MiB cannot be encoded");
}

}  // namespace

struct Tokenizer::Scratch {
  std::vector<AddedTokenMatcher::Section> sections;
  std::vector<AddedTokenMatcher::Section> inner_sections;
  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  RegexScratch regex;
};

Tokenizer::Tokenizer(std::unique_ptr<const Data> data) : data_(std::move(data)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

void Tokenizer::encode_text(std::string_view text, bool at_start, Scratch* scratch, std::vector<TokenId>* ids) const {
  const std::string_view split = data_->pre_tokenizer.split(text, at_start, &scratch->pre_tokenizer);
  for (const TextRange& piece : scratch->pre_tokenizer.pieces) {
    data_->bpe.encode(split.substr(piece.begin, piece.end - piece.begin), &scratch->bpe, ids);
  }
}

// A section lies between two tokens that were found in the text as it was given.
void Tokenizer::encode_section(std::string_view section, bool at_start, const AddedTokenMatcher& matcher,
                               SpecialPolicy policy, Scratch* scratch, std::vector<TokenId>* ids) const {
  std::string normalized;
  if (!data_->normalizer.is_identity()) {
    normalized = data_->normalizer.apply(section, &scratch->regex);
    section = normalized;
  }
  matcher.find(section, policy, {}, &scratch->inner_sections);
  for (const AddedTokenMatcher::Section& part : scratch->inner_sections) {
    if (part.token != nullptr) {
      ids->push_back(part.token->id);
    } else {
      encode_text(section.substr(part.begin, part.end - part.begin), at_start && part.begin == 0, scratch, ids);
    }
  }
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special_tokens, bool parse_special) const {
  require_size(text.size());
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  const SpecialPolicy policy = parse_special ? SpecialPolicy::kEverywhere : SpecialPolicy::kNowhere;
  Scratch scratch;
  std::vector<TokenId> ids;
  if (add_special_tokens) ids = data_->prefix;
  data_->matcher.find(text, policy, {}, &scratch.sections);
  for (const AddedTokenMatcher::Section& section : scratch.sections) {
    if (section.token != nullptr) {
      ids.push_back(section.token->id);
    } else {
      encode_section(text.substr(section.begin, section.end - section.begin), section.begin == 0,
                     data_->normalized_matcher, policy, &scratch, &ids);
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), data_->suffix.begin(), data_->suffix.end());
  return ids;
}

std::vector<TokenId> Tokenizer::encode_spans(std::span<const TextSpan> spans) const {
  std::string text;
  std::vector<ControlRange> control;
  for (const TextSpan& span : spans) {
    require_size(text.size() + span.text.size());
    const size_t begin = text.size();
    if (is_valid_utf8(span.text)) {
      text.append(span.text);
    } else {
      text.append(replace_invalid_utf8(span.text));
    }
    if (!span.is_control || text.size() == begin) continue;
    if (!control.empty() && control.back().end == begin) {
      control.back().end = text.size();
    } else {
      control.push_back({begin, text.size()});
    }
  }
  Scratch scratch;
  std::vector<TokenId> ids;
  data_->span_matcher.find(text, SpecialPolicy::kInControlRanges, control, &scratch.sections);
  for (const AddedTokenMatcher::Section& section : scratch.sections) {
    if (section.token != nullptr) {
      ids.push_back(section.token->id);
    } else {
      encode_section(std::string_view(text).substr(section.begin, section.end - section.begin), section.begin == 0,
                     data_->span_normalized_matcher, SpecialPolicy::kNowhere, &scratch, &ids);
    }
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  StreamDecoder decoder(*this, skip_special_tokens);
  std::string text;
  for (const TokenId id : ids) text += decoder.push(id);
  return text += decoder.finish();
}

const TokenEntry* Tokenizer::find_token(TokenId id) const {
  if (id < 0 || static_cast<size_t>(id) >= data_->tokens.size()) return nullptr;
  const TokenEntry& token = data_->tokens[static_cast<size_t>(id)];
  return token.present ? &token : nullptr;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  const TokenEntry* token = find_token(id);
  return token == nullptr ? std::string_view() : token->bytes;
}

std::string_view Tokenizer::token_text(TokenId id) const {
  const TokenEntry* token = find_token(id);
  return token == nullptr ? std::string_view() : token->text;
}

bool Tokenizer::is_special(TokenId id) const {
  const TokenEntry* token = find_token(id);
  return token != nullptr && token->special;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(data_->tokens.size()); }
size_t Tokenizer::token_bytes_max() const { return data_->token_bytes_max; }

std::optional<TokenId> Tokenizer::token_to_id(std::string_view token) const {
  const auto it = data_->added_ids.find(std::string(token));
  return it != data_->added_ids.end() ? std::optional(it->second) : data_->bpe.token_to_id(std::string(token));
}

}  // namespace headroom
