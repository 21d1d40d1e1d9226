// Text to token ids and back, as the tokenizer.json of a model directs (Hugging Face `tokenizers`, BPE models).
// A Tokenizer is immutable after loading and shared by all threads. What the file asks for and this class does not
// know is refused by name when it is loaded; nothing is approximated.
//
// Text that is not UTF-8: each maximal ill-formed subpart is taken for one U+FFFD, as Python's errors="replace" does.
// Encoding throws std::runtime_error where the file's own regular expressions exceed their limit of work on a text, or
// its rules inflate a text beyond reason: both are errors of that request alone.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/token_id.h"

namespace headroom {

// A part of the output of a chat template. is_control: the template's own text, in which special tokens are recognised;
// otherwise somebody's text, which never becomes a special token. Spans end at boundaries of characters.
struct TextSpan {
  std::string_view text;
  bool is_control;
};

class AddedTokenMatcher;
enum class SpecialPolicy;
struct TokenEntry;

class Tokenizer {
 public:
  // Reads `model_dir`/tokenizer.json. Throws std::runtime_error, one line that names the file and the fault in it.
  static Tokenizer load(const std::filesystem::path& model_dir);
  static Tokenizer from_json(std::string_view tokenizer_json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // `add_special_tokens`: run the post-processor (BOS and the like). `parse_special`: recognise special tokens in the
  // text. Added tokens that are not special are words of the vocabulary and recognised in any text.
  std::vector<TokenId> encode(std::string_view text, bool add_special_tokens, bool parse_special = true) const;

  // The output of a chat template, without the post-processor. Special tokens are recognised only where they lie in
  // control text from end to end; all between two of them is one text, wherever its spans begin. A special token is
  // found as the file spells it, also if the file wants it looked for in normalised text.
  std::vector<TokenId> encode_spans(std::span<const TextSpan> spans) const;

  // An id that no token has adds nothing. Bytes that form no character become U+FFFD.
  // One departure from the reference: among byte-fallback tokens (<0x41>), only the bytes that belong to no character
  // are replaced, not the whole run of byte tokens around them, since that cannot be streamed.
  std::string decode(std::span<const TokenId> ids, bool skip_special_tokens) const;

  // The bytes that a token contributes in the midst of a text. Empty for an id that no token has.
  std::string_view token_bytes(TokenId id) const;
  // As the file spells it. Empty for an id that no token has.
  std::string_view token_text(TokenId id) const;
  // One more than the greatest id.
  int32_t vocab_size() const;
  std::optional<TokenId> token_to_id(std::string_view token) const;
  bool is_special(TokenId id) const;
  size_t token_bytes_max() const;  // of the longest token

 private:
  friend class StreamDecoder;
  friend class TokenizerBuilder;
  struct Data;
  struct Scratch;

  explicit Tokenizer(std::unique_ptr<const Data> data);
  const TokenEntry* find_token(TokenId id) const;
  void encode_section(std::string_view section, bool at_start, const AddedTokenMatcher& matcher, SpecialPolicy policy,
                      Scratch* scratch, std::vector<TokenId>* ids) const;
  void encode_text(std::string_view text, bool at_start, Scratch* scratch, std::vector<TokenId>* ids) const;

  std::unique_ptr<const Data> data_;
};

// Ids in, whole UTF-8 characters out: push() returns what has become certain, and at most 3 bytes wait for the rest of
// their character. All that push() returned and then finish() is what Tokenizer::decode() gives for the same ids.
// One thread at a time; the tokenizer must outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  std::string push(TokenId id);
  std::string finish();

 private:
  void append(std::string_view bytes, bool raw, std::string* out);
  void append_replacement(size_t broken_bytes, std::string* out);
  void append_text(std::string_view text, std::string* out);
  void flush(std::string* out);
  void strip_start(std::string* out);

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool first_ = true;
  std::string pending_;  // the beginning of a character
  size_t stripped_ = 0;  // characters taken off the start so far
  bool start_done_ = false;
};

}  // namespace headroom
