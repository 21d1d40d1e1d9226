// Regular expressions as tokenizer.json means them (Oniguruma, Ruby syntax, Unicode), run by PCRE2. A pattern is
// translated where the two differ (\s, \w, \v, scripts, nested classes) and refused by name where no translation
// exists. A Regex is immutable after construction and shared by threads; each thread brings its own RegexScratch. Time:
// PCRE2 with JIT where the machine allows it, else interpreted; work per search is limited, beyond it find_regex()
// throws std::runtime_error.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace headroom {

struct TextRange {
  size_t begin;
  size_t end;
};

struct RegexDelete {
  void operator()(pcre2_real_code_8* code) const;
  void operator()(pcre2_real_match_context_8* context) const;
  void operator()(pcre2_real_match_data_8* data) const;
};

// Room for the result of one search at a time, and the account of the time that searches in vain took.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  std::unique_ptr<pcre2_real_match_data_8, RegexDelete> data_;
  std::unique_ptr<pcre2_real_match_context_8, RegexDelete> context_;
  double vain_seconds_ = 0;
};

class Regex {
 public:
  // Throws std::runtime_error with the pattern and the reason.
  explicit Regex(std::string_view pattern);

  // The leftmost match in `text` at or after `begin`; look-behind sees the text before `begin`.
  // REQUIRES: text is well-formed UTF-8, begin <= text.size() is a boundary of characters in it.
  bool find(std::string_view text, size_t begin, RegexScratch* scratch, TextRange* match) const;

  bool backtracks() const { return backtracks_; }

 private:
  [[noreturn]] void fail(const std::string& reason) const;
  int search(std::string_view text, size_t begin, size_t start_max, RegexScratch* scratch) const;

  std::string pattern_;
  bool jit_ = false;
  bool backtracks_ = false;  // its time is counted closely, at the price of speed
  std::unique_ptr<pcre2_real_code_8, RegexDelete> code_;
};

// The pattern in PCRE2's syntax with the same meaning (flags UTF, UCP, MULTILINE). Throws std::runtime_error.
std::string translate_oniguruma(std::string_view pattern);

// All matches in order, as an iteration of the reference does it: an empty match directly behind a match is passed
// over.
template <typename Visit>
void for_each_match(const Regex& regex, std::string_view text, RegexScratch* scratch, Visit visit);

}  // namespace headroom

#include "engine/tokenizer/utf8.h"

namespace headroom {

template <typename Visit>
void for_each_match(const Regex& regex, std::string_view text, RegexScratch* scratch, Visit visit) {
  size_t begin = 0;
  size_t last_end = std::string_view::npos;
  TextRange match;
  while (begin <= text.size() && regex.find(text, begin, scratch, &match)) {
    if (match.begin == match.end && match.end == last_end) {
      if (begin == text.size()) return;
      next_character(text, &begin);
      continue;
    }
    begin = last_end = match.end;
    visit(match);
  }
}

}  // namespace headroom
