// The tokenizer against what the reference library made of 20,000 strings in each style of tokenizer.json:
// tests/golden/make_tokenizer_goldens.py.
#include "tests/unit/tokenizer_golden.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace headroom {
namespace {

using Json = nlohmann::json;

std::vector<TokenId> random_ids(size_t index, size_t vocabulary, bool single_bytes) {
  constexpr TokenId kByteBegin = 3;
  constexpr TokenId kByteEnd = 259;
  const auto is_byte = [](TokenId id) { return id >= kByteBegin && id < kByteEnd; };
  SplitMix64 rng(index ^ 0x5EED);
  std::vector<TokenId> ids;
  for (size_t count = 1 + rng.below(12); count > 0; --count) {
    auto id = static_cast<TokenId>(rng.below(single_bytes ? vocabulary : vocabulary + 3));
    if (single_bytes && !ids.empty() && is_byte(ids.back()) && is_byte(id)) {
      id = static_cast<TokenId>(kByteEnd + rng.below(vocabulary - kByteEnd));
    }
    ids.push_back(id);
  }
  return ids;
}

// Each push must give whole characters, and what waits must be less than one.
std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special_tokens) {
  StreamDecoder decoder(tokenizer, skip_special_tokens);
  std::string text;
  for (const TokenId id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_TRUE(is_valid_utf8(part));
    text += part;
  }
  return text + decoder.finish();
}

class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  TokenizerGolden()
      : tokenizer_(Tokenizer::from_json(read_file(kGoldens / (GetParam() + ".json")))),
        golden_(Json::parse(read_file(kGoldens / (GetParam() + ".golden.json")))),
        specials_(golden_["specials"]),
        vocabulary_(golden_["vocabulary"]),
        byte_fallback_(golden_["byte_fallback"]) {}

  Tokenizer tokenizer_;
  Json golden_;
  std::vector<std::string> specials_;
  size_t vocabulary_;
  bool byte_fallback_;
};

TEST_P(TokenizerGolden, WholeCases) {
  ASSERT_GE(golden_["cases"].size(), 40u);
  size_t index = 0;
  for (const Json& golden : golden_["cases"]) {
    const std::string text = golden["text"];
    ASSERT_EQ(make_string(index, specials_), text) << "the generators differ at string " << index;
    const std::vector<TokenId> ids = tokenizer_.encode(text, true);
    EXPECT_EQ(ids, golden["encode"].get<std::vector<TokenId>>()) << testing::PrintToString(text);
    EXPECT_EQ(tokenizer_.encode(text, false, false), golden["encode_plain"].get<std::vector<TokenId>>())
        << testing::PrintToString(text);
    EXPECT_EQ(tokenizer_.decode(golden["encode"].get<std::vector<TokenId>>(), false), golden["decode"].get<std::string>());
    EXPECT_EQ(tokenizer_.decode(golden["encode"].get<std::vector<TokenId>>(), true), golden["decode_skip"].get<std::string>());
    const std::vector<TokenId> random = random_ids(index, vocabulary_, byte_fallback_);
    ASSERT_EQ(random, golden["random_ids"].get<std::vector<TokenId>>());
    EXPECT_EQ(tokenizer_.decode(random, false), golden["decode_random"].get<std::string>()) << testing::PrintToString(random);
    ++index;
  }
}

TEST_P(TokenizerGolden, AllStrings) {
  const Json& hashes = golden_["hashes"];
  ASSERT_EQ(hashes["encode"].size() * strings().block, strings().count);
  ASSERT_GE(strings().count, 20000u);
  for (size_t block = 0; block < hashes["encode"].size(); ++block) {
    Hash encode;
    Hash encode_plain;
    std::string joined;
    Hash decode;
    Hash decode_skip;
    Hash decode_random;
    for (size_t index = block * strings().block; index < (block + 1) * strings().block; ++index) {
      const std::string text = make_string(index, specials_);
      const std::vector<TokenId> ids = tokenizer_.encode(text, true);
      encode.add_ids(ids);
      joined += text;
      encode_plain.add_ids(tokenizer_.encode(text, false, false));
      const std::string decoded = tokenizer_.decode(ids, false);
      decode.add_text(decoded);
      EXPECT_EQ(stream(tokenizer_, ids, false), decoded);
      decode_skip.add_text(tokenizer_.decode(ids, true));
      const std::vector<TokenId> random = random_ids(index, vocabulary_, byte_fallback_);
      decode_random.add_text(tokenizer_.decode(random, false));
      EXPECT_EQ(stream(tokenizer_, random, true), tokenizer_.decode(random, true));
    }
    ASSERT_EQ(encode.hex(), hashes["encode"][block].get<std::string>()) << "block " << block;
    ASSERT_EQ(encode_plain.hex(), hashes["encode_plain"][block].get<std::string>()) << "block " << block;
    Hash encode_joined;
    encode_joined.add_ids(tokenizer_.encode(joined, true));
    ASSERT_EQ(encode_joined.hex(), hashes["encode_joined"][block].get<std::string>()) << "block " << block;
    ASSERT_EQ(decode.hex(), hashes["decode"][block].get<std::string>()) << "block " << block;
    ASSERT_EQ(decode_skip.hex(), hashes["decode_skip"][block].get<std::string>()) << "block " << block;
    ASSERT_EQ(decode_random.hex(), hashes["decode_random"][block].get<std::string>()) << "block " << block;
  }
}

TEST_P(TokenizerGolden, LongRuns) {
  ASSERT_EQ(golden_["hashes"]["runs"].size(), strings().run_units.size());
  for (size_t i = 0; i < strings().run_units.size(); ++i) {
    std::string text;
    for (size_t count = 0; count < strings().run_length; ++count) text += strings().run_units[i];
    Hash run;
    run.add_ids(tokenizer_.encode(text, false));
    EXPECT_EQ(run.hex(), golden_["hashes"]["runs"][i].get<std::string>()) << "of " << testing::PrintToString(strings().run_units[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGolden, testing::ValuesIn(strings().styles),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace headroom
