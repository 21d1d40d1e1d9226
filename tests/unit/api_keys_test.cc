#include "server/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/sha256.h"

namespace headroom {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// SHA-256 of "abc", FIPS 180-4.
const std::string kAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

std::string error_of(const std::string& text) {
  try {
    parse_api_keys(text, "keys");
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "";
}

TEST(ApiKeys, NamesDigestsAndLimits) {
  const ApiKeys keys = parse_api_keys("# who may\n\nalice " + kAbc + " weight=2 kv_percent_max=50 # the first\r\n" +
                                          "bob\t" + sha256_hex("old") + "\nbob " + sha256_hex("new") + "\n" +
                                          "carol " + sha256_hex("c") +
                                          " running_requests_max=3 queue_requests_max=4 queue_tokens_max=5 requests_per_minute=6 tokens_per_minute=7",
                                      "keys");
  ASSERT_EQ(keys.tenants.size(), 3u);
  EXPECT_EQ(keys.tenants[0].name, "alice");
  EXPECT_EQ(keys.tenants[0].limits.weight, 2);
  EXPECT_EQ(keys.tenants[0].limits.kv_percent_max, 50);
  EXPECT_EQ(keys.tenants[1].limits.weight, 1);
  EXPECT_EQ(keys.tenants[1].limits.kv_percent_max, 100);
  const TenantLimits& carol = keys.tenants[2].limits;
  EXPECT_EQ(carol.running_requests_max, 3);
  EXPECT_EQ(carol.queue_requests_max, 4);
  EXPECT_EQ(carol.queue_tokens_max, 5);
  EXPECT_EQ(carol.requests_per_minute, 6);
  EXPECT_EQ(carol.tokens_per_minute, 7);

  ASSERT_EQ(keys.keys.size(), 4u);
  EXPECT_EQ(find_api_key(keys.keys, "abc")->tenant, TenantId{0});
  EXPECT_EQ(find_api_key(keys.keys, "old")->tenant, TenantId{1});
  EXPECT_EQ(find_api_key(keys.keys, "new")->tenant, TenantId{1});
  for (const std::string& unknown : {std::string("ab"), std::string("abcd"), std::string(), kAbc}) {
    EXPECT_EQ(find_api_key(keys.keys, unknown), nullptr) << unknown;
  }
}

TEST(ApiKeys, AFaultIsNamedByItsLineAndNeverRepeated) {
  const std::string fine = "alice " + kAbc + "\n";
  for (const auto& [line, wanted] : std::vector<std::pair<std::string, std::string>>{
           {"sk-secret", "write NAME"},
           {"sk-secret sk-secret", "write NAME"},
           {"sk-secret " + kAbc.substr(1), "write NAME"},
           {"SECRET! " + sha256_hex("x"), "a name is"},
           {"bob " + kAbc, "the same key"},
           {"alice " + sha256_hex("x") + " weight=2", "further keys have none"},
           {"bob " + sha256_hex("x") + " wieght=2", "weight=NUMBER"},
           {"bob " + sha256_hex("x") + " weight", "weight=NUMBER"},
           {"bob " + sha256_hex("x") + " sk-secret", "requests_per_minute"},
           {"bob " + sha256_hex("x") + " weight=0", "weight must be a whole number from 1 to 1000"},
           {"bob " + sha256_hex("x") + " weight=2x", "weight must be"},
           {"bob " + sha256_hex("x") + " kv_percent_max=101", "from 1 to 100"},
           {"bob " + sha256_hex("x") + " weight=2 weight=2", "given twice"},
       }) {
    const std::string error = error_of(fine + "# a comment\n" + line + "\n");
    EXPECT_THAT(error, StartsWith("keys: line 3: ")) << line;
    EXPECT_THAT(error, HasSubstr(wanted)) << line;
    EXPECT_THAT(error, Not(HasSubstr("secret"))) << line;
    EXPECT_THAT(error, Not(HasSubstr("SECRET"))) << line;
  }
  EXPECT_THAT(error_of("# nobody\n"), HasSubstr("holds no key"));
  std::string many;
  for (size_t i = 0; i <= kTenantsMax; ++i) many += "t" + std::to_string(i) + " " + sha256_hex(std::to_string(i)) + "\n";
  EXPECT_THAT(error_of(many), StartsWith("keys: line 1001: there may be 1000 names"));
}

}  // namespace
}  // namespace headroom
