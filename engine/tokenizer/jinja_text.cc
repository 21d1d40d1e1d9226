#include "engine/tokenizer/jinja_text.h"

#include <algorithm>

#include "engine/tokenizer/jinja_unicode.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

void add_range(std::vector<ByteRange>& ranges, ByteRange range) {
  if (range.begin == range.end) return;
  if (!ranges.empty() && ranges.back().end == range.begin) {
    ranges.back().end = range.end;
  } else {
    ranges.push_back(range);
  }
}

bool contains(std::string_view set, std::string_view character) {
  return set.find(character) != std::string_view::npos;
}

}  // namespace

bool Text::is_user(size_t position) const {
  const auto after = std::upper_bound(user.begin(), user.end(), position,
                                      [](size_t value, const ByteRange& range) { return value < range.end; });
  return after != user.end() && after->begin <= position;
}

void Text::append(std::string_view piece, bool is_user) {
  if (is_user) add_range(user, {bytes.size(), bytes.size() + piece.size()});
  bytes.append(piece);
}

void Text::append(const Text& source, size_t begin, size_t end) {
  CHECK(begin <= end && end <= source.bytes.size());
  auto range = std::upper_bound(source.user.begin(), source.user.end(), begin,
                                [](size_t value, const ByteRange& candidate) { return value < candidate.end; });
  for (; range != source.user.end() && range->begin < end; ++range) {
    add_range(user,
              {bytes.size() + std::max(range->begin, begin) - begin, bytes.size() + std::min(range->end, end) - begin});
  }
  bytes.append(source.bytes, begin, end - begin);
}

size_t character_count(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }));
}

size_t character_offset(std::string_view text, size_t index) {
  size_t position = 0;
  for (; index > 0 && position < text.size(); --index) next_character(text, &position);
  return position;
}

ByteRange strip_range(std::string_view text, bool left, bool right, const std::string_view* set) {
  const auto strips = [&](size_t begin, size_t end) {
    if (set) return contains(*set, text.substr(begin, end - begin));
    size_t position = begin;
    return is_space(next_character(text, &position));
  };
  size_t begin = 0;
  while (left && begin < text.size()) {
    size_t next = begin;
    next_character(text, &next);
    if (!strips(begin, next)) break;
    begin = next;
  }
  size_t end = text.size();
  while (right && end > begin) {
    const size_t previous = previous_boundary(text, end);
    if (!strips(previous, end)) break;
    end = previous;
  }
  return {begin, end};
}

}  // namespace headroom::jinja
