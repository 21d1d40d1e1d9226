// UTF-8 for the tokenizer: one classifier, from which validation, replacement and streaming are built, so that they
// cannot disagree about what a broken sequence is. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace headroom {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD
inline constexpr size_t kUtf8BytesMax = 4;

enum class Utf8Status {
  kComplete,    // the first `length` bytes are one well-formed character
  kInvalid,     // the first `length` bytes are a maximal ill-formed subpart (Unicode 15, section 3.9)
  kIncomplete,  // all of the bytes given begin a character whose end is missing; at most 3
};
struct Utf8Prefix {
  Utf8Status status;
  size_t length;
};

// What `bytes` begins with. REQUIRES: bytes is not empty.
Utf8Prefix classify_utf8(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);

// Each maximal ill-formed subpart becomes one U+FFFD, as in Python's bytes.decode(errors="replace").
std::string replace_invalid_utf8(std::string_view bytes);
// A message that may quote a file as one line of a log: cut at 500 bytes, control characters become spaces.
std::string one_line(std::string_view message);

// Every occurrence of `from` becomes `to`. REQUIRES: from is not empty.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// The character at `*position`, which moves behind it. REQUIRES: text is well-formed and *position is a boundary in it.
inline char32_t next_character(std::string_view text, size_t* position) {
  const auto byte = [&](size_t offset) { return static_cast<unsigned char>(text[*position + offset]); };
  const char32_t lead = byte(0);
  if (lead < 0x80) {
    *position += 1;
    return lead;
  }
  if (lead < 0xE0) {
    const char32_t character = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    *position += 2;
    return character;
  }
  if (lead < 0xF0) {
    const char32_t character = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    *position += 3;
    return character;
  }
  const char32_t character = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  *position += 4;
  return character;
}

// REQUIRES: character is a Unicode scalar value.
void append_utf8(char32_t character, std::string* out);

// The boundary before `position`. REQUIRES: 0 < position <= text.size(), text well-formed.
inline size_t previous_boundary(std::string_view text, size_t position) {
  --position;
  while (position > 0 && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80) --position;
  return position;
}

}  // namespace headroom
