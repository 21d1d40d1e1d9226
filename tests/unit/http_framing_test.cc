#include "server/http_framing.h"

#include <gtest/gtest.h>

#include <string>

namespace headroom {
namespace {

using State = RequestFrame::State;

RequestFrame frame_of(std::string_view bytes, FramingLimits limits = {}) {
  RequestFrame frame(limits);
  frame.consume(bytes);
  return frame;
}

int status_of(std::string_view bytes, FramingLimits limits = {}) {
  const RequestFrame frame = frame_of(bytes, limits);
  return frame.state() == State::failed ? frame.status() : 0;
}

TEST(RequestFrame, FindsTheEndOfARequestAndLeavesTheNextOne) {
  const std::string two = "POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: h\r\n\r\n";
  RequestFrame frame{FramingLimits{}};
  const size_t first = frame.consume(two);
  EXPECT_EQ(first, two.find("GET"));
  ASSERT_EQ(frame.state(), State::complete);
  EXPECT_EQ(frame.head(), "POST /a?b=c HTTP/1.1\r\nhost: h\r\n\r\n");
  EXPECT_EQ(frame.body(), "hello");
  EXPECT_TRUE(frame.keep_alive());
  frame.reset();
  EXPECT_FALSE(frame.begun());
  EXPECT_EQ(frame.consume(std::string_view(two).substr(first)), two.size() - first);
  ASSERT_EQ(frame.state(), State::complete);
  EXPECT_EQ(frame.body(), "");
}

TEST(RequestFrame, IsTheSameHoweverTheBytesArrive) {
  const std::string sized = "POST /a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\nContent-Length: 5\r\n\r\nhello";
  const std::string chunked =
      "\r\nPOST /a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nhel\r\n02;name=\"value\"\r\nlo\r\n0\r\nTrailer: x\r\n\r\n";
  for (const std::string& bytes : {sized, chunked}) {
    for (size_t step = 1; step <= bytes.size(); ++step) {
      RequestFrame frame{FramingLimits{}};
      for (size_t at = 0; at < bytes.size(); at += step) {
        const std::string_view part = std::string_view(bytes).substr(at, step);
        ASSERT_NE(frame.state(), State::complete);
        ASSERT_EQ(frame.consume(part), part.size()) << step;
      }
      ASSERT_EQ(frame.state(), State::complete) << step << frame.message();
      EXPECT_EQ(frame.body(), "hello");
      EXPECT_EQ(frame.head(), "POST /a HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\n\r\n");
    }
  }
}

// The first byte tells: a client that speaks TLS, or waits for an answer in some other protocol, need not wait for its time to be over.
TEST(RequestFrame, RefusesAtOnceWhatIsNoHttp) {
  EXPECT_EQ(status_of("\x16\x03\x01"), 400);
  EXPECT_EQ(status_of(std::string(1, '\0')), 400);
  EXPECT_EQ(status_of(" GET"), 400);
  EXPECT_EQ(status_of("\r\n\r\n\x16"), 400);
  EXPECT_EQ(status_of("G"), 0);
}

TEST(RequestFrame, RefusesWhatTwoReadersCouldReadInTwoWays) {
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  for (const char* rest : {
           "Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
           "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
           "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
           "Content-Length: +1\r\n\r\n",
           "Content-Length: 1, 1\r\n\r\n",
           "Content-Length: 0x1\r\n\r\n",
           "Content-Length: \r\n\r\n",
           "Content-Length: 9999999999999999999999\r\n\r\n",
           "Content-Length : 1\r\n\r\n",
           "Transfer-Encoding: gzip, chunked\r\n\r\n",
           "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
           "Transfer-Encoding: identity\r\n\r\n",
           "Host: other\r\n\r\n",
           "X: a\r\n folded\r\n\r\n",
           "X: a\nY: b\r\n\r\n",
           "X: a\rY: b\r\n\r\n",
           ": nameless\r\n\r\n",
           "no colon\r\n\r\n",
           "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
           "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
           "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n",
           "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n",
           "Transfer-Encoding: chunked\r\n\r\n\r\n",
       }) {
    EXPECT_EQ(status_of(post + rest), 400) << rest;
  }
  EXPECT_EQ(status_of(post + "X: a" + std::string(1, '\0') + "b\r\n\r\n"), 400);
}

TEST(RequestFrame, RefusesABadRequestLine) {
  for (const char* line : {"GET /", "GET  / HTTP/1.1", "GET / HTTP/2.0", "GET / HTTP/1.1 ", "GET http://h/ HTTP/1.1",
                           "GET / x HTTP/1.1", "G(T / HTTP/1.1", "/ HTTP/1.1", "\x16\x03\x01"}) {
    EXPECT_EQ(status_of(std::string(line) + "\r\nHost: h\r\n\r\n"), 400) << line;
  }
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400) << "no Host";
  EXPECT_EQ(status_of("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n"), 400) << "empty lines without end";
  EXPECT_EQ(frame_of("GET / HTTP/1.0\r\n\r\n").state(), State::complete);
  EXPECT_FALSE(frame_of("GET / HTTP/1.0\r\n\r\n").keep_alive());
  EXPECT_FALSE(frame_of("GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n").keep_alive());
}

TEST(RequestFrame, HoldsItsLimits) {
  const FramingLimits limits{.request_line_bytes_max = 100, .head_bytes_max = 400, .headers_max = 5, .body_bytes_max = 10};
  EXPECT_EQ(status_of("GET /" + std::string(200, 'a'), limits), 414) << "before its end has come";
  EXPECT_EQ(status_of("GET /" + std::string(200, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n", limits), 414);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(1000, 'a'), limits), 431);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: h\r\nA:1\r\nB:2\r\nC:3\r\nD:4\r\nE:5\r\n\r\n", limits), 431);
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  EXPECT_EQ(status_of(post + "Content-Length: 11\r\n\r\n", limits), 413);
  EXPECT_EQ(status_of(post + "Content-Length: 10\r\n\r\n", limits), 0);
  EXPECT_EQ(status_of(post + "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n4\r\n7890\r\n0\r\n\r\n", limits), 0);
  EXPECT_EQ(status_of(post + "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n5\r\n", limits), 413);
  EXPECT_EQ(status_of(post + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\n", limits), 413);
  EXPECT_EQ(status_of(post + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(300, 'x')), 400);
  EXPECT_EQ(status_of(post + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"), 415);
  EXPECT_EQ(status_of(post + "Expect: a-miracle\r\n\r\n"), 417);
  std::string trailers = post + "Transfer-Encoding: chunked\r\n\r\n0\r\n";
  for (int i = 0; i < 1000; ++i) trailers += "Name: value\r\n";
  EXPECT_EQ(status_of(trailers), 431);
}

TEST(RequestFrame, TellsOnceThatTheClientWaitsForContinue) {
  RequestFrame frame = frame_of("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_TRUE(frame.take_expect_continue());
  EXPECT_FALSE(frame.take_expect_continue());
  EXPECT_EQ(frame.consume("ab"), 2u);
  EXPECT_EQ(frame.state(), State::complete);
}

}  // namespace
}  // namespace headroom
