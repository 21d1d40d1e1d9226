// More requests than the server can answer, at a steady rate whatever it answers: it does as much work as at its best, and refuses the rest
// at once. The model is a fake one with a fixed step time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

#include "tests/unit/api_fixture.h"
#include "tests/unit/http_client.h"
#include "tests/unit/machine_delay.h"
#include "tests/unit/sanitizer_slowdown.h"

namespace headroom {
namespace {

using namespace std::chrono_literals;

constexpr double kLoadSeconds = 3 * kSanitizerSlowdown;
constexpr double kUsefulSecondsMax = 1 * kSanitizerSlowdown;  // later answers are of no use
constexpr int kTokens = 10;
constexpr int kRunning = 8;
constexpr double kStepSeconds = 0.01 * kSanitizerSlowdown;
constexpr std::chrono::milliseconds kStep(static_cast<int>(kStepSeconds * 1000));
constexpr double kCapacity = kRunning / (kTokens * kStepSeconds);  // requests a second, at most
constexpr double kAnswerSecondsMax = 0.05 * kSanitizerSlowdown;    // of a refusal, and of /livez

struct Outcome {
  std::string answer;
  double seconds;
};
struct Load {
  std::vector<Outcome> outcomes;
  double seconds;  // until the last answer
};

// Sends `rate` requests a second, each on a connection of its own, and waits for all answers.
Load open_loop(int port, double rate, const std::string& request) {
  struct Pending {
    Client client;
    Clock::time_point begin;
    std::string answer;
  };
  std::vector<std::unique_ptr<Pending>> pending;
  Load load;
  const auto begin = Clock::now();
  int64_t sent = 0;
  while (seconds_since(begin) < kLoadSeconds || !pending.empty()) {
    for (; seconds_since(begin) < kLoadSeconds && static_cast<double>(sent) < rate * seconds_since(begin); ++sent) {
      pending.push_back(std::make_unique<Pending>(Pending{Client(port), Clock::now(), ""}));
      pending.back()->client.send_text(request);
    }
    std::vector<pollfd> fds;
    for (const auto& one : pending) fds.push_back({one->client.fd(), POLLIN, 0});
    poll(fds.data(), fds.size(), 1);
    for (size_t i = fds.size(); i-- > 0;) {
      if (fds[i].revents == 0) continue;
      const std::string part = pending[i]->client.read_some(0ms).value_or("");
      pending[i]->answer += part;
      if (!part.empty()) continue;
      load.outcomes.push_back({std::move(pending[i]->answer), seconds_since(pending[i]->begin)});
      pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  load.seconds = seconds_since(begin);
  return load;
}

TEST(Overload, TenTimesTheCapacityCostsNoGoodputAndRefusalsAreQuick) {
  ApiSetup setup;
  setup.runner.step_time = kStep;
  setup.scheduler.running_sequences_max = kRunning;
  setup.scheduler.queue_requests_max = 8;
  ApiUnderTest api(setup);
  HttpServer server({.port = 0}, api.routes(), nullptr);
  server.bind();
  std::thread thread([&] { server.serve(); });
  const std::string request = post("/v1/completions", "{\"prompt\":\"a\",\"ignore_eos\":true,\"max_tokens\":" + std::to_string(kTokens) + "}");
  std::map<double, double> goodput;
  for (const double times : {1.0, 2.0, 10.0}) {
    SCOPED_TRACE(std::to_string(times) + " times the capacity");
    MachineDelay delay;
    std::atomic<bool> ended{false};
    std::vector<double> livez;
    std::thread probe([&] {
      while (!ended) {
        Client client(server.port());
        const auto begin = Clock::now();
        client.send_text(get("/livez"));
        EXPECT_THAT(client.read_all(), testing::StartsWith("HTTP/1.1 200"));
        livez.push_back(seconds_since(begin));
        std::this_thread::sleep_for(kStep);
      }
    });
    const Load load = open_loop(server.port(), times * kCapacity, request);
    ended = true;
    probe.join();
    const double machine_seconds = delay.answer_seconds();
    std::vector<double> refusals;
    int useful = 0;
    for (const Outcome& outcome : load.outcomes) {
      if (outcome.answer.starts_with("HTTP/1.1 200")) {
        useful += outcome.seconds <= kUsefulSecondsMax;
      } else {
        ASSERT_THAT(outcome.answer, testing::StartsWith("HTTP/1.1 429 "));
        ASSERT_THAT(outcome.answer, testing::ContainsRegex("Retry-After: [1-9][0-9]*\r"));
        refusals.push_back(outcome.seconds);
      }
    }
    goodput[times] = useful / load.seconds;
    if (times > 1) {
      ASSERT_GT(refusals.size(), 10u);
      EXPECT_LE(p99(refusals), kAnswerSecondsMax + machine_seconds);
    }
    EXPECT_LE(p99(livez), kAnswerSecondsMax + machine_seconds);
    std::printf("%g x: %.1f useful answers a second, %zu refused within %.1f ms (p99), /livez %.1f ms (p99), the machine %.1f ms\n", times,
                goodput[times], refusals.size(), refusals.empty() ? 0 : p99(refusals) * 1e3, p99(livez) * 1e3, machine_seconds * 1e3);
  }
  EXPECT_GE(goodput[10], 0.9 * std::max({goodput[1], goodput[2], goodput[10]}));
  EXPECT_GE(goodput[10], 0.5 * kCapacity) << "the measure itself does not work";
  EXPECT_TRUE(api.becomes_idle());
  server.stop();
  thread.join();
}

}  // namespace
}  // namespace headroom
