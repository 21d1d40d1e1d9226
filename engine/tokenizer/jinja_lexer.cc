#include "engine/tokenizer/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <optional>

#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

std::string normalize_newlines(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      result.push_back(source[i]);
      continue;
    }
    result.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  return result;
}

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_part(char c) { return is_name_start(c) || is_ascii_digit(c); }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (position_ < source_.size()) lex_data();
    push(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const { throw SyntaxError(line_, problem); }

  bool at(std::string_view expected) const {
    return std::string_view(source_).substr(position_, expected.size()) == expected;
  }

  // Moves on and counts the lines that were passed.
  void advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(position_),
                                         source_.begin() + static_cast<ptrdiff_t>(position_ + bytes), '\n'));
    position_ += bytes;
  }

  void skip_space() {
    while (position_ < source_.size()) {
      size_t next = position_;
      if (!is_space(next_character(source_, &next))) return;
      advance(next - position_);
    }
  }

  Token& push(TokenKind kind, std::string text = {}) {
    tokens_.push_back({kind, line_, std::move(text), 0, 0});
    return tokens_.back();
  }

  // {% raw %} at the current position: the bytes up to behind it, with the sign of `{%-`.
  std::optional<size_t> match_block_tag(std::string_view name) const {
    size_t p = position_ + 2;
    if (p < source_.size() && (source_[p] == '-' || source_[p] == '+')) ++p;
    const auto skip = [&] {
      while (p < source_.size()) {
        size_t next = p;
        if (!is_space(next_character(source_, &next))) break;
        p = next;
      }
    };
    skip();
    if (source_.compare(p, name.size(), name) != 0) return std::nullopt;
    p += name.size();
    skip();
    return p;
  }

  // Where the next tag begins, or the end of the source.
  size_t find_tag() const {
    for (size_t p = source_.find('{', position_); p != std::string::npos; p = source_.find('{', p + 1)) {
      const char c = p + 1 < source_.size() ? source_[p + 1] : '\0';
      if (c == '{' || c == '%' || c == '#') return p;
    }
    return source_.size();
  }

  // Template text up to `tag`, with white space taken off as the sign of the tag demands.
  void emit_data(size_t tag, char sign, bool is_print) {
    std::string_view text = std::string_view(source_).substr(position_, tag - position_);
    if (sign == '-') {
      text = text.substr(0, strip_range(text, false, true, nullptr).end);
    } else if (sign != '+' && !is_print) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      const std::string_view indent = text.substr(line_begin);
      if ((line_begin > 0 || at_line_start_) && strip_range(indent, true, false, nullptr).begin == indent.size()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) push(TokenKind::kData, std::string(text));
    advance(tag - position_);
  }

  void lex_data() {
    const size_t tag = find_tag();
    if (tag == source_.size()) {
      push(TokenKind::kData, source_.substr(position_));
      position_ = tag;
      return;
    }
    const char kind = source_[tag + 1];
    const char sign =
        tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+') ? source_[tag + 2] : '\0';
    emit_data(tag, sign, kind == '{');
    if (kind == '#') return lex_comment(sign);
    if (kind == '%' && lex_raw()) return;
    push(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kBlockBegin);
    advance(sign ? 3 : 2);
    lex_tag(kind == '{');
  }

  // The rest of a closing tag whose sign and marker end at `position_`: -%} swallows white space, %} one newline.
  void finish_tag(char sign, bool trims_newline) {
    if (sign == '-') skip_space();
    if (sign == '\0' && trims_newline && at("\n")) advance(1);
    at_line_start_ = position_ > 0 && source_[position_ - 1] == '\n';
  }

  void lex_comment(char sign) {
    advance(sign ? 3 : 2);
    const size_t end = source_.find("#}", position_);
    if (end == std::string::npos) fail("missing end of comment tag");
    const char closing = end > position_ ? source_[end - 1] : '\0';
    advance(end + 2 - position_);
    finish_tag(closing == '-' || closing == '+' ? closing : '\0', true);
  }

  bool lex_raw() {
    const std::optional<size_t> after_name = match_block_tag("raw");
    if (!after_name) return false;
    const std::string_view rest = std::string_view(source_).substr(*after_name);
    const bool strips = rest.substr(0, 3) == "-%}";
    if (!strips && rest.substr(0, 2) != "%}") return false;
    advance(*after_name + (strips ? 3 : 2) - position_);
    at_line_start_ = source_[position_ - 1] == '\n';
    if (strips) {
      skip_space();
      at_line_start_ = source_[position_ - 1] == '\n';
    }
    const size_t begin = position_;
    for (size_t tag = source_.find("{%", begin); tag != std::string::npos; tag = source_.find("{%", tag + 1)) {
      if (lex_endraw(begin, tag)) return true;
    }
    fail("missing end of raw directive");
  }

  // {% endraw %} at `tag`, which ends the raw text that began at `begin`.
  bool lex_endraw(size_t begin, size_t tag) {
    position_ = tag;
    const std::optional<size_t> after_name = match_block_tag("endraw");
    position_ = begin;
    if (!after_name) return false;
    const std::string_view rest = std::string_view(source_).substr(*after_name);
    const char closing = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : '\0';
    if (rest.substr(closing ? 1 : 0, 2) != "%}") return false;
    const char opening = source_[tag + 2] == '-' || source_[tag + 2] == '+' ? source_[tag + 2] : '\0';
    emit_data(tag, opening, false);
    advance(*after_name + (closing ? 3 : 2) - position_);
    finish_tag(closing, true);
    return true;
  }

  // The tokens inside {{ }} or {% %}, and the end of the tag.
  void lex_tag(bool is_print) {
    std::vector<char> open;  // brackets that wait for their partner: inside them }} closes nothing
    const std::string_view end_marker = is_print ? "}}" : "%}";
    while (true) {
      skip_space();
      if (position_ == source_.size()) fail("unexpected end of template inside a tag");
      if (open.empty()) {
        const char sign =
            source_[position_] == '-' || (source_[position_] == '+' && !is_print) ? source_[position_] : '\0';
        if (std::string_view(source_).substr(position_ + (sign ? 1 : 0), 2) == end_marker) {
          push(is_print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd);
          advance(sign ? 3 : 2);
          return finish_tag(sign, !is_print);
        }
      }
      lex_token(&open);
    }
  }

  void lex_token(std::vector<char>* open) {
    const char c = source_[position_];
    if (is_ascii_digit(c)) return lex_number();
    if (is_name_start(c)) {
      const size_t begin = position_;
      while (position_ < source_.size() && is_name_part(source_[position_])) ++position_;
      push(TokenKind::kName, source_.substr(begin, position_ - begin));
      return;
    }
    if (c == '\'' || c == '"') return lex_string(c);
    lex_operator(open);
  }

  // Digits, possibly grouped by single underscores, from `p`; the position behind them.
  template <class IsDigit>
  size_t skip_digits(size_t p, IsDigit is_digit_of_base) const {
    while (p < source_.size()) {
      const size_t digit = source_[p] == '_' ? p + 1 : p;
      if (digit >= source_.size() || !is_digit_of_base(source_[digit])) break;
      p = digit + 1;
    }
    return p;
  }

  void lex_number() {
    const char* const prefixes = "bBoOxX";
    const char marker = position_ + 1 < source_.size() ? source_[position_ + 1] : '\0';
    if (source_[position_] == '0' && marker != '\0' &&
        std::string_view(prefixes).find(marker) != std::string_view::npos) {
      const int base = marker == 'b' || marker == 'B' ? 2 : marker == 'o' || marker == 'O' ? 8 : 16;
      const size_t end = skip_digits(position_ + 2, [&](char d) {
        return base == 16 ? std::isxdigit(static_cast<unsigned char>(d)) != 0 : d >= '0' && d < '0' + base;
      });
      if (end > position_ + 2) return push_integer(position_ + 2, end, base);
    }
    const size_t whole = skip_digits(position_, is_ascii_digit);
    size_t end = whole;
    const bool may_be_real = position_ == 0 || source_[position_ - 1] != '.';
    if (may_be_real && end + 1 < source_.size() && source_[end] == '.' && is_ascii_digit(source_[end + 1])) {
      end = skip_digits(end + 1, is_ascii_digit);
    }
    if (may_be_real && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
      if (exponent < source_.size() && is_ascii_digit(source_[exponent])) end = skip_digits(exponent, is_ascii_digit);
    }
    end == whole ? push_integer(position_, whole, 10) : push_real(end);
  }

  std::string without_underscores(size_t begin, size_t end) const {
    std::string digits = source_.substr(begin, end - begin);
    std::erase(digits, '_');
    return digits;
  }

  void push_integer(size_t begin, size_t end, int base) {
    const std::string digits = without_underscores(begin, end);
    int64_t value = 0;
    const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc() || last != digits.data() + digits.size())
      fail("the number " + digits.substr(0, 40) + " is too large");
    if (base == 10 && digits.size() > 1 && digits[0] == '0' && value != 0) fail("a number may not begin with 0");
    push(TokenKind::kInteger).integer = value;
    position_ = end;
  }

  void push_real(size_t end) {
    const std::string digits = without_underscores(position_, end);
    double value = 0;
    const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (last != digits.data() + digits.size()) fail("the number " + digits.substr(0, 40) + " cannot be read");
    push(TokenKind::kReal).real = error == std::errc() ? value : std::strtod(digits.c_str(), nullptr);  // inf or 0
    position_ = end;
  }

  void lex_string(char quote) {
    const int begin_line = line_;
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string is not closed");
    Token& token = push(TokenKind::kString);
    token.line = begin_line;
    const std::string_view body = std::string_view(source_).substr(position_ + 1, end - position_ - 1);
    for (size_t p = 0; p < body.size();) {
      if (body[p] == '\\') {
        append_escape(body, &p, &token.text);
      } else {
        token.text.push_back(body[p++]);
      }
    }
    advance(end + 1 - position_);
  }

  // A backslash at *p, with Python's escapes; one that means nothing stays as it is written.
  void append_escape(std::string_view body, size_t* p, std::string* out) const {
    static constexpr std::string_view kNames = "\\'\"abfnrtv";
    static constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
    const char c = body[*p + 1];
    if (const size_t simple = kNames.find(c); simple != std::string_view::npos) {
      out->push_back(kValues[simple]);
      *p += 2;
    } else if (c == '\n') {
      *p += 2;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      append_code(body, p, c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    } else if (c >= '0' && c <= '7') {
      char32_t code = 0;
      size_t digits = 0;
      for (++*p; digits < 3 && *p < body.size() && body[*p] >= '0' && body[*p] <= '7'; ++digits)
        code = code * 8 + static_cast<char32_t>(body[(*p)++] - '0');
      append_utf8(code, out);
    } else if (c == 'N') {
      fail("character names (\\N{…}) are not supported in strings");
    } else {
      out->push_back('\\');
      ++*p;
    }
  }

  void append_code(std::string_view body, size_t* p, size_t digits, std::string* out) const {
    const std::string_view hex = body.substr(*p + 2, digits);
    uint32_t code = 0;
    const auto [last, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
    if (error != std::errc() || hex.size() < digits || last != hex.data() + digits)
      fail("a string has a broken \\x, \\u or \\U escape");
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("a string has an escape that is no character");
    append_utf8(code, out);
    *p += 2 + digits;
  }

  void lex_operator(std::vector<char>* open) {
    static constexpr std::array<std::string_view, 25> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ","};
    for (const std::string_view candidate : kOperators) {
      if (!at(candidate)) continue;
      const char c = candidate[0];
      if (c == '{') open->push_back('}');
      if (c == '(') open->push_back(')');
      if (c == '[') open->push_back(']');
      if (c == '}' || c == ')' || c == ']') {
        if (open->empty() || open->back() != c) fail(std::string("unexpected '") + c + "'");
        open->pop_back();
      }
      push(TokenKind::kOperator, std::string(candidate));
      position_ += candidate.size();
      return;
    }
    size_t next = position_;
    next_character(source_, &next);
    fail("unexpected character '" + source_.substr(position_, next - position_) + "'");
  }

  std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;  // the text before the position ends a line, or nothing is before it
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  if (!is_valid_utf8(source)) throw SyntaxError(1, "the template is not valid UTF-8");
  std::string normalized = normalize_newlines(source);
  if (!normalized.empty() && normalized.back() == '\n') normalized.pop_back();
  return Lexer(std::move(normalized)).run();
}

}  // namespace headroom::jinja
