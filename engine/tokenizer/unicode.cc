#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"

namespace headroom {
namespace {

int combining_class(utf8proc_int32_t character) { return utf8proc_get_property(character)->combining_class; }

// Canonical ordering (Unicode 15, definition D109): each run of marks in the order of their classes, stable.
void order_marks(std::vector<utf8proc_int32_t>* characters) {
  auto begin = characters->begin();
  while (begin != characters->end()) {
    begin = std::find_if(begin, characters->end(), [](utf8proc_int32_t c) { return combining_class(c) != 0; });
    const auto end = std::find_if(begin, characters->end(), [](utf8proc_int32_t c) { return combining_class(c) == 0; });
    const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    };
    if (!std::is_sorted(begin, end, by_class)) std::stable_sort(begin, end, by_class);
    begin = end;
  }
}

// Characters below U+0300 never change in NFC, those below U+00C0 not in NFD, those below U+0080 in no form; and none
// of them composes with what stands before it. So the text falls apart before each of them. The last lead byte of
// those:
unsigned char plain_lead_max(bool compose, bool compatibility) { return compatibility ? 0x7F : compose ? 0xCB : 0xC2; }

class Normalization {
 public:
  Normalization(bool compose, bool compatibility)
      : compose_(compose),
        options_(static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                (compatibility ? UTF8PROC_COMPAT : 0))) {}

  void append(std::string_view text, std::string* out) {
    characters_.clear();
    for (size_t position = 0; position < text.size();) decompose(next_character(text, &position));
    order_marks(&characters_);
    size_t length = characters_.size();
    if (compose_) {
      const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
      const utf8proc_ssize_t composed =
          utf8proc_normalize_utf32(characters_.data(), static_cast<utf8proc_ssize_t>(length), options);
      CHECK_GE(composed, 0);
      length = static_cast<size_t>(composed);
    }
    for (size_t i = 0; i < length; ++i) append_utf8(static_cast<char32_t>(characters_[i]), out);
  }

 private:
  void decompose(char32_t character) {
    constexpr size_t kDecompositionMax = 32;  // the longest one in Unicode has 18 characters
    std::array<utf8proc_int32_t, kDecompositionMax> parts{};
    int boundary_class = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts.data(),
                                                           parts.size(), options_, &boundary_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()));
    characters_.insert(characters_.end(), parts.begin(), parts.begin() + count);
  }

  bool compose_;
  utf8proc_option_t options_;
  std::vector<utf8proc_int32_t> characters_;
};

}  // namespace

bool is_white_space(char32_t character) {
  if (character < 0x80) return character == ' ' || (character >= '\t' && character <= '\r');
  return character == 0x85 || character == 0xA0 || character == 0x1680 ||
         (character >= 0x2000 && character <= 0x200A) || character == 0x2028 || character == 0x2029 ||
         character == 0x202F || character == 0x205F || character == 0x3000;
}

bool is_numeric(char32_t character) {
  if (character < 0x80) return character >= '0' && character <= '9';
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t character) {
  if (character < 0x80) {
    return (character >= '!' && character <= '/') || (character >= ':' && character <= '@') ||
           (character >= '[' && character <= '`') || (character >= '{' && character <= '~');
  }
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(char32_t character) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

bool is_word_character(char32_t character) {
  if (character == 0x200C || character == 0x200D) return true;
  if (character >= 0x24B6 && character <= 0x24E9) return true;  // circled letters: alphabetic, though symbols
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) || category == UTF8PROC_CATEGORY_PC;
}

void append_lowercase(char32_t character, std::string* out) {
  if (character == 0x130) {  // the one character whose lower case is two: i and a dot above
    out->append("i\xCC\x87");
    return;
  }
  append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character))), out);
}

std::string to_normal_form(std::string_view text, bool compose, bool compatibility) {
  const unsigned char lead_max = plain_lead_max(compose, compatibility);
  const auto is_plain = [&](size_t at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    return byte <= lead_max && (byte & 0xC0) != 0x80;
  };
  const auto changes = [&](char c) { return static_cast<unsigned char>(c) > lead_max; };
  Normalization normalization(compose, compatibility);
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  while (done < text.size()) {
    auto begin = static_cast<size_t>(std::find_if(text.begin() + static_cast<ptrdiff_t>(done), text.end(), changes) -
                                     text.begin());
    size_t end = begin;
    while (end < text.size() && !is_plain(end)) ++end;
    // The character before may take up a mark.
    if (begin < text.size() && begin > done) begin = std::max(done, previous_boundary(text, begin));
    out.append(text.substr(done, begin - done));
    normalization.append(text.substr(begin, end - begin), &out);
    done = end;
  }
  return out;
}

}  // namespace headroom
