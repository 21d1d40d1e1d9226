#include "engine/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <stdexcept>

#include "kernels/check.h"

namespace headroom {
namespace {

// Oniguruma's Unicode \s and \w. PCRE2's own \s also holds U+180E, and its \w is another set.
constexpr std::string_view kSpace = "\\p{White_Space}";
constexpr std::string_view kNotSpace = "\\P{White_Space}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr uint32_t kMatchLimit = 1 << 27;         // about a second; a long text in capitals is given back one by one by o200k
constexpr uint32_t kCarefulMatchLimit = 1 << 22;  // some tens of milliseconds of the interpreter, from one character
// Outside of a class Oniguruma answers for Latin-1 from a table of its own, which holds six superscripts and fractions.
constexpr std::string_view kWordAlone = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

bool is_ascii_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_hexadecimal(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (position_ < pattern_.size()) {
      const char c = pattern_[position_];
      if (c == '\\') {
        escape(/*in_class=*/false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        interval();
      } else {
        out_.push_back(c);
        ++position_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::runtime_error("regular expression /" + std::string(pattern_) + "/: " + what + " is not supported");
  }
  char peek(size_t ahead) const { return position_ + ahead < pattern_.size() ? pattern_[position_ + ahead] : '\0'; }
  void copy(size_t count) {
    out_.append(pattern_.substr(position_, count));
    position_ += count;
  }
  void replace(size_t count, std::string_view by) {
    out_.append(by);
    position_ += count;
  }

  void escape(bool in_class) {
    const char c = peek(1);
    switch (c) {
      case 's':
        return replace(2, kSpace);
      case 'S':
        return replace(2, kNotSpace);
      case 'w':
        return replace(2, in_class ? std::string(kWord) : "[" + std::string(kWordAlone) + "]");
      case 'W':
        if (in_class) refuse("\\W in a character class");
        return replace(2, "[^" + std::string(kWordAlone) + "]");
      case 'v':
        return replace(2, "\\x{0B}");
      case 'p':
      case 'P':
        return property();
      case 'x':
        return hexadecimal();
      case 'd':
      case 'D':
      case 'n':
      case 'r':
      case 't':
      case 'f':
        return copy(2);
      case 'A':
      case 'z':
        if (!in_class) return copy(2);
        break;
      default:
        break;
    }
    if (c == '\0' || is_ascii_alphanumeric(c) || static_cast<unsigned char>(c) >= 0x80) {
      refuse(std::string("the escape \\") + c);
    }
    copy(2);
  }

  void hexadecimal() {
    size_t digits = 0;
    if (peek(2) == '{') {
      while (is_hexadecimal(peek(3 + digits))) ++digits;
      if (digits == 0 || digits > 6 || peek(3 + digits) != '}') refuse("this form of \\x{...}");
      return copy(digits + 4);
    }
    if (!is_hexadecimal(peek(2)) || !is_hexadecimal(peek(3)) || peek(2) >= '8') refuse("this form of \\x");
    copy(4);
  }

  // General categories have the same names in both; a script must be asked for as such, or PCRE2 takes its extensions.
  void property() {
    if (peek(2) != '{') refuse("\\p without braces");
    const size_t close = pattern_.find('}', position_);
    if (close == std::string_view::npos) refuse("\\p without its closing brace");
    std::string_view name = pattern_.substr(position_ + 3, close - position_ - 3);
    bool negated = pattern_[position_ + 1] == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    for (const char c : name) {
      if (!is_ascii_alphanumeric(c) && c != '_') refuse("\\p{" + std::string(name) + "}");
    }
    constexpr std::string_view kGroups = "CLMNPSZ";
    const bool is_category = !name.empty() && name.size() <= 2 && kGroups.find(name[0]) != std::string_view::npos;
    out_.append(negated ? "\\P{" : "\\p{").append(is_category ? "" : "sc:").append(name).append("}");
    position_ = close + 1;
  }

  // A nested class is a union in Oniguruma, so one that is not negated dissolves into the class around it.
  void character_class() {
    copy(1);
    if (peek(0) == '^') copy(1);
    int depth = 1;
    bool first = true;
    while (true) {
      const char c = peek(0);
      if (position_ >= pattern_.size()) refuse("an unterminated character class");
      if (c == '\\') {
        escape(/*in_class=*/true);
      } else if (c == ']') {
        if (first) refuse("an empty character class");
        if (--depth == 0) break;
        ++position_;
      } else if (c == '[') {
        if (peek(1) == ':') refuse("a POSIX class");
        if (peek(1) == '^') refuse("a negated class inside a class");
        if (peek(1) == ']') refuse("an empty character class");
        ++depth;
        ++position_;
      } else if (c == '&' && peek(1) == '&') {
        refuse("an intersection of classes (&&)");
      } else {
        copy(1);
      }
      first = false;
    }
    copy(1);
  }

  // Plain groups, look-around and flags for the group; (?i) alone only where it covers the whole pattern, since the two
  // engines differ in how far it reaches behind an alternative.
  void group() {
    if (peek(1) == '*') refuse("(*...)");
    if (peek(1) != '?') return copy(1);
    const std::string_view rest = pattern_.substr(position_);
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (rest.starts_with(known)) return copy(known.size());
    }
    if (rest.starts_with("(?i)") && position_ == 0) return copy(4);
    refuse("the group " + std::string(rest.substr(0, 4)));
  }

  // In Ruby's syntax {n,m}+ repeats the repetition; in PCRE2 it is possessive. {,m} and {n,m}? differ as well.
  void interval() {
    size_t length = 1;
    while (peek(length) >= '0' && peek(length) <= '9') ++length;
    if (length == 1) refuse("{ without a count");
    const bool exact = peek(length) == '}';
    if (peek(length) == ',') {
      ++length;
      while (peek(length) >= '0' && peek(length) <= '9') ++length;
    }
    if (peek(length) != '}') refuse("{ without a count");
    ++length;
    if (peek(length) == '+' || (exact && peek(length) == '?')) refuse("{...} followed by + or ?");
    copy(length);
  }

  std::string_view pattern_;
  size_t position_ = 0;
  std::string out_;
};

// Whether a match that fails may have tried more than linearly many ways from one character: two repetitions that can give back what they
// took, and behind them something that can fail. PCRE2's compiled code does not count what repetitions of single characters give back, so
// such a pattern is interpreted, which counts everything. Reads what Translator writes; errs on the side of true.
class BacktrackingCheck {
 public:
  explicit BacktrackingCheck(std::string_view pattern) : pattern_(pattern), position_(pattern.starts_with("(?i)") ? 4 : 0) {}
  bool run() {
    while (position_ < pattern_.size()) {
      alternatives(0, 0);
      ++position_;  // a ) too many: PCRE2 has refused it
    }
    return found_;
  }

 private:
  static constexpr int kDepthMax = 250;  // PCRE2's own

  // Until the closing parenthesis or the end; returns the repetitions on the way through, at most.
  int alternatives(int before, int depth) {
    if (depth > kDepthMax) found_ = true;
    int most = before, here = before;
    while (position_ < pattern_.size() && pattern_[position_] != ')') {
      if (pattern_[position_] == '|') {
        ++position_;
        here = before;
        continue;
      }
      here = item(here, depth);
      most = std::max(most, here);
    }
    return most;
  }

  int item(int before, int depth) {
    const bool is_group = pattern_[position_] == '(' && depth <= kDepthMax;
    bool is_closed = false;  // look-around and atomic groups give nothing back once they are left
    int inside = 0;
    if (is_group) {
      const std::string_view rest = pattern_.substr(position_);
      const bool has_kind = rest.starts_with("(?");
      is_closed = has_kind && !rest.starts_with("(?:") && !rest.starts_with("(?i:");
      position_ = has_kind ? pattern_.find_first_of(":=!>", position_) + 1 : position_ + 1;
      inside = alternatives(0, depth + 1);
      ++position_;
    } else {
      skip_single();
    }
    bool may_be_absent = false, is_repeated = false, is_possessive = false;
    quantifier(&may_be_absent, &is_repeated, &is_possessive);
    if (before >= 2 && !may_be_absent) found_ = true;
    if (inside >= 2 && is_repeated) found_ = true;
    if (is_closed || is_possessive) return before;
    return before + inside + (is_repeated ? 1 : 0);
  }

  void skip_single() {
    const char c = pattern_[position_];
    if (c == '[') {
      for (++position_; position_ < pattern_.size() && pattern_[position_] != ']'; ++position_) position_ += pattern_[position_] == '\\';
      ++position_;
    } else if (c == '\\') {
      const bool braced = pattern_.substr(position_ + 1, 1).find_first_of("pPx") == 0 && pattern_.substr(position_ + 2, 1) == "{";
      position_ = braced ? pattern_.find('}', position_) + 1 : position_ + 2;
    } else {
      do ++position_;
      while (position_ < pattern_.size() && (static_cast<unsigned char>(pattern_[position_]) & 0xC0) == 0x80);
    }
    position_ = std::min(position_, pattern_.size());
  }

  void quantifier(bool* may_be_absent, bool* is_repeated, bool* is_possessive) {
    const char c = position_ < pattern_.size() ? pattern_[position_] : '\0';
    if (c != '?' && c != '*' && c != '+' && c != '{') return;
    *may_be_absent = c == '?' || c == '*' || pattern_.substr(position_, 3) == "{0,";
    // Of {n} there is nothing to give back.
    *is_repeated = c == '*' || c == '+' || (c == '{' && pattern_.substr(position_, pattern_.find('}', position_) - position_).find(',') != std::string_view::npos);
    position_ = c == '{' ? std::min(pattern_.find('}', position_), pattern_.size() - 1) + 1 : position_ + 1;
    const char suffix = position_ < pattern_.size() ? pattern_[position_] : '\0';
    *is_possessive = suffix == '+';
    if (suffix == '+' || suffix == '?') ++position_;
  }

  std::string_view pattern_;
  size_t position_;
  bool found_ = false;
};

std::string pcre2_message(int error) {
  std::array<PCRE2_UCHAR, 160> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

struct CompileContextDelete {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

}  // namespace

void RegexDelete::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }
void RegexDelete::operator()(pcre2_real_match_context_8* context) const { pcre2_match_context_free(context); }
void RegexDelete::operator()(pcre2_real_match_data_8* data) const { pcre2_match_data_free(data); }

RegexScratch::RegexScratch()
    : data_(pcre2_match_data_create(1, nullptr)), context_(pcre2_match_context_create(nullptr)) {
  if (data_ == nullptr || context_ == nullptr) throw std::bad_alloc();
}

std::string translate_oniguruma(std::string_view pattern) { return Translator(pattern).run(); }

Regex::Regex(std::string_view pattern) : pattern_(pattern) {
  constexpr size_t kPatternBytesMax = 64 << 10;
  if (pattern.size() > kPatternBytesMax) throw std::runtime_error("a regular expression is longer than 64 KiB");
  const std::string translated = translate_oniguruma(pattern);
  const std::unique_ptr<pcre2_compile_context, CompileContextDelete> compile_context(
      pcre2_compile_context_create(nullptr));
  if (compile_context == nullptr) throw std::bad_alloc();
  pcre2_set_newline(compile_context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t error_offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C |
                                PCRE2_USE_OFFSET_LIMIT,
                            &error, &error_offset, compile_context.get()));
  if (code_ == nullptr) throw std::runtime_error("regular expression /" + pattern_ + "/: " + pcre2_message(error));
  // A machine that forbids writable code pages has no JIT: the interpreter then does the same work more slowly.
  backtracks_ = BacktrackingCheck(translated).run();
  jit_ = !backtracks_ && pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

void Regex::fail(const std::string& reason) const {
  throw std::runtime_error("the text could not be split by /" + pattern_ + "/: " + reason);
}

// One call of PCRE2: matches that begin in [begin, start_max].
int Regex::search(std::string_view text, size_t begin, size_t start_max, RegexScratch* scratch) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  pcre2_match_data* data = scratch->data_.get();
  pcre2_match_context* context = scratch->context_.get();
  pcre2_set_offset_limit(context, start_max);
  pcre2_set_match_limit(context, backtracks_ ? kCarefulMatchLimit : kMatchLimit);
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (jit_) result = pcre2_jit_match(code_.get(), subject, text.size(), begin, PCRE2_NO_UTF_CHECK, data, context);
  if (result != PCRE2_ERROR_JIT_STACKLIMIT) return result;
  return pcre2_match(code_.get(), subject, text.size(), begin, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
}

// PCRE2 limits the work that begins at one character, not their sum. So the search goes in slices of starting points,
// few if the text is long: even if each of them reads the text to its end, a slice takes a fraction of a second, and
// between slices the time is looked at.
bool Regex::find(std::string_view text, size_t begin, RegexScratch* scratch, TextRange* match) const {
  using Clock = std::chrono::steady_clock;
  constexpr size_t kSliceSteps = size_t{1} << 27;
  constexpr double kVainSecondsMax = 2;
  constexpr double kVainSecondsPerByteMax = 1e-7;
  CHECK_LE(begin, text.size());
  Clock::time_point last;
  for (bool first = true;; first = false) {
    const size_t starts = backtracks_ ? 1 : kSliceSteps / (text.size() - begin + 1) + 1;
    const bool is_last = starts > text.size() - begin;
    const int result = search(text, begin, is_last ? PCRE2_UNSET : begin + starts - 1, scratch);
    if (result > 0) {
      const size_t* range = pcre2_get_ovector_pointer(scratch->data_.get());
      *match = {range[0], range[1]};
      CHECK_LE(match->begin, match->end);
      return true;
    }
    if (result != PCRE2_ERROR_NOMATCH) fail(pcre2_message(result));
    if (is_last) return false;
    begin += starts;
    while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
    const Clock::time_point now = Clock::now();
    if (!first) scratch->vain_seconds_ += std::chrono::duration<double>(now - last).count();
    last = now;
    if (scratch->vain_seconds_ > kVainSecondsMax + kVainSecondsPerByteMax * static_cast<double>(text.size())) {
      fail("it takes too long");
    }
  }
}

}  // namespace headroom
