// The "decoder" of tokenizer.json, brought into the form that streaming needs: what each token contributes by itself.
// A token is either text, which is whole characters, or raw bytes, which become characters together with their
// neighbours. Immutable, shared by threads.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/regex.h"

namespace headroom {

class TokenDecoder {
 public:
  struct Contribution {
    std::string bytes;
    bool raw;  // may begin or end within a character
  };

  // `root` is the whole file. Throws std::runtime_error for a kind, or an order of kinds, that is not supported.
  static TokenDecoder from_json(const nlohmann::json& root);

  // What `token`, as the vocabulary spells it, adds to the text. `first`: it is the first token of the text.
  Contribution contribute(const std::string& token, bool first, RegexScratch* scratch) const;

  // Does contribute() depend on `first`?
  bool first_differs() const { return first_differs_; }
  // Stands between two tokens.
  const std::string& separator() const { return separator_; }
  // How many of this character are taken off the beginning of the whole text.
  const std::string& stripped_character() const { return stripped_character_; }
  size_t stripped_count() const { return stripped_count_; }
  // A byte that is part of no character becomes U+FFFD by itself (byte fallback), or with those that follow it as long
  // as they look like one character (byte level).
  bool replaces_each_byte() const { return !byte_level_; }

 private:
  struct Strip {
    std::string character;
    size_t start;
    size_t stop;
  };
  struct Metaspace {
    std::string replacement;
    bool drops_first;
  };
  using Step = std::variant<Replacement, Strip, Metaspace>;

  void add_step(const nlohmann::json& step);
  void add_strip(const nlohmann::json& step, const std::string& where);
  static std::string strip(const Strip& strip, std::string_view token);

  std::vector<Step> steps_;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
  bool first_differs_ = false;
  std::string separator_;
  std::string stripped_character_;
  size_t stripped_count_ = 0;
};

}  // namespace headroom
