#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/tokenizer_data.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string StreamDecoder::push(TokenId id) {
  std::string out;
  const TokenEntry* token = tokenizer_->find_token(id);
  if (token == nullptr || (skip_special_tokens_ && token->special)) return out;
  const TokenDecoder& decoder = tokenizer_->data_->decoder;
  const bool first = first_;
  first_ = false;
  if (!first) append_text(decoder.separator(), &out);
  if (first && decoder.first_differs()) {
    RegexScratch scratch;
    const TokenDecoder::Contribution contribution = decoder.contribute(token->spelling, true, &scratch);
    append(contribution.bytes, contribution.raw, &out);
  } else {
    append(token->bytes, token->raw, &out);
  }
  strip_start(&out);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  flush(&out);
  strip_start(&out);
  return out;
}

void StreamDecoder::append(std::string_view bytes, bool raw, std::string* out) {
  if (!raw) return append_text(bytes, out);
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_.append(bytes);
    pending_.clear();
    bytes = joined;
  }
  while (!bytes.empty()) {
    const Utf8Prefix prefix = classify_utf8(bytes.substr(0, kUtf8BytesMax));
    if (prefix.status == Utf8Status::kIncomplete) {
      pending_ = bytes;
      return;
    }
    if (prefix.status == Utf8Status::kComplete) {
      out->append(bytes.substr(0, prefix.length));
    } else {
      append_replacement(prefix.length, out);
    }
    bytes.remove_prefix(prefix.length);
  }
}

void StreamDecoder::append_text(std::string_view text, std::string* out) {
  if (text.empty()) return;
  flush(out);
  out->append(text);
}

void StreamDecoder::append_replacement(size_t broken_bytes, std::string* out) {
  const size_t count = tokenizer_->data_->decoder.replaces_each_byte() ? broken_bytes : 1;
  for (size_t i = 0; i < count; ++i) out->append(kReplacementCharacter);
}

// What waits will never become a character.
void StreamDecoder::flush(std::string* out) {
  if (!pending_.empty()) append_replacement(pending_.size(), out);
  pending_.clear();
}

// The first characters of the whole text go, if the file says so. `out` holds whole characters.
void StreamDecoder::strip_start(std::string* out) {
  const TokenDecoder& decoder = tokenizer_->data_->decoder;
  size_t bytes = 0;
  while (!start_done_ && bytes < out->size()) {
    const bool strips = stripped_ < decoder.stripped_count() &&
                        std::string_view(*out).substr(bytes).starts_with(decoder.stripped_character());
    if (!strips) {
      start_done_ = true;
      break;
    }
    bytes += decoder.stripped_character().size();
    ++stripped_;
  }
  out->erase(0, bytes);
}

}  // namespace headroom
