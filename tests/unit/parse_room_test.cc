// What parsed bodies may take in memory: the bound of one beside what the C library counts, and of all together.
#include "server/parse_room.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "server/json_reader.h"
#include "tests/unit/sanitizer_slowdown.h"

namespace headroom {
namespace {

using namespace std::chrono_literals;

std::string repeated(const std::string& part, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += (i == 0 ? "" : ",") + part;
  return all;
}

size_t bytes_in_use() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST(ParsedBytes, AreNoLessThanWhatAreTaken) {
  // mallinfo2() tells of the C library's heap, and a sanitizer puts its own in its place: nothing would be measured. Every other build runs this.
  if (!kMemoryIsCounted) GTEST_SKIP() << "SKIPPED: a sanitizer has a heap of its own";
  std::string members, nested;
  for (int i = 0; i < 4000; ++i) members += (i == 0 ? "" : ",") + ("\"k" + std::to_string(i) + "\":{\"a\":[]}");
  for (int i = 0; i < 40; ++i) nested = "[" + (nested.empty() ? repeated("0", 1000) : repeated(nested, 1)) + ",{}]";
  const std::vector<std::string> bodies = {
      "[" + repeated("\"\"", 100000) + "]",
      "[" + repeated("[]", 100000) + "]",
      "[" + repeated("{}", 100000) + "]",
      "[" + repeated("[0]", 100000) + "]",
      "[" + repeated("{\"a\":0}", 50000) + "]",
      "[" + repeated("{\"a\":{\"b\":\"\"}}", 50000) + "]",
      "[" + repeated("\"a string beyond the small ones\"", 50000) + "]",
      "[" + repeated("0", 131073) + "]",  // one beyond a power of two: the most room that is not used
      "{" + members + "}",
      nested,
      "\"" + std::string((4 << 20) + 1, 'x') + "\"",
  };
  for (const std::string& body : bodies) {
    const size_t before = bytes_in_use();
    auto parsed = read_json(body);
    ASSERT_TRUE(std::holds_alternative<Json>(parsed)) << body.substr(0, 30);
    const auto taken = static_cast<int64_t>(bytes_in_use() - before);
    EXPECT_LE(taken, parsed_bytes_max(body, JsonLimits{}.values_max)) << body.substr(0, 30);
    EXPECT_GE(taken, static_cast<int64_t>(body.size()) / 4) << "the measure itself does not work";
  }
  EXPECT_LE(parsed_bytes_max(std::string(4096, 'x'), 1 << 20), 16 << 10) << "an ordinary body does not wait";
}

TEST(ParseRoom, SharesNeverExceedItAndComeBack) {
  ParseRoom room(10 << 20);
  std::atomic<int64_t> used{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const int64_t bytes = int64_t{1 + (i * 7 + t) % 10} << 20;
        auto share = room.take(bytes, 60s);
        ASSERT_TRUE(share);
        const int64_t now = used += bytes;
        int64_t seen = most;
        while (now > seen && !most.compare_exchange_weak(seen, now)) {}
        std::this_thread::yield();
        used -= bytes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 10 << 20);
  EXPECT_GE(most, 10 << 20) << "the largest had it alone";
  EXPECT_TRUE(room.take(10 << 20, 0ms));
}

TEST(ParseRoom, OneThatIsFullSaysSoInTimeAndSmallOnesPass) {
  ParseRoom room(10 << 20);
  auto held = room.take(6 << 20, 0ms);
  ASSERT_TRUE(held);
  EXPECT_FALSE(room.take(5 << 20, 10ms));
  EXPECT_TRUE(room.take(4 << 20, 0ms));
  EXPECT_TRUE(room.take(1 << 10, 0ms));
  held->give_back();
  held->give_back();  // once is enough
  EXPECT_TRUE(room.take(10 << 20, 0ms));
}

}  // namespace
}  // namespace headroom
