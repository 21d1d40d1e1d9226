// Character properties as Python's str methods see them. Pure functions, any thread.
#pragma once

#include <string>

namespace headroom::jinja {

bool is_space(char32_t character);       // str.isspace
bool is_line_break(char32_t character);  // str.splitlines
bool is_printable(char32_t character);   // str.isprintable: what repr() shows as it is
bool is_alphabetic(char32_t character);  // str.isalpha
bool is_digit(char32_t character);       // str.isdigit, decimal digits
bool is_cased(char32_t character);
bool is_case_ignorable(char32_t character);  // does not separate a letter from the word around it
bool is_uppercase(char32_t character);
bool is_lowercase(char32_t character);

// Full case mapping: one character may become up to three (U+00DF is "SS" in upper case).
void append_upper(char32_t character, std::string* out);
void append_title(char32_t character, std::string* out);
// `final_sigma`: U+03A3 at the end of a word has a form of its own.
void append_lower(char32_t character, bool final_sigma, std::string* out);

}  // namespace headroom::jinja
