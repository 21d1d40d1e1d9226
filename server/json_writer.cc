#include "server/json_writer.h"

#include <charconv>
#include <cmath>

#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

// The two-character escape of a byte, or 0. Control characters without one are written as \u00XX.
char short_escape(char byte) {
  switch (byte) {
    case '"':
      return '"';
    case '\\':
      return '\\';
    case '\b':
      return 'b';
    case '\f':
      return 'f';
    case '\n':
      return 'n';
    case '\r':
      return 'r';
    case '\t':
      return 't';
    default:
      return 0;
  }
}

void append_ascii(char byte, std::string* out) {
  if (const char escape = short_escape(byte)) {
    *out += '\\';
    *out += escape;
  } else if (static_cast<unsigned char>(byte) < 0x20) {
    constexpr char kDigits[] = "0123456789abcdef";
    *out += "\\u00";
    *out += kDigits[byte >> 4];
    *out += kDigits[byte & 15];
  } else {
    *out += byte;
  }
}

template <typename T>
void append_number(T value, std::string* out) {
  char digits[32];
  const auto result = std::to_chars(digits, digits + sizeof(digits), value);
  out->append(digits, result.ptr);
}

}  // namespace

void append_json_string(std::string_view text, std::string* out) {
  *out += '"';
  size_t position = 0;
  while (position < text.size()) {
    if (static_cast<unsigned char>(text[position]) < 0x80) {
      append_ascii(text[position++], out);
      continue;
    }
    const Utf8Prefix prefix = classify_utf8(text.substr(position));
    if (prefix.status == Utf8Status::kComplete) {
      out->append(text.substr(position, prefix.length));
    } else {
      out->append(kReplacementCharacter);
    }
    position += prefix.length;
  }
  *out += '"';
}

void JsonWriter::separate() {
  if (needs_comma_) out_ += ',';
  needs_comma_ = true;
}

JsonWriter& JsonWriter::open(char bracket) {
  separate();
  out_ += bracket;
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
  out_ += bracket;
  needs_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  separate();
  append_json_string(name, &out_);
  out_ += ':';
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::string(std::string_view text) {
  separate();
  append_json_string(text, &out_);
  return *this;
}

JsonWriter& JsonWriter::integer(int64_t value) {
  separate();
  append_number(value, &out_);
  return *this;
}

JsonWriter& JsonWriter::number(double value) {
  if (!std::isfinite(value)) return null();
  separate();
  append_number(value, &out_);
  return *this;
}

JsonWriter& JsonWriter::number(float value) {
  if (!std::isfinite(value)) return null();
  separate();
  append_number(value, &out_);
  return *this;
}

JsonWriter& JsonWriter::raw(std::string_view json) {
  separate();
  out_ += json;
  return *this;
}

}  // namespace headroom
