#include "engine/output_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "tests/unit/byte_tokenizer.h"

namespace headroom {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::from_json(byte_tokenizer_json());
  return instance;
}

std::shared_ptr<const StopStrings> stops(std::vector<std::string> strings) {
  return std::make_shared<const StopStrings>(std::move(strings));
}

// What each token of a text lets out, then what the end lets out.
std::vector<std::string> pieces(OutputText text, std::string_view bytes) {
  std::vector<std::string> out;
  for (const char byte : bytes) out.push_back(text.push(static_cast<unsigned char>(byte)));
  out.push_back(text.finish());
  return out;
}

std::string joined(const std::vector<std::string>& pieces) {
  std::string all;
  for (const std::string& piece : pieces) all += piece;
  return all;
}

using ::testing::ElementsAre;

TEST(OutputText, HoldsBytesUntilTheirCharacterIsWhole) {
  EXPECT_THAT(pieces(OutputText(tokenizer(), {}), "a\xE2\x82\xAC."), ElementsAre("a", "", "", "€", ".", ""));
}

TEST(OutputText, ReplacesACharacterThatNeverEnds) {
  EXPECT_THAT(pieces(OutputText(tokenizer(), {}), "a\xE2\x82"), ElementsAre("a", "", "", "\xEF\xBF\xBD"));
}

TEST(OutputText, HoldsTheBeginningOfAStopString) {
  // "aab" could begin at the first a until the third character shows that it does not.
  EXPECT_THAT(pieces(OutputText(tokenizer(), {.stop = stops({"aab"})}), "aaac"), ElementsAre("", "", "a", "aac", ""));
  EXPECT_THAT(pieces(OutputText(tokenizer(), {.stop = stops({"aab"})}), "xaa"), ElementsAre("x", "", "", "aa"));
}

TEST(OutputText, EndsBeforeOrBehindTheStopString) {
  OutputText without(tokenizer(), {.stop = stops({"END"})});
  EXPECT_EQ(joined(pieces(without, "one ENDtwo")), "one ");
  OutputText with(tokenizer(), {.stop = stops({"END"}), .include_stop_in_output = true});
  EXPECT_EQ(joined(pieces(with, "one ENDtwo")), "one END");
}

TEST(OutputText, SaysWhichStopStringWasMet) {
  OutputText text(tokenizer(), {.stop = stops({"zz", "bc", "abc"})});
  std::string shown;
  for (const char byte : std::string("xabcy")) shown += text.push(byte);
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.stop_string(), "abc");  // ends together with "bc", and is longer
  EXPECT_EQ(shown, "x");
}

TEST(OutputText, MeetsNoStopStringInTheFirstTokens) {
  const auto shown = [](const char* stop, int32_t unstopped) {
    return joined(pieces(OutputText(tokenizer(), {.stop = stops({stop}), .unstopped_tokens = unstopped}), "ababc"));
  };
  EXPECT_EQ(shown("b", 2), "aba");
  EXPECT_EQ(shown("ba", 2), "a");  // it ends behind them
  EXPECT_EQ(shown("ab", 2), "ab");
  EXPECT_EQ(shown("ab", 3), "ab");
  EXPECT_EQ(shown("ab", 4), "ababc");
}

TEST(OutputText, SpecialTokensAreHiddenUnlessAskedFor) {
  OutputText hidden(tokenizer(), {});
  EXPECT_EQ(hidden.push(kEos), "");
  EXPECT_EQ(hidden.push('a'), "a");
  EXPECT_EQ(hidden.characters(), 1);
  OutputText shown(tokenizer(), {.skip_special_tokens = false});
  EXPECT_EQ(shown.push(kEos), "<|eos|>");
  EXPECT_EQ(shown.push('a'), "a");
  EXPECT_EQ(shown.characters(), 8);
}

TEST(OutputText, ContinuesACharacterOfThePrompt) {
  OutputText text(tokenizer(), {});
  text.continue_from(std::vector<TokenId>{'a', 0xE2, 0x82});
  EXPECT_EQ(text.push(0xAC), "€");
}

// SentencePiece-style files write the space in front of a word, and take it off the start of a whole text: a text that
// follows a prompt keeps it.
TEST(OutputText, KeepsTheSpaceBetweenPromptAndText) {
  const Tokenizer words = Tokenizer::from_json(R"({"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[{"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
      {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
    "pre_tokenizer":null,"post_processor":null,
    "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
      {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,
      "fuse_unk":true,"byte_fallback":true,"ignore_merges":false,
      "vocab":{"<unk>":0,"<s>":1,"▁":2,"a":3,"▁a":4},"merges":["▁ a"]}})");
  const auto shown = [&](std::vector<TokenId> prompt) {
    OutputText text(words, {});
    text.continue_from(prompt);
    std::string all;
    for (const TokenId token : {4, 3, 4}) all += text.push(token);
    return all + text.finish();
  };
  EXPECT_EQ(shown({}), "aa a");
  EXPECT_EQ(shown({1}), "aa a");  // <s> is no text
  EXPECT_EQ(shown({1, 4}), " aa a");
  EXPECT_EQ(shown({1, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3}), " aa a");
}

// The definition: the text ends at the first place where a stop string ends; of several, the longest counts.
struct NaiveEnd {
  std::string shown;
  std::string stop;
};
NaiveEnd naive(const std::string& text, const std::vector<std::string>& stop_strings, bool include, size_t unstopped) {
  for (size_t end = unstopped + 1; end <= text.size(); ++end) {
    std::string met;
    for (const std::string& stop : stop_strings) {
      const bool ends_here = stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0;
      if (ends_here && stop.size() > met.size()) met = stop;
    }
    if (!met.empty()) return {text.substr(0, include ? end : end - met.size()), met};
  }
  return {text, ""};
}

// The longest suffix of a text that begins a stop string: what may not be shown yet.
size_t naive_held(const std::string& text, const std::vector<std::string>& stop_strings) {
  for (size_t length = text.size(); length > 0; --length) {
    for (const std::string& stop : stop_strings) {
      if (stop.size() > length && stop.compare(0, length, text, text.size() - length, length) == 0) return length;
    }
  }
  return 0;
}

TEST(OutputText, AgreesWithTheNaiveModelOnRandomTexts) {
  const std::vector<std::string> alphabet = {"a", "b", "é", "€", "😀"};
  for (uint32_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto draw = [&](size_t characters) {
      std::string text;
      for (size_t i = 0; i < characters; ++i) text += alphabet[random() % (seed % 2 == 0 ? 2 : alphabet.size())];
      return text;
    };
    std::vector<std::string> stop_strings;
    for (uint32_t i = random() % 4; i > 0; --i) stop_strings.push_back(draw(1 + random() % 6));
    const std::string whole = draw(random() % 30);
    const bool include = random() % 2 == 0;
    const uint32_t unstopped = random() % 3 == 0 ? random() % 8 : 0;  // a token is a byte here
    const NaiveEnd expected = naive(whole, stop_strings, include, unstopped);

    OutputText text(tokenizer(), {.stop = stops(stop_strings),
                                  .include_stop_in_output = include,
                                  .unstopped_tokens = static_cast<int32_t>(unstopped)});
    std::string shown;
    for (size_t i = 0; i < whole.size() && !text.stopped(); ++i) {
      shown += text.push(static_cast<unsigned char>(whole[i]));
      // Between characters, all is shown that cannot be part of a stop string.
      const bool at_boundary = i + 1 == whole.size() || (whole[i + 1] & 0xC0) != 0x80;
      const std::string so_far = whole.substr(0, i + 1);
      if (at_boundary && !text.stopped()) {
        ASSERT_EQ(shown.size(), so_far.size() - naive_held(so_far, stop_strings));
      }
    }
    shown += text.finish();
    ASSERT_EQ(shown, expected.shown);
    ASSERT_EQ(text.stop_string(), expected.stop);
    ASSERT_EQ(text.stopped(), !expected.stop.empty());
  }
}

// 64 stop strings of 1 KiB that almost match everywhere: a search from each position would take 64 · 1024 steps a byte.
TEST(OutputText, IsLinearInTheTextForHostileStopStrings) {
  std::vector<std::string> hostile;
  for (int i = 0; i < 64; ++i) hostile.push_back(std::string(1023 - i, 'a') + "b");
  OutputText text(tokenizer(), {.stop = stops(hostile)});
  const std::clock_t begin = std::clock();
  constexpr int kTokens = 20000;
  size_t shown = 0;
  for (int i = 0; i < kTokens; ++i) shown += text.push('a').size();
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  EXPECT_EQ(shown, kTokens - 1023u);
  EXPECT_LT(seconds / kTokens, 20e-6);
}

}  // namespace
}  // namespace headroom
