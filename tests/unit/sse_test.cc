#include "server/sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace headroom {
namespace {

using namespace std::chrono_literals;

class Recorder : public HttpStream {
 public:
  bool write(std::string_view bytes) override {
    if (is_gone) return false;
    written.emplace_back(bytes);
    return true;
  }
  std::vector<std::string> written;
  bool is_gone = false;
};

TEST(Sse, FramesAnEvent) {
  std::string out;
  append_sse_event(R"({"a":1})", &out);
  append_sse_done(&out);
  EXPECT_EQ(out, "data: {\"a\":1}\n\ndata: [DONE]\n\n");
}

TEST(SseDeathTest, ALineBreakWouldEndTheEvent) {
  std::string out;
  EXPECT_DEATH(append_sse_event("{\n}", &out), "line break");
}

TEST(Sse, PingsAfterSilenceAlone) {
  Recorder recorder;
  const SseStream::Clock::time_point start{};
  SseStream sse(&recorder, 10s, start);
  EXPECT_TRUE(sse.ping_if_silent(start + 9999ms));
  EXPECT_TRUE(recorder.written.empty());
  EXPECT_TRUE(sse.ping_if_silent(start + 10s));
  EXPECT_TRUE(sse.send("data: 1\n\n", start + 15s));
  EXPECT_TRUE(sse.ping_if_silent(start + 24s));
  EXPECT_TRUE(sse.ping_if_silent(start + 25s));
  EXPECT_THAT(recorder.written, ::testing::ElementsAre(": ping\n\n", "data: 1\n\n", ": ping\n\n"));
}

TEST(Sse, NothingIsWrittenOnceTheClientIsGone) {
  Recorder recorder;
  const SseStream::Clock::time_point start{};
  SseStream sse(&recorder, 10s, start);
  recorder.is_gone = true;
  EXPECT_FALSE(sse.send("data: 1\n\n", start));
  recorder.is_gone = false;
  EXPECT_FALSE(sse.send("data: 2\n\n", start));
  EXPECT_FALSE(sse.ping_if_silent(start + 1s));
  EXPECT_FALSE(sse.ping_if_silent(start + 60s));
  EXPECT_TRUE(recorder.written.empty());
}

}  // namespace
}  // namespace headroom
