// A string that knows which of its bytes came from the request. The template's own literals are control text; what a
// client sent, and whatever is derived from it, is user text. All texts are well-formed UTF-8.
// Plain values, any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/jinja_limits.h"

namespace headroom::jinja {

struct ByteRange {
  size_t begin;
  size_t end;
};

struct Text {
  std::string bytes;
  std::vector<ByteRange> user;  // sorted, not empty, neither overlapping nor touching

  bool has_user() const { return !user.empty(); }
  bool is_user(size_t position) const;
  void append(std::string_view piece, bool is_user);
  void append(const Text& source, size_t begin, size_t end);  // bytes [begin, end) of source, with their origin
  void append(const Text& source) { append(source, 0, source.bytes.size()); }
};

// Collects a text under a budget: the size of the result is bounded, and its bytes are charged while it grows.
class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(budget), charge_(&budget, 0) {}

  void append(std::string_view piece, bool is_user) {
    reserve(piece.size());
    text_.append(piece, is_user);
    charge_ranges();
  }
  void append(const Text& source, size_t begin, size_t end) {
    reserve(end - begin);
    text_.append(source, begin, end);
    charge_ranges();
  }
  void append(const Text& source) { append(source, 0, source.bytes.size()); }

  size_t size() const { return text_.bytes.size(); }
  Text take() { return std::move(text_); }
  Budget& budget() { return budget_; }

 private:
  void reserve(size_t bytes) {
    budget_.spend_copy(bytes);
    if (bytes > budget_.limits().output_bytes_max - text_.bytes.size()) budget_.fail_size();
    charge_.grow(bytes);
  }
  void charge_ranges() {
    if (text_.user.size() <= charged_ranges_) return;
    charge_.grow((text_.user.size() - charged_ranges_) * sizeof(ByteRange));
    charged_ranges_ = text_.user.size();
  }

  Budget& budget_;
  Charge charge_;
  size_t charged_ranges_ = 0;
  Text text_;
};

// Positions in characters (code points), as Python counts them.
size_t character_count(std::string_view text);
// The byte offset of character `index`, or the end.
size_t character_offset(std::string_view text, size_t index);
// Byte offsets [begin, end) of what remains after white space (or the characters of `set`) is taken off the ends.
ByteRange strip_range(std::string_view text, bool left, bool right, const std::string_view* set);

}  // namespace headroom::jinja
