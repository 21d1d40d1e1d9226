#include "engine/tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/check.h"

namespace headroom {
namespace {

// The bytes that may follow a lead byte: how many, and the range of the first one, which excludes overlong forms,
// surrogates and values above U+10FFFF (Unicode 15, table 3-7).
struct LeadByte {
  size_t length;
  unsigned char second_min;
  unsigned char second_max;
};
LeadByte lead_byte(unsigned char byte) {
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// The length of the longest well-formed prefix.
size_t valid_prefix_bytes(std::string_view bytes) {
  size_t position = 0;
  while (position < bytes.size()) {
    uint64_t word = 0;
    while (position + sizeof(word) <= bytes.size()) {
      std::memcpy(&word, bytes.data() + position, sizeof(word));
      if (word & 0x8080808080808080u) break;
      position += sizeof(word);
    }
    if (position == bytes.size()) break;
    const Utf8Prefix prefix = classify_utf8(bytes.substr(position, kUtf8BytesMax));
    if (prefix.status != Utf8Status::kComplete) return position;
    position += prefix.length;
  }
  return position;
}

}  // namespace

Utf8Prefix classify_utf8(std::string_view bytes) {
  CHECK(!bytes.empty());
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (byte(0) < 0x80) return {Utf8Status::kComplete, 1};
  const LeadByte lead = lead_byte(byte(0));
  if (lead.length == 0) return {Utf8Status::kInvalid, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Status::kIncomplete, i};
    const unsigned char low = i == 1 ? lead.second_min : 0x80;
    const unsigned char high = i == 1 ? lead.second_max : 0xBF;
    if (byte(i) < low || byte(i) > high) return {Utf8Status::kInvalid, i};
  }
  return {Utf8Status::kComplete, lead.length};
}

bool is_valid_utf8(std::string_view bytes) { return valid_prefix_bytes(bytes) == bytes.size(); }

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t valid = valid_prefix_bytes(bytes);
    text.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    bytes.remove_prefix(classify_utf8(bytes.substr(0, kUtf8BytesMax)).length);
    text.append(kReplacementCharacter);
  }
  return text;
}

std::string one_line(std::string_view message) {
  constexpr size_t kMessageBytesMax = 500;
  std::string line(message.substr(0, kMessageBytesMax));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return (c >= 0 && c < ' ') || c == '\x7F'; }, ' ');
  return replace_invalid_utf8(line);
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  CHECK(!from.empty());
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
  }
  return out.append(text.substr(done));
}

void append_utf8(char32_t character, std::string* out) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (character >> shift & 0x3F)); };
  if (character < 0x80) {
    out->push_back(static_cast<char>(character));
  } else if (character < 0x800) {
    out->push_back(static_cast<char>(0xC0 | character >> 6));
    out->push_back(tail(0));
  } else if (character < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | character >> 12));
    out->push_back(tail(6));
    out->push_back(tail(0));
  } else {
    out->push_back(static_cast<char>(0xF0 | character >> 18));
    out->push_back(tail(12));
    out->push_back(tail(6));
    out->push_back(tail(0));
  }
}

}  // namespace headroom
