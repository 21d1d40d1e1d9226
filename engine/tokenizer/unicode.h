// Questions about characters and the Unicode normal forms, answered by utf8proc's tables. Pure functions, any thread.
#pragma once

#include <string>
#include <string_view>

namespace headroom {

bool is_white_space(char32_t character);     // the property White_Space
bool is_numeric(char32_t character);         // categories Nd, Nl, No
bool is_punctuation(char32_t character);     // ASCII punctuation and symbols, categories P*
bool is_mark(char32_t character);            // categories M*
bool is_word_character(char32_t character);  // letters, marks, Nd, Nl, Pc, the joiners U+200C and U+200D

void append_lowercase(char32_t character, std::string* out);

// NFC, NFD, NFKC, NFKD. Linear but for sorting each run of combining marks, which is n log n: the library's own
// routine sorts them in quadratic time, which one hostile prompt would exploit. REQUIRES: text is well-formed UTF-8.
std::string to_normal_form(std::string_view text, bool compose, bool compatibility);

}  // namespace headroom
