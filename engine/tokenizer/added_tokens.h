// The "added_tokens" of tokenizer.json: tokens that are found in the text itself, leftmost first, longest first, before
// it is split. Immutable after construction, shared by threads.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/flat_map.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // found only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
  bool normalized = false;   // looked for in the normalised text
  bool special = false;      // a control token
};

// Reads the array; throws std::runtime_error for a malformed entry.
std::vector<AddedToken> added_tokens_from_json(const nlohmann::json& root);

// Which bytes of a text were written by the template and may therefore hold control tokens. Ranges in order, disjoint,
// touching ones joined.
struct ControlRange {
  size_t begin;
  size_t end;
};
// Where special tokens are recognised.
enum class SpecialPolicy { kEverywhere, kNowhere, kInControlRanges };

class AddedTokenMatcher {
 public:
  // A stretch of text between added tokens, or one of those.
  struct Section {
    size_t begin;
    size_t end;
    const AddedToken* token;  // null: text
  };

  AddedTokenMatcher() = default;
  // `tokens` outlive the matcher. `patterns[i]`: what to look for, tokens[i]->content or its normalised form.
  AddedTokenMatcher(const std::vector<const AddedToken*>& tokens, const std::vector<std::string>& patterns);

  // Covers `text` with sections. REQUIRES: text is well-formed UTF-8.
  void find(std::string_view text, SpecialPolicy policy, const std::vector<ControlRange>& control,
            std::vector<Section>* sections) const;

 private:
  struct Candidate {
    const AddedToken* token = nullptr;
    size_t length = 0;
  };
  class Search;

  // A trie over bytes, whose root is node 0: the token whose pattern ends at a node, and the children by node << 8 |
  // byte.
  std::vector<const AddedToken*> nodes_;
  FlatMap<uint32_t> children_;
  std::array<bool, 256> starts_{};  // bytes with which a pattern begins
};

}  // namespace headroom
