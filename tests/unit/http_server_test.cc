// The HTTP front over real sockets, with handlers of known behaviour in the place of the model.
#include "server/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "server/logging.h"
#include "server/sha256.h"
#include "tests/unit/http_client.h"

namespace headroom {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class HttpServerTest : public testing::Test {
 protected:
  // What the handlers of the test routes report.
  std::atomic<bool> release_streams_{false};
  std::atomic<int> streams_open_{0};
  std::atomic<bool> saw_client_gone_{false};
  std::atomic<bool> write_failed_{false};
  std::mutex observed_mutex_;
  std::vector<std::string> observed_;

  HttpServerOptions options_ = [] {
    HttpServerOptions options;
    options.port = 0;
    return options;
  }();
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;

  void TearDown() override {
    release_streams_ = true;
    if (server_) stop();
  }

  void stop() {
    server_->stop();
    if (thread_.joinable()) thread_.join();
  }

  int start() {
    server_ = std::make_unique<HttpServer>(options_, routes(), [this](auto path, auto method, int status, double) {
      const std::lock_guard lock(observed_mutex_);
      observed_.push_back(std::string(method) + " " + std::string(path) + " " + std::to_string(status));
    });
    server_->bind();
    thread_ = std::thread([this] { server_->serve(); });
    return server_->port();
  }

  std::vector<Route> routes() {
    const auto text = [](const HttpRequest&, HttpResponse& response) { response.body = "{\"ok\":true}"; };
    const auto echo = [](const HttpRequest& request, HttpResponse& response) {
      response.body = "echo " + request.query + " " + std::to_string(index_of(request.tenant)) + " " + request.body;
    };
    const auto fail = [](const HttpRequest&, HttpResponse&) { throw std::runtime_error("secret text"); };
    const auto stream = [this](const HttpRequest&, HttpResponse& response) {
      response.content_type = "text/event-stream";
      response.stream = [this](HttpStream& out) {
        ++streams_open_;
        out.write("data: first\n\n");
        while (!release_streams_) std::this_thread::sleep_for(1ms);
        out.write("data: last\n\n");
        --streams_open_;
      };
    };
    const auto stream_fail = [](const HttpRequest&, HttpResponse& response) {
      response.stream = [](HttpStream& out) {
        out.write("begun");
        throw std::runtime_error("secret text");
      };
    };
    const auto stream_endless = [this](const HttpRequest&, HttpResponse& response) {
      response.stream = [this](HttpStream& out) {
        const std::string line(1000, 'x');
        while (out.write(line)) {
        }
        write_failed_ = true;
      };
    };
    const auto wait_gone = [this](const HttpRequest& request, HttpResponse&) {
      ++streams_open_;
      while (!request.client_gone()) std::this_thread::sleep_for(1ms);
      saw_client_gone_ = true;
      --streams_open_;
    };
    return {{.method = "GET", .path = "/livez", .is_public = true, .handle = text},
            {.method = "GET", .path = "/metrics", .handle = text},
            {.method = "GET", .path = "/v1/models", .handle = text},
            {.method = "POST", .path = "/echo", .handle = echo},
            {.method = "GET", .path = "/fail", .handle = fail},
            {.method = "GET", .path = "/stream", .generates = true, .handle = stream},
            {.method = "POST", .path = "/stream", .generates = true, .handle = stream},
            {.method = "GET", .path = "/stream_fail", .generates = true, .handle = stream_fail},
            {.method = "GET", .path = "/stream_endless", .generates = true, .handle = stream_endless},
            {.method = "GET", .path = "/wait_gone", .generates = true, .handle = wait_gone}};
  }

  std::string ask(const std::string& request) {
    Client client(server_->port());
    client.send_text(request);
    return client.read_all();
  }
  static void wait_until(const std::function<bool()>& done) {
    const auto begin = Clock::now();
    while (!done() && seconds_since(begin) < 10) std::this_thread::sleep_for(1ms);
    ASSERT_TRUE(done());
  }
};

TEST_F(HttpServerTest, AnswersWithLengthTypeAndRequestId) {
  start();
  const std::string own = ask(get("/livez", "Connection: close\r\nX-Request-Id: run-1.a_B\r\n"));
  EXPECT_THAT(own, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(own, HasSubstr("Content-Type: application/json\r\n"));
  EXPECT_THAT(own, HasSubstr("Content-Length: 11\r\n"));
  EXPECT_THAT(own, HasSubstr("X-Request-Id: run-1.a_B\r\n"));
  EXPECT_THAT(own, testing::EndsWith("\r\n\r\n{\"ok\":true}"));
  const std::string made = ask(get("/livez", "Connection: close\r\nX-Request-Id: a b<\r\n"));
  EXPECT_THAT(made, testing::ContainsRegex("X-Request-Id: [0-9a-f]*\r"));
  EXPECT_THAT(made, Not(HasSubstr("a b<")));
  const std::string head = ask("HEAD /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 11\r\n"));
  EXPECT_THAT(head, testing::EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, TakesTheIdOfATraceWhereTheClientGivesNone) {
  start();
  const std::string trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nConnection: close\r\n";
  EXPECT_THAT(ask(get("/livez", trace)), HasSubstr("X-Request-Id: 0af7651916cd43dd8448eb211c80319c\r\n"));
  EXPECT_THAT(ask(get("/livez", "X-Request-Id: mine\r\n" + trace)), HasSubstr("X-Request-Id: mine\r\n"));
  for (const char* bad : {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                          "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                          "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "x\"y"}) {
    const std::string answer = ask(get("/livez", std::string("traceparent: ") + bad + "\r\nConnection: close\r\n"));
    EXPECT_THAT(answer, Not(HasSubstr("0af7651916cd43dd8448eb211c80319c"))) << bad;
    EXPECT_THAT(answer, testing::ContainsRegex("X-Request-Id: [0-9a-f]*\r")) << bad;
  }
}

TEST_F(HttpServerTest, ReadsBodiesOfBothFramingsAndManyRequestsOnOneConnection) {
  const int port = start();
  Client client(port);
  for (int i = 0; i < 3; ++i) {
    client.send_text(post("/echo?a=1", "{\"n\":" + std::to_string(i) + "}", ""));
    EXPECT_THAT(client.read_until("}"), HasSubstr("echo a=1 0 {\"n\":" + std::to_string(i) + "}"));
  }
  // Pipelined, the last one chunked and compressed answers offered: they are not taken.
  client.send_text(post("/echo", "one", "") +
                   "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
                   "Accept-Encoding: gzip, br\r\nRange: bytes=0-1\r\nConnection: close\r\n\r\n3\r\ntwo\r\n0\r\n\r\n");
  const std::string both = client.read_all();
  EXPECT_THAT(both, HasSubstr("echo  0 one"));
  EXPECT_THAT(both, HasSubstr("echo  0 two"));
  EXPECT_THAT(both, Not(HasSubstr("Content-Encoding")));
}

TEST_F(HttpServerTest, TellsAWaitingClientToSendItsBody) {
  const int port = start();
  Client client(port);
  client.send_text("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
                   "Connection: close\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send_text("{}");
  EXPECT_THAT(client.read_all(), HasSubstr("echo  0 {}"));
}

TEST_F(HttpServerTest, RefusesInJsonWithTheRightStatus) {
  options_.body_bytes_max = 1000;
  start();
  const auto expect = [this](const std::string& request, const std::string& status, const std::string& detail) {
    const std::string response = ask(request);
    EXPECT_THAT(response, StartsWith("HTTP/1.1 " + status + " ")) << request;
    EXPECT_THAT(response, HasSubstr("{\"error\":{\"message\":")) << request;
    EXPECT_THAT(response, HasSubstr("X-Request-Id: ")) << request;
    EXPECT_THAT(response, HasSubstr(detail)) << request;
  };
  expect(get("/nothing"), "404", "not_found_error");
  expect(post("/livez", "{}"), "405", "Allow: GET, HEAD\r\n");
  expect(get("/echo"), "405", "Allow: POST\r\n");
  expect("BREW /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "400", "invalid_request_error");
  expect("POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "415", "application/json");
  expect("POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", "415",
         "application/json");
  expect(post("/echo", std::string(1001, 'x')), "413", "too large");
  expect(post("/echo", std::string(3 << 20, 'x')), "413", "too large");  // the answer arrives though the body is not read
  expect(get("/livez", "X: " + std::string(100000, 'x') + "\r\n"), "431", "headers are too large");
  expect(get("/" + std::string(9000, 'x')), "414", "too long");
  expect("nonsense\r\n\r\n", "400", "request line");
  expect("GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "400", "Transfer-Encoding");
}

TEST_F(HttpServerTest, StreamsInChunksAsTheyAreWritten) {
  const int port = start();
  Client client(port);
  client.send_text(get("/stream", ""));
  const std::string first = client.read_until("first\n\n\r\n");
  EXPECT_THAT(first, HasSubstr("Transfer-Encoding: chunked\r\n"));
  EXPECT_THAT(first, HasSubstr("Content-Type: text/event-stream\r\n"));
  EXPECT_THAT(first, testing::EndsWith("\r\n\r\nd\r\ndata: first\n\n\r\n"));
  release_streams_ = true;
  EXPECT_EQ(client.read_until("0\r\n\r\n"), "c\r\ndata: last\n\n\r\n0\r\n\r\n");
  client.send_text(get("/livez"));  // the connection goes on
  EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(HttpServerTest, StreamsToAnOldClientWithoutChunks) {
  release_streams_ = true;
  start();
  const std::string response = ask("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_THAT(response, Not(HasSubstr("chunked")));
  EXPECT_THAT(response, testing::EndsWith("\r\n\r\ndata: first\n\ndata: last\n\n"));
}

TEST_F(HttpServerTest, ContainsExceptions) {
  start();
  const std::string failed = ask(get("/fail"));
  EXPECT_THAT(failed, StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(failed, HasSubstr("internal error"));
  EXPECT_THAT(failed, Not(HasSubstr("secret")));
  const std::string cut = ask(get("/stream_fail", ""));
  EXPECT_THAT(cut, HasSubstr("begun"));
  EXPECT_THAT(cut, Not(HasSubstr("\r\n0\r\n")));  // no end of the body: the client sees that it is not whole
  EXPECT_THAT(ask(get("/livez")), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, KeepsAReserveForShortAnswersWhenAllStreamsAreTaken) {
  options_.streams_max = 3;
  options_.reserve_workers = 1;
  const int port = start();
  std::vector<Client> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back(port);
    clients.back().send_text(get("/stream"));
  }
  wait_until([&] { return streams_open_ == 3; });
  const std::string refused = ask(get("/stream"));
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(refused, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_THAT(refused, HasSubstr("service_unavailable_error"));
  EXPECT_THAT(ask(get("/metrics")), StartsWith("HTTP/1.1 200"));
  release_streams_ = true;
  for (Client& client : clients) EXPECT_THAT(client.read_all(), HasSubstr("last"));
  EXPECT_THAT(ask(get("/stream")), StartsWith("HTTP/1.1 200")) << "the slots came back";
}

TEST_F(HttpServerTest, TellsAHandlerThatItsClientHasGone) {
  const int port = start();
  Client client(port);
  client.send_text(get("/wait_gone", ""));
  wait_until([&] { return streams_open_ == 1; });
  std::this_thread::sleep_for(20ms);
  EXPECT_FALSE(saw_client_gone_);
  const auto begin = Clock::now();
  client.close_now();
  wait_until([&] { return saw_client_gone_.load(); });
  EXPECT_LT(seconds_since(begin), 0.1);
}

TEST_F(HttpServerTest, EndsAStreamWhoseClientHasGone) {
  const int port = start();
  Client client(port);
  client.send_text(get("/stream_endless", ""));
  client.read_until("xxx");
  const auto begin = Clock::now();
  client.close_now();
  wait_until([&] { return write_failed_.load(); });
  EXPECT_LT(seconds_since(begin), 0.1);
}

TEST_F(HttpServerTest, CutsAStreamThatNobodyReads) {
  options_.write_seconds_max = 0.3;
  const int port = start();
  Client client(port, 4096);
  client.send_text(get("/stream_endless", ""));
  const auto begin = Clock::now();
  wait_until([&] { return write_failed_.load(); });
  EXPECT_GE(seconds_since(begin), 0.25);
  EXPECT_LT(seconds_since(begin), 3);
}

// Headers or a body one byte at a time, and idle connections: none holds a worker, each is gone in its time.
TEST_F(HttpServerTest, SlowAndIdleClientsHoldNoWorker) {
  options_.streams_max = 1;
  options_.reserve_workers = 1;
  options_.read_seconds_max = 0.5;
  options_.keep_alive_seconds_max = 0.5;
  const int port = start();
  std::vector<Client> slow;
  const std::string whole = post("/echo", "0123456789");
  for (size_t i = 0; i < 300; ++i) {
    slow.emplace_back(port);
    ASSERT_TRUE(slow.back().connected());
    slow.back().send_text(whole.substr(0, i % (whole.size() - 1) + 1));
  }
  const auto begin = Clock::now();
  for (int i = 0; i < 20; ++i) {
    const auto asked = Clock::now();
    ASSERT_THAT(ask(get("/livez")), StartsWith("HTTP/1.1 200"));
    EXPECT_LT(seconds_since(asked), 0.25);
  }
  for (Client& client : slow) EXPECT_THAT(client.read_all(), HasSubstr("408"));
  EXPECT_LT(seconds_since(begin), 3);

  Client idle(port);
  idle.send_text(get("/livez", ""));
  idle.read_until("true}");
  const auto idle_since = Clock::now();
  EXPECT_EQ(idle.read_all(), "");
  EXPECT_GT(seconds_since(idle_since), 0.4);
  EXPECT_LT(seconds_since(idle_since), 2);
}

TEST_F(HttpServerTest, ClosesTheOldestConnectionWhenThereAreTooMany) {
  options_.connections_max = 20;
  const int port = start();
  std::vector<Client> idle;
  for (int i = 0; i < 60; ++i) idle.emplace_back(port);
  EXPECT_THAT(ask(get("/livez")), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(idle.front().read_some(), "");
  EXPECT_EQ(idle.back().read_some(50ms), std::nullopt);
}

TEST_F(HttpServerTest, OneMoreWaitsWhereWorkersHoldAllConnections) {
  options_.connections_max = 2;
  const int port = start();
  std::vector<Client> streams;
  for (int i = 1; i <= 2; ++i) {
    streams.emplace_back(port);
    streams.back().send_text(get("/stream"));
    wait_until([&] { return streams_open_ == i; });
  }
  Client one_more(port);
  one_more.send_text(get("/livez"));
  EXPECT_EQ(one_more.read_some(200ms), std::nullopt);  // neither answered nor closed
  release_streams_ = true;
  EXPECT_THAT(one_more.read_all(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, BoundsTheRequestsOfAConnection) {
  options_.keep_alive_requests_max = 2;
  const int port = start();
  Client client(port);
  client.send_text(get("/livez", "") + get("/livez", "") + get("/livez", ""));
  const std::string all = client.read_all();
  EXPECT_THAT(all, HasSubstr("Connection: close"));
  size_t answers = 0;
  for (size_t at = 0; (at = all.find("HTTP/1.1 200", at)) != std::string::npos; ++at) ++answers;
  EXPECT_EQ(answers, 2u);
}

TEST_F(HttpServerTest, BoundsTheBytesOfBodiesThatAreBeingReceived) {
  options_.buffered_bytes_max = 1 << 20;
  const int port = start();
  Client first(port), second(port);
  for (Client* client : {&first, &second}) client->send_text(post("/echo", std::string(900 << 10, 'x')).substr(0, 800 << 10));
  std::optional<std::string> refused;  // the one that was too much: the system may deliver either of them first
  for (int i = 0; i < 100 && !refused; ++i) refused = (i % 2 == 0 ? first : second).read_some(50ms);
  ASSERT_TRUE(refused);
  EXPECT_THAT(*refused, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(*refused, HasSubstr("Retry-After: 1"));
  first.close_now();
  second.close_now();
  wait_until([&] { return ask(get("/livez")).starts_with("HTTP/1.1 200"); });  // so the closing was seen
  EXPECT_THAT(ask(post("/echo", std::string(900 << 10, 'x'))), StartsWith("HTTP/1.1 200"));
}

// A stream has read its body long before it ends.
TEST_F(HttpServerTest, BodiesOfRunningStreamsAreCountedNoMore) {
  options_.buffered_bytes_max = 1 << 20;
  const int port = start();
  std::vector<Client> clients;
  for (int i = 1; i <= 6; ++i) {
    clients.emplace_back(port);
    clients.back().send_text(post("/stream", std::string(400 << 10, 'x')));
    wait_until([&] { return streams_open_ == i; });
  }
  release_streams_ = true;
  for (Client& client : clients) EXPECT_THAT(client.read_all(), HasSubstr("last"));
}

TEST_F(HttpServerTest, DeniesWithoutAKeyWhateverThePath) {
  options_.api_keys = {{sha256_hex("other"), TenantId{0}}, {sha256_hex("correct horse"), TenantId{7}}, {sha256_hex("last"), TenantId{0}}};
  start();
  for (const char* path : {"/v1/models", "/nothing", "/echo", "/LIVEZ", "/livez/", "//livez", "/livez%00"}) {
    EXPECT_THAT(ask(get(path)), StartsWith("HTTP/1.1 401 ")) << path;
  }
  const std::string denied = ask(get("/v1/models", "Connection: close\r\nAuthorization: Bearer wrong\r\n"));
  EXPECT_THAT(denied, StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(denied, HasSubstr("authentication_error"));
  EXPECT_THAT(denied, HasSubstr("WWW-Authenticate: Bearer\r\n"));
  EXPECT_THAT(denied, Not(HasSubstr("wrong")));
  EXPECT_THAT(ask(get("/v1/models", "Connection: close\r\nAuthorization: Basic correct horse\r\n")), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(ask(get("/livez")), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(ask(get("/metrics")), StartsWith("HTTP/1.1 401"));
  const std::string keyed = ask(post("/echo", "{}", "Connection: close\r\nAuthorization: Bearer correct horse\r\n"));
  EXPECT_THAT(keyed, HasSubstr("echo  7 {}"));
  EXPECT_THAT(ask(get("/v1/models", "Connection: close\r\nAuthorization: bearer correct horse\r\n")), StartsWith("HTTP/1.1 200"));  // RFC 9110 11.1
}

// A browser that was led here by a name that means this machine for the moment sends that name.
TEST_F(HttpServerTest, ANameThatIsNotItsOwnIsMisdirected) {
  options_.check_host_name = true;
  options_.host_names = {"headroom.internal"};
  start();
  const auto status_for = [&](const std::string& host) {
    const std::string answer = ask("GET /v1/models HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n");
    return answer.substr(0, 12);
  };
  for (const char* own : {"127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:8000", "[::1]", "[::1]:8000", "192.168.0.1:1", "headroom.internal:80"}) {
    EXPECT_EQ(status_for(own), "HTTP/1.1 200") << own;
  }
  for (const char* other : {"evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:127.0.0.1", "[::1", "[evil]",
                            "127.0.0.1@evil.example", "0x7f.1"}) {
    EXPECT_EQ(status_for(other), "HTTP/1.1 421") << other;
  }
}

// However the address is written that is listened to: what counts is who can reach it.
TEST_F(HttpServerTest, NamesAreCheckedWhereThisMachineAloneIsListenedTo) {
  options_.check_host_name = true;
  for (const auto& [host, status] : {std::pair("127.1", "421"), {"localhost", "421"}, {"0.0.0.0", "200"}}) {
    options_.host = host;
    start();
    Client client(server_->port());
    client.send_text("GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    EXPECT_THAT(client.read_all(), StartsWith(std::string("HTTP/1.1 ") + status)) << host;
    stop();
  }
}

TEST_F(HttpServerTest, MetricsNeedNoKeyByChoice) {
  options_.api_keys = {{sha256_hex("k"), TenantId{0}}};
  options_.metrics_public = true;
  start();
  EXPECT_THAT(ask(get("/metrics")), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(ask(get("/v1/models")), StartsWith("HTTP/1.1 401"));
}

TEST(Lines, HaveNoControlCharacters) {
  EXPECT_EQ(without_control("plain, é中😀"), "plain, é中😀");
  EXPECT_EQ(without_control(std::string_view("a\0b\x1b[31m\n\r\t\x7f", 12)), "a?b?[31m????");
  EXPECT_EQ(without_control("\xc2\x80\xc2\x9b\xc2\xa0\xc3\x9b"), "????\xc2\xa0\xc3\x9b");
}

TEST(LineLimit, LeavesOutAndCountsWhatIsTooMuchForASecond) {
  LineLimit limit(3);
  const LineLimit::Clock::time_point start{1h};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(limit.take(start + i * 100ms), 0);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(limit.take(start + 900ms), std::nullopt);
  EXPECT_EQ(limit.take(start + 1s), 1000);
  EXPECT_EQ(limit.take(start + 1s), 0);
}

TEST_F(HttpServerTest, StopFinishesWhatIsOpenAndTakesNothingNew) {
  const int port = start();
  Client stream(port), idle(port);
  stream.send_text(get("/stream", ""));
  stream.read_until("first");
  std::thread stopping([this] { stop(); });
  wait_until([&] { return !Client(port).connected(); });
  EXPECT_EQ(idle.read_some(), "");
  EXPECT_EQ(stream.read_some(50ms), std::nullopt) << "the stream is still open";
  release_streams_ = true;
  EXPECT_THAT(stream.read_all(), testing::EndsWith("data: last\n\n\r\n0\r\n\r\n"));
  stopping.join();
}

TEST_F(HttpServerTest, APortInUseIsOneLineThatSaysWhatToDo) {
  const int port = start();
  HttpServerOptions same = options_;
  same.port = port;
  HttpServer second(same, {}, nullptr);
  try {
    second.bind();
    FAIL() << "bound a port in use";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("port " + std::to_string(port) + " of 127.0.0.1 is in use"));
    EXPECT_THAT(error.what(), HasSubstr("--port"));
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
  }
  HttpServerOptions elsewhere = options_;
  elsewhere.host = "192.0.2.1";  // TEST-NET-1: nobody's
  EXPECT_THROW(HttpServer(elsewhere, {}, nullptr).bind(), std::runtime_error);
  elsewhere.host = "no such host";
  EXPECT_THROW(HttpServer(elsewhere, {}, nullptr).bind(), std::runtime_error);
}

TEST_F(HttpServerTest, ObservesEachAnswerUnderItsRoute) {
  start();
  ask(get("/livez"));
  ask(post("/echo", "{}"));
  ask(get("/nothing/at/all"));
  ask("BREW /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  ask("nonsense\r\n\r\n");
  stop();
  EXPECT_THAT(observed_, testing::ElementsAre("GET /livez 200", "POST /echo 200", "GET other 404", "other other 400", "other other 400"));
}

TEST_F(HttpServerTest, ManyStreamsAndDisconnectsAtOnce) {
  const int port = start();
  std::vector<std::thread> threads;
  std::atomic<int> whole{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        Client client(port);
        client.send_text(get(i % 2 == 0 ? "/stream" : "/stream_endless", ""));
        if ((i + t) % 4 == 0) client.read_some();
        client.close_now();
        Client short_answer(port);
        short_answer.send_text(get("/livez"));
        whole += short_answer.read_all().starts_with("HTTP/1.1 200");
        release_streams_ = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(whole, 400);
  wait_until([&] { return streams_open_ == 0; });
}

}  // namespace
}  // namespace headroom
