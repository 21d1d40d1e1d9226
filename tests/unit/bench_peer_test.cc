#include "server/bench_peer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "server/bench_model.h"

namespace headroom {
namespace {

using ::testing::HasSubstr;

const PeerTest kPrefill{.prompt_tokens = 512, .threads = 2};
const PeerTest kDecode{.batch = 1, .depth = 8192, .steps = 24, .threads = 2};

std::string error_of(const std::string& output, const PeerTest& test) {
  try {
    peer_tokens_per_second(output, test);
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(BenchPeerTest, CommandIsFilledIn) {
  const std::string command = "bench -t {threads} -p {prompt} -n {steps} -d {depth} -x {batch},{batch} '{other}'";
  EXPECT_EQ(peer_command(command, kPrefill), "bench -t 2 -p 512 -n 0 -d 0 -x 1,1 '{other}'");
  EXPECT_EQ(peer_command(command, kDecode), "bench -t 2 -p 0 -n 24 -d 8192 -x 1,1 '{other}'");
}

// As the programs print it, shortened to the fields that count.
TEST(BenchPeerTest, LlamaBench) {
  const std::string prefill = R"({"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 400.5, "samples_ts": [ 300, 410.5, 420 ]})";
  const std::string decode = R"({"n_prompt": 0, "n_gen": 24, "n_depth": 8192, "avg_ts": 21.5, "samples_ts": [ 21, 22 ]})";
  for (const std::string& output : {"[\n" + prefill + ",\n" + decode + "\n]\n", prefill + "\n" + decode + "\n", "loading\n" + decode + "\n" + prefill}) {
    EXPECT_DOUBLE_EQ(peer_tokens_per_second(output, kPrefill), 410.5) << output;  // the median of its samples
    EXPECT_DOUBLE_EQ(peer_tokens_per_second(output, kDecode), 21.5) << output;
  }
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(R"({"n_prompt": 512, "n_gen": 0, "avg_ts": 400.5})", kPrefill), 400.5);
  const std::string faster = R"({"n_prompt": 0, "n_gen": 24, "n_depth": 8192, "avg_ts": 30})";
  EXPECT_DOUBLE_EQ(peer_tokens_per_second("[" + decode + "," + faster + "," + decode + "]", kDecode), 30);
}

TEST(BenchPeerTest, TheForkDrawsAfterAPrompt) {
  const std::string at_depth = R"({"n_prompt": 8192, "n_gen": 24, "avg_ts": 21.6, "test": "tg24@pp8192"})";
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(at_depth, kDecode), 21.6);
  const std::string mixed = R"({"n_prompt": 8192, "n_gen": 24, "avg_ts": 300, "test": "pp8192+tg24"})";
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(mixed + "\n" + at_depth, kDecode), 21.6);
  EXPECT_THAT(error_of(mixed, kDecode), HasSubstr("neither a number nor"));
}

TEST(BenchPeerTest, LlamaBatchedBench) {
  const PeerTest eight{.batch = 8, .depth = 128, .steps = 24, .threads = 2};
  const std::string table =
      "main: n_kv_max = 4096\n\n"
      "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
      "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n"
      "|   128 |     24 |    1 |    152 |    0.320 |   400.00 |    0.240 |   100.00 |    0.560 |   271.43 |\n"
      "|   128 |     24 |    8 |   1216 |    2.500 |   409.60 |    1.000 |   192.00 |    3.500 |   347.43 |\n";
  const std::string jsonl = "\n{\"pp\": 128, \"tg\": 24, \"pl\": 8, \"n_kv\": 1216, \"speed_pp\": 409.6, \"speed_tg\": 192.0, \"speed\": 347.43}\n\n";
  for (const std::string& output : {table, jsonl}) {
    EXPECT_DOUBLE_EQ(peer_tokens_per_second(output, eight), 192) << output;
    EXPECT_DOUBLE_EQ(peer_tokens_per_second(output, {.prompt_tokens = 128, .batch = 8}), 409.6) << output;
  }
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(table, {.depth = 128, .steps = 24}), 100);
}

TEST(BenchPeerTest, LlamaSweepBench) {
  const std::string table =
      "|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |\n"
      "|-------|--------|--------|----------|----------|----------|----------|\n"
      "|   512 |     24 |      0 |    1.000 |   512.00 |    0.240 |   100.00 |\n"
      "|   512 |     24 |   8192 |    4.000 |   128.00 |    1.000 |    24.00 |\n";
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(table, kPrefill), 512);
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(table, kDecode), 24);
}

TEST(BenchPeerTest, ANumber) {
  EXPECT_DOUBLE_EQ(peer_tokens_per_second(" 123.5\n", kDecode), 123.5);
  EXPECT_DOUBLE_EQ(peer_tokens_per_second("1e3", kPrefill), 1000);
  for (const char* bad : {"0", "-5", "nan", "inf", "1e999"}) EXPECT_NE(error_of(bad, kDecode), "no error") << bad;
}

TEST(BenchPeerTest, AnotherTestDoesNotCount) {
  EXPECT_THAT(error_of(R"({"n_prompt": 0, "n_gen": 24, "n_depth": 4096, "avg_ts": 21.5})", kDecode),
              HasSubstr("no speed above 0 for \"24 decode steps, depth 8192\"; it has: 24 decode steps, depth 4096"));
  EXPECT_THAT(error_of(R"({"n_prompt": 0, "n_gen": 128, "n_depth": 8192, "avg_ts": 21.5})", kDecode), HasSubstr("it has: 128 decode steps"));
  EXPECT_THAT(error_of(R"({"n_prompt": 0, "n_gen": 24, "n_depth": 8192, "avg_ts": 21.5})", kPrefill), HasSubstr("\"prefill of 512\""));
  EXPECT_THAT(error_of(R"({"pp": 8192, "tg": 24, "pl": 2, "speed_pp": 9, "speed_tg": 192.0})", kDecode), HasSubstr("2 sequences, depth 8192"));
}

TEST(BenchPeerTest, BadOutputSaysWhatIsWrong) {
  EXPECT_EQ(error_of(" \n", kDecode), "it printed nothing");
  EXPECT_THAT(error_of("error: no such model", kDecode), HasSubstr("neither a number nor a table or JSON"));
  EXPECT_THAT(error_of("12 tokens/s", kDecode), HasSubstr("neither a number nor"));
  EXPECT_THAT(error_of("{\"n_gen\": 24, \"avg_ts\": ", kDecode), HasSubstr("begins like JSON and is not"));
  EXPECT_THAT(error_of("[1, 2]", kDecode), HasSubstr("neither avg_ts nor speed_tg"));
  EXPECT_THAT(error_of(std::string(200000, '['), kDecode), HasSubstr("neither a number nor"));
  EXPECT_THAT(error_of(std::string(200000, '[') + std::string(200000, ']'), kDecode), HasSubstr("neither avg_ts nor speed_tg"));
  EXPECT_THAT(error_of(R"({"n_gen": 24, "avg_ts": "fast"})", kDecode), HasSubstr("without the number avg_ts"));
  EXPECT_THAT(error_of(R"({"n_gen": 24, "avg_ts": 3, "samples_ts": [1, null]})", kDecode), HasSubstr("no number"));
  EXPECT_THAT(error_of(R"({"tg": 24, "pp": 1, "pl": 1, "speed_tg": 3})", kDecode), HasSubstr("without the number speed_pp"));
  EXPECT_THAT(error_of(R"({"n_prompt": 0, "n_gen": 24, "n_depth": 8192, "avg_ts": 0})", kDecode), HasSubstr("no speed above 0"));
  EXPECT_THAT(error_of("| PP | TG | B |\n| 99999999999999999999 | 1 | 1 |\n", kDecode), HasSubstr("without the number"));
}

TEST(BenchPeerTest, Runs) {
  EXPECT_DOUBLE_EQ(run_peer("echo 5; :", kDecode), 5);
  const auto failure = [](const std::string& command) -> std::string {
    try {
      run_peer(command, kDecode);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(failure("echo 5; exit 3"), "--compare: ended with status 3: echo 5; exit 3");
  EXPECT_EQ(failure("kill -9 $$"), "--compare: ended with signal 9: kill -9 $$");
  EXPECT_EQ(failure("echo nothing of use"), "--compare: neither a number nor a table or JSON of llama-bench, llama-batched-bench or llama-sweep-bench, "
                                            "printed by: echo nothing of use");
  EXPECT_EQ(failure("head -c 2000000 /dev/zero"), "--compare: printed more than 1 MiB: head -c 2000000 /dev/zero");
}

TEST(BenchPeerTest, Spread) {
  const auto [median, low, high] = spread_of({3, 1, 2});
  EXPECT_EQ(median, 2);
  EXPECT_EQ(low, 1);
  EXPECT_EQ(high, 3);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
}

// A machine that gives half in the second of three repetitions: what was done then is held against that.
TEST(BenchRowTest, SharesAreOfWhatTheMachineGaveMeanwhile) {
  const MachineLimits all{.bytes_per_second = 100, .flops_per_second = 1000}, half{.bytes_per_second = 50, .flops_per_second = 1000};
  const BenchRow row{.test = kDecode, .weight_bytes = 60, .kv_bytes = 20, .flops = 100, .step_seconds = {1, 2, 2}, .limits = {all, all, half, half, half, all}};
  EXPECT_DOUBLE_EQ(row.bandwidth_share(), 0.8);  // of 0.8, 0.8 and 0.53
  EXPECT_DOUBLE_EQ(row.peak_share(), 0.05);
  const BenchRow unknown{.step_seconds = {1}, .limits = {{}, {}}};
  EXPECT_EQ(unknown.peak_share(), 0);
}

}  // namespace
}  // namespace headroom
