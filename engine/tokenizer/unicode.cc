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

// Text below U+0300 is in NFC already, text below U+00C0 in NFD; below U+00A0 also in the compatibility forms.
bool is_trivially_normal(std::string_view text, bool compose, bool compatibility) {
  const unsigned char lead_max = compatibility ? 0x7F : compose ? 0xCB : 0xC2;  // U+02FF, U+00BF
  return std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<unsigned char>(c) <= lead_max; });
}

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
  if (is_trivially_normal(text, compose, compatibility)) return std::string(text);
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatibility ? UTF8PROC_COMPAT : 0));
  constexpr size_t kDecompositionMax = 32;  // the longest one in Unicode has 18 characters
  std::array<utf8proc_int32_t, kDecompositionMax> decomposition{};
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    int boundary_class = UTF8PROC_BOUNDCLASS_START;
    const auto character = static_cast<utf8proc_int32_t>(next_character(text, &position));
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(character, decomposition.data(), decomposition.size(), options, &boundary_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(decomposition.size()));
    characters.insert(characters.end(), decomposition.begin(), decomposition.begin() + count);
  }
  order_marks(&characters);
  size_t length = characters.size();
  if (compose) {
    const auto compose_options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    const utf8proc_ssize_t composed =
        utf8proc_normalize_utf32(characters.data(), static_cast<utf8proc_ssize_t>(length), compose_options);
    CHECK(composed >= 0);
    length = static_cast<size_t>(composed);
  }
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < length; ++i) append_utf8(static_cast<char32_t>(characters[i]), &out);
  return out;
}

}  // namespace headroom
