#include "engine/tokenizer/added_tokens.h"

#include <algorithm>

#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom {
namespace {

using json_fields::fail;

// The search tries each position against the longest token, so the length of tokens bounds its time.
constexpr size_t kContentBytesMax = 1024;

size_t leading_space_bytes(std::string_view text) {
  size_t end = 0;
  for (size_t position = 0; position < text.size(); end = position) {
    if (!is_white_space(next_character(text, &position))) break;
  }
  return end;
}

size_t trailing_space_begin(std::string_view text, size_t not_before) {
  size_t begin = text.size();
  while (begin > not_before) {
    const size_t previous = previous_boundary(text, begin);
    size_t position = previous;
    if (!is_white_space(next_character(text, &position))) break;
    begin = previous;
  }
  return begin;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    size_t position = previous_boundary(text, begin);
    if (is_word_character(next_character(text, &position))) return true;
  }
  return end < text.size() && is_word_character(next_character(text, &end));
}

}  // namespace

std::vector<AddedToken> added_tokens_from_json(const nlohmann::json& root) {
  std::vector<AddedToken> tokens;
  const nlohmann::json* array = json_fields::find(root, "tokenizer.json", "added_tokens");
  if (array == nullptr) return tokens;
  if (!array->is_array()) fail("added_tokens", "must be an array");
  for (const nlohmann::json& entry : *array) {
    const std::string where = "added_tokens[" + std::to_string(tokens.size()) + "]";
    AddedToken token;
    token.id = static_cast<TokenId>(
        json_fields::as_integer(json_fields::require(entry, where, "id"), where + ".id", kTokenIdMax));
    token.content = json_fields::require_string(entry, where, "content");
    token.single_word = json_fields::get_bool(entry, where, "single_word", false);
    token.lstrip = json_fields::get_bool(entry, where, "lstrip", false);
    token.rstrip = json_fields::get_bool(entry, where, "rstrip", false);
    token.special = json_fields::get_bool(entry, where, "special", false);
    token.normalized = json_fields::get_bool(entry, where, "normalized", !token.special);
    if (token.content.empty()) fail(where, "has no content");
    if (token.content.size() > kContentBytesMax) {
      fail(where, "is longer than " + std::to_string(kContentBytesMax) + " bytes");
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(const std::vector<const AddedToken*>& tokens,
                                     const std::vector<std::string>& patterns) {
  CHECK_EQ(tokens.size(), patterns.size());
  nodes_.push_back(nullptr);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (patterns[i].empty()) continue;
    uint32_t node = 0;
    for (const char c : patterns[i]) {
      const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
      uint32_t& child = children_[key];
      if (child == 0) {
        child = static_cast<uint32_t>(nodes_.size());
        nodes_.push_back(nullptr);
      }
      node = child;
    }
    nodes_[node] = tokens[i];
    starts_[static_cast<unsigned char>(patterns[i][0])] = true;
  }
}

// One pass over one text.
class AddedTokenMatcher::Search {
 public:
  Search(const AddedTokenMatcher& matcher, std::string_view text, SpecialPolicy policy,
         const std::vector<ControlRange>& control)
      : matcher_(matcher), text_(text), policy_(policy), control_(control) {}

  void run(std::vector<Section>* sections) {
    size_t done = 0;
    for (size_t position = 0; position < text_.size();) {
      if (!matcher_.starts_[static_cast<unsigned char>(text_[position])]) {
        ++position;
        continue;
      }
      const Candidate candidate = longest_at(position);
      if (candidate.token == nullptr) {
        ++position;
        continue;
      }
      const AddedToken& token = *candidate.token;
      size_t begin = position;
      size_t end = position + candidate.length;
      position = end;  // as in the reference, what is passed over below is not searched again
      if (token.special && !special_allowed(begin, end)) continue;
      if (token.single_word && touches_word(text_, begin, end)) continue;
      if (token.lstrip) begin = std::max(done, trailing_space_begin(text_.substr(0, begin), std::min(done, begin)));
      if (token.rstrip) end += leading_space_bytes(text_.substr(end));
      if (done < begin) sections->push_back({done, begin, nullptr});
      sections->push_back({begin, end, &token});
      done = std::max(done, end);
    }
    if (done < text_.size()) sections->push_back({done, text_.size(), nullptr});
  }

 private:
  Candidate longest_at(size_t begin) const {
    Candidate longest;
    uint32_t node = 0;
    for (size_t position = begin; position < text_.size(); ++position) {
      const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text_[position]);
      const uint32_t* child = matcher_.children_.find(key);
      if (child == nullptr) break;
      node = *child;
      const AddedToken* token = matcher_.nodes_[node];
      if (token != nullptr && eligible(*token, begin, position + 1)) longest = {token, position + 1 - begin};
    }
    return longest;
  }

  // Text of the template and text of a user may together spell a token. A special one is none then; another one is,
  // unless it would swallow the beginning of a special one, which the template's author meant.
  bool eligible(const AddedToken& token, size_t begin, size_t end) const {
    if (policy_ != SpecialPolicy::kInControlRanges || !straddles(begin, end)) return true;
    if (token.special) return false;
    for (size_t inside = begin + 1; inside < end; ++inside) {
      if (special_begins_at(inside)) return false;
    }
    return true;
  }

  bool special_begins_at(size_t begin) const {
    uint32_t node = 0;
    for (size_t position = begin; position < text_.size(); ++position) {
      const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text_[position]);
      const uint32_t* child = matcher_.children_.find(key);
      if (child == nullptr) return false;
      node = *child;
      const AddedToken* token = matcher_.nodes_[node];
      if (token != nullptr && token->special && special_allowed(begin, position + 1)) return true;
    }
    return false;
  }

  bool special_allowed(size_t begin, size_t end) const {
    if (policy_ != SpecialPolicy::kInControlRanges) return policy_ == SpecialPolicy::kEverywhere;
    const auto range = range_after(begin);
    return range != control_.end() && range->begin <= begin && end <= range->end;
  }

  bool straddles(size_t begin, size_t end) const {
    const auto range = range_after(begin);
    if (range == control_.end() || range->begin >= end) return false;  // all of it is a user's
    return range->begin > begin || range->end < end;
  }

  // The first control range that ends behind `position`.
  std::vector<ControlRange>::const_iterator range_after(size_t position) const {
    return std::upper_bound(control_.begin(), control_.end(), position,
                            [](size_t value, const ControlRange& range) { return value < range.end; });
  }

  const AddedTokenMatcher& matcher_;
  std::string_view text_;
  SpecialPolicy policy_;
  const std::vector<ControlRange>& control_;
};

void AddedTokenMatcher::find(std::string_view text, SpecialPolicy policy, const std::vector<ControlRange>& control,
                             std::vector<Section>* sections) const {
  sections->clear();
  if (nodes_.size() > 1) {
    Search(*this, text, policy, control).run(sections);
  } else if (!text.empty()) {
    sections->push_back({0, text.size(), nullptr});
  }
}

}  // namespace headroom
