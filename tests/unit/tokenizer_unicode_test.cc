// Classes of characters, single pre-tokenizers and normalizers against the reference library, over every character that
// has been assigned for twenty years and over 20,000 strings; and UTF-8 against its definition.
#include <gtest/gtest.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/regex.h"
#include "engine/tokenizer/utf8.h"
#include "tests/unit/tokenizer_golden.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

const Json& goldens() {
  static const Json json = Json::parse(read_file(kGoldens / "unicode.golden.json"));
  return json;
}

std::vector<std::string> all_characters() {
  std::vector<std::string> characters;
  for (const auto& [first, last] : strings().ranges) {
    for (uint32_t code = first; code <= last; ++code) append_utf8(code, &characters.emplace_back());
  }
  return characters;
}

TEST(Unicode, ClassesOfCharacters) {
  ASSERT_GE(goldens()["classes"].size(), 24u);
  RegexScratch scratch;
  for (const auto& [pattern, golden] : goldens()["classes"].items()) {
    const Regex regex(pattern);
    Hash hash;
    for (const std::string& character : all_characters()) {
      TextRange match{};
      hash.add(regex.find(character, 0, &scratch, &match) && match.end - match.begin == character.size());
    }
    EXPECT_EQ(hash.hex(), golden.get<std::string>()) << pattern;
  }
}

TEST(Unicode, PreTokenizersByClass) {
  PreTokenizerScratch scratch;
  for (const auto& [name, golden] : goldens()["pre_tokenizers"].items()) {
    const Json step = {{"type", name}, {"individual_digits", true}, {"behavior", "Isolated"}};
    const PreTokenizer pre_tokenizer = PreTokenizer::from_json({{"pre_tokenizer", step}});
    Hash hash;
    for (const std::string& character : all_characters()) {
      const std::string text = "x" + character + "x";
      const std::string_view split = pre_tokenizer.split(text, true, &scratch);
      hash.add(scratch.pieces.size());
      for (const TextRange& piece : scratch.pieces) {
        hash.add_text(std::string(split.substr(piece.begin, piece.end - piece.begin)));
      }
    }
    EXPECT_EQ(hash.hex(), golden.get<std::string>()) << name;
  }
}

TEST(Unicode, Normalizers) {
  ASSERT_EQ(goldens()["normalizers"].size(), 7u);
  std::vector<std::string> texts = all_characters();
  const std::vector<std::string> specials = {"\u0301\u0323\u0345", " \u00a0\u3000"};
  for (size_t i = 0; i < strings().count; ++i) texts.push_back(make_string(i, specials));
  RegexScratch scratch;
  for (const auto& [name, golden] : goldens()["normalizers"].items()) {
    const Json step = {{"type", name}, {"strip_left", true}, {"strip_right", true}};
    const Normalizer normalizer = Normalizer::from_json({{"normalizer", step}});
    Hash hash;
    for (const std::string& text : texts) hash.add_text(normalizer.apply(text, &scratch));
    EXPECT_EQ(hash.hex(), golden.get<std::string>()) << name;
  }
}

// Python: bytes.decode("utf-8", errors="replace").
TEST(Utf8, BrokenSequencesAreReplacedAsInPython) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(replace_invalid_utf8("plain"), "plain");
  EXPECT_EQ(replace_invalid_utf8("\x80"), r);
  EXPECT_EQ(replace_invalid_utf8("a\xC3"), "a" + r);
  EXPECT_EQ(replace_invalid_utf8("\xC3(b"), r + "(b");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82z\xE2\x82\xAC"), r + "z\xE2\x82\xAC");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);                  // overlong
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\xAF"), r + r + r);          // overlong
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);          // a surrogate
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), r + r + r + r);  // above U+10FFFF
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98\xF0\x9F\x98\x80"), r + "\xF0\x9F\x98\x80");
  EXPECT_EQ(replace_invalid_utf8("\xFE\xFF"), r + r);
}

// A sequence of up to four bytes is well-formed exactly if it is what some scalar value encodes to.
TEST(Utf8, EveryCharacterAndNothingElseIsValid) {
  size_t valid = 0;
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    append_utf8(code, &text);
    ASSERT_TRUE(is_valid_utf8(text)) << static_cast<uint32_t>(code);
    size_t position = 0;
    ASSERT_EQ(next_character(text, &position), code);
    ASSERT_EQ(position, text.size());
    valid += text.size() == 3;
  }
  size_t three_byte_sequences = 0;
  std::string text(3, '\0');
  for (int lead = 0xC0; lead < 0x100; ++lead) {
    for (int second = 0; second < 0x100; ++second) {
      for (int third = 0; third < 0x100; ++third) {
        text = {static_cast<char>(lead), static_cast<char>(second), static_cast<char>(third)};
        three_byte_sequences += classify_utf8(text).status == Utf8Status::kComplete && classify_utf8(text).length == 3;
      }
    }
  }
  EXPECT_EQ(three_byte_sequences, valid);
}

// U+180E was a space in older Unicode, and PCRE2's own \s still has it.
TEST(Regex, SpaceIsTheReferences) {
  RegexScratch scratch;
  TextRange match{};
  for (const char* pattern : {"\\s", "[\\s]", "[^\\S]"}) {
    EXPECT_FALSE(Regex(pattern).find("\u180E", 0, &scratch, &match)) << pattern;
    EXPECT_TRUE(Regex(pattern).find("\u3000", 0, &scratch, &match)) << pattern;
  }
}

TEST(Regex, RefusesWhatItWouldReadDifferently) {
  for (const char* pattern : {"\\p{N}{1,3}+", "a{2}?",       "\\h",    "\\R",       "\\X",   "\\b",  "\\1",
                              "\\u00e9",      "[[:alpha:]]", "[a&&b]", "[a[^b]]",   "[]",    "[^]",  "(?m)a",
                              "a|(?i)b",      "(?<name>a)",  "(?#c)",  "(*ACCEPT)", "a{,3}", "a{x}", "\\p{Alphabetic}",
                              "\\pL",         "\\p{L",       "[\\W]",  "(",         "[a",    "\\",   "\\x{}",
                              "\\xE9"}) {
    EXPECT_THROW(Regex{pattern}, std::runtime_error) << pattern;
  }
}

TEST(Regex, KnowsWhatMayTakeMoreThanLinearTimeFromOneCharacter) {
  for (const char* pattern : {"a*a*b", "a+a+$", "\\s*\\s*\\s*x", "(?:a*)(?:a*)b", "[ab]*[bc]*(?:x|y)", "(?:a*b*)*c", "(a*a*)+", "a{0,9}a{1,}c",
                              "x(?=a*a*b)", "\\p{L}+.*?\\p{N}"}) {
    EXPECT_TRUE(Regex(pattern).backtracks()) << pattern;
  }
  // Of published tokenizers; and what gives nothing back.
  for (const char* pattern :
       {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        "(?i:'s|'t|'re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lm}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{M}]+(?i:'s|'t)?", "a++a++b", "(?>a*)(?>a*)b", "\\d{3}\\d{3}x"}) {
    EXPECT_FALSE(Regex(pattern).backtracks()) << pattern;
  }
}

TEST(Regex, NestedRepetitionsAreGivenUpInSeconds) {
  int given_up = 0;
  for (const char* pattern : {"a*a*[bc]", "\\s*\\s*\\s*[xy]", "x(?=a*a*a*[bc])", "(?:a*)(?:a*)[bc]"}) {
    RegexScratch scratch;
    TextRange match{};
    const std::string text = std::string("x") + std::string(3000, pattern[0] == '\\' ? ' ' : 'a');
    const std::clock_t begin = std::clock();
    try {
      EXPECT_FALSE(Regex(pattern).find(text, 1, &scratch, &match)) << pattern;
    } catch (const std::runtime_error&) {
      ++given_up;
    }
    EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 3.5) << pattern;
    EXPECT_TRUE(Regex("a*a*b").find("aaab", 0, &scratch, &match));
  }
  EXPECT_GT(given_up, 0);
}

TEST(Regex, EmptyMatchesEndAndAdvance) {
  const Regex regex("x*");
  RegexScratch scratch;
  std::vector<std::pair<size_t, size_t>> found;
  for_each_match(regex, "axx\u00e9", &scratch, [&](const TextRange& m) { found.emplace_back(m.begin, m.end); });
  const std::vector<std::pair<size_t, size_t>> expected = {{0, 0}, {1, 3}, {5, 5}};
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace headroom
