#include "engine/model/json_scanner.h"

#include <stdexcept>
#include <utility>

namespace headroom {

JsonScanner::JsonScanner(std::string_view text, std::string source) : text_(text), source_(std::move(source)) {
  at_ = valid_utf8_prefix(text);
  if (at_ != text.size()) fail("not UTF-8");
  at_ = 0;
}

void JsonScanner::fail(const std::string& what) const {
  throw std::runtime_error(source_ + ": " + what + " at byte " + std::to_string(at_));
}

void JsonScanner::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
}

bool JsonScanner::accept(char c) {
  skip_space();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonScanner::expect(char c) {
  if (!accept(c)) fail(std::string("not JSON: expected '") + c + "'");
}

void JsonScanner::enter(char bracket) {
  expect(bracket);
  if (++depth_ > kDepthMax) fail("JSON nested deeper than " + std::to_string(kDepthMax));
}

void JsonScanner::expect_end() {
  skip_space();
  if (at_ != text_.size()) fail("not JSON: text after the end");
}

std::string JsonScanner::read_string(size_t bytes_max) {
  std::string out;
  scan_string(&out, bytes_max);
  return out;
}

void JsonScanner::skip_string() { scan_string(nullptr, 0); }

void JsonScanner::scan_string(std::string* out, size_t bytes_max) {
  expect('"');
  for (;;) {
    if (at_ == text_.size()) fail("not JSON: a string without its end");
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) < 0x20) fail("not JSON: a control character in a string");
    ++at_;
    if (c == '"') return;
    if (c == '\\') {
      append_escape(out);
    } else if (out != nullptr) {
      out->push_back(c);
    }
    if (out != nullptr && out->size() > bytes_max) fail("a string of over " + std::to_string(bytes_max) + " bytes");
  }
}

uint32_t JsonScanner::read_hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    uint32_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<uint32_t>(c - '0');
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      digit = static_cast<uint32_t>((c | 0x20) - 'a' + 10);
    } else {
      fail("not JSON: a broken \\u escape");
    }
    value = value * 16 + digit;
    ++at_;
  }
  return value;
}

void JsonScanner::append_escape(std::string* out) {
  const char c = at_ < text_.size() ? text_[at_++] : '\0';
  uint32_t code = 0;
  switch (c) {
    case '"':
    case '\\':
    case '/':
      code = static_cast<unsigned char>(c);
      break;
    case 'b':
      code = '\b';
      break;
    case 'f':
      code = '\f';
      break;
    case 'n':
      code = '\n';
      break;
    case 'r':
      code = '\r';
      break;
    case 't':
      code = '\t';
      break;
    case 'u': {
      code = read_hex4();
      if (code >= 0xDC00 && code < 0xE000) fail("not JSON: half of a surrogate pair");
      if (code >= 0xD800 && code < 0xDC00) {
        if (text_.substr(at_, 2) != "\\u") fail("not JSON: half of a surrogate pair");
        at_ += 2;
        const uint32_t low = read_hex4();
        if (low < 0xDC00 || low >= 0xE000) fail("not JSON: half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      break;
    }
    default:
      fail("not JSON: an unknown escape");
  }
  if (out == nullptr) return;
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
    return;
  }
  if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code >> 6)));
  } else {
    if (code < 0x10000) {
      out->push_back(static_cast<char>(0xE0 | (code >> 12)));
    } else {
      out->push_back(static_cast<char>(0xF0 | (code >> 18)));
      out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3F)));
    }
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
  }
  out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
}

uint64_t JsonScanner::read_unsigned() {
  skip_space();
  const size_t begin = at_;
  uint64_t value = 0;
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text_[at_] - '0'), &value)) {
      fail("a number over 64 bits");
    }
    ++at_;
  }
  if (at_ == begin) fail("expected a whole number ≥ 0");
  if (text_[begin] == '0' && at_ - begin > 1) fail("not JSON: a number with a leading 0");
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
    fail("expected a whole number ≥ 0");
  }
  return value;
}

void JsonScanner::skip_digits() {
  const size_t begin = at_;
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
  if (at_ == begin) fail("not JSON: expected a value");
}

void JsonScanner::skip_number() {
  const auto next_is = [this](char c) { return at_ < text_.size() && text_[at_] == c; };
  if (next_is('-')) ++at_;
  if (next_is('0')) {
    ++at_;
  } else {
    skip_digits();
  }
  if (next_is('.')) {
    ++at_;
    skip_digits();
  }
  if (next_is('e') || next_is('E')) {
    ++at_;
    if (next_is('+') || next_is('-')) ++at_;
    skip_digits();
  }
}

bool JsonScanner::skip_literal(std::string_view literal) {
  if (text_.substr(at_, literal.size()) != literal) return false;
  at_ += literal.size();
  return true;
}

// Unlike read_object it keeps no key, so keys of any length cost nothing.
void JsonScanner::skip_object() {
  enter('{');
  if (!accept('}')) {
    do {
      skip_string();
      expect(':');
      skip_value();
    } while (accept(','));
    expect('}');
  }
  --depth_;
}

void JsonScanner::skip_value() {
  skip_space();
  const char c = at_ < text_.size() ? text_[at_] : '\0';
  if (c == '{') {
    skip_object();
  } else if (c == '[') {
    read_array([this] { skip_value(); });
  } else if (c == '"') {
    skip_string();
  } else if (!skip_literal("true") && !skip_literal("false") && !skip_literal("null")) {
    skip_number();
  }
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[i + k]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() - i < length) return i;
    for (size_t k = 1; k < length; ++k) {
      if ((byte(k) & 0xC0) != 0x80) return i;
    }
    if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF0 && byte(1) < 0x90) ||
        (lead == 0xF4 && byte(1) > 0x8F)) {
      return i;
    }
    i += length;
  }
  return i;
}

std::string printable(std::string_view text) {
  constexpr size_t kBytesMax = 80;
  std::string out;
  for (const char c : text.substr(0, kBytesMax)) {
    const auto byte = static_cast<unsigned char>(c);
    out.push_back(byte < 0x20 || byte >= 0x7F || c == '"' ? '?' : c);
  }
  if (text.size() > kBytesMax) out += "…";
  return out;
}

}  // namespace headroom
