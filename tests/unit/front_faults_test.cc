// What broke other servers at their HTTP front, each over real sockets and held to a figure. In the model's place stands a fake one
// whose step takes a fixed time, so that the clients of the test and the model do not compete for the processor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <system_error>
#include <thread>

#include "server/listener.h"
#include "server/sha256.h"
#include "server/worker_pool.h"
#include "tests/unit/api_fixture.h"
#include "tests/unit/http_client.h"
#include "tests/unit/machine_delay.h"
#include "tests/unit/sanitizer_slowdown.h"

// Stands in front of the C library's: fails with the errors that are due, then takes connections as ever.
std::atomic<int> g_accept_error{0};
std::atomic<int> g_accept_errors_due{0};
extern "C" int accept4(int fd, sockaddr* address, socklen_t* length, int flags) {
  if (g_accept_errors_due.load() > 0 && g_accept_errors_due.fetch_sub(1) > 0) {
    errno = g_accept_error;
    return -1;
  }
  return static_cast<int>(syscall(SYS_accept4, fd, address, length, flags));
}

namespace headroom {
namespace {

using namespace std::chrono_literals;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

int64_t process_number(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1));
  }
  throw std::runtime_error("no " + key + " in /proc/self/status");
}

void wait_until(const std::function<bool()>& done, double seconds_max = 10) {
  const auto begin = Clock::now();
  while (!done() && seconds_since(begin) < seconds_max) std::this_thread::sleep_for(1ms);
  ASSERT_TRUE(done());
}

std::string generate(const std::string& fields, const std::string& headers = "") {
  return post("/v1/completions", "{" + fields + "}", headers);
}

class Front : public testing::Test {
 protected:
  void SetUp() override {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 16384);  // both ends of each connection are of this process
    setrlimit(RLIMIT_NOFILE, &limit);
    http_.port = 0;
  }
  void TearDown() override {
    if (server_ == nullptr) return;
    server_->stop();
    thread_.join();
  }

  int start(const ApiSetup& setup = {}, const std::function<void(std::vector<Route>*)>& change = {}) {
    api_ = std::make_unique<ApiUnderTest>(setup);
    std::vector<Route> routes = api_->routes();
    if (change) change(&routes);
    server_ = std::make_unique<HttpServer>(http_, std::move(routes), nullptr);
    server_->bind();
    thread_ = std::thread([this] { server_->serve(); });
    return server_->port();
  }
  std::string ask(const std::string& request) {
    Client client(server_->port());
    client.send_text(request);
    return client.read_all();
  }
  double livez_seconds() {
    const auto begin = Clock::now();
    EXPECT_THAT(ask(get("/livez")), StartsWith("HTTP/1.1 200"));
    return seconds_since(begin);
  }

  HttpServerOptions http_;
  std::unique_ptr<ApiUnderTest> api_;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

// A thousand clients that send a byte a second, in the head or in the body, and two hundred that have been answered and say nothing more.
TEST_F(Front, AThousandSlowClientsCostNoWorkerAndAreGoneInTenSeconds) {
  const int port = start();
  livez_seconds();
  const int64_t threads_before = process_number("Threads");
  std::vector<Client> idle;
  for (int i = 0; i < 200; ++i) {
    idle.emplace_back(port);
    idle.back().send_text(get("/livez", ""));
    idle.back().read_until("}");
  }
  struct Slow {
    Client client;
    size_t sent;
    Clock::time_point begin;
    double gone_seconds = 0;
  };
  const std::string whole = generate("\"prompt\":\"" + std::string(400, 'x') + "\"");
  std::vector<Slow> slow;
  for (size_t i = 0; i < 1000; ++i) {
    slow.push_back({Client(port), 1 + i % (whole.size() - 20), Clock::now()});
    ASSERT_TRUE(slow.back().client.connected());
    slow.back().client.send_text(std::string_view(whole).substr(0, slow.back().sent));
  }
  MachineDelay delay;
  const auto begin = Clock::now();
  std::vector<double> seconds;
  for (int second = 1; second <= 12; ++second) {
    while (seconds_since(begin) < second) {
      seconds.push_back(livez_seconds());
      for (Slow& one : slow) {
        char byte = 0;
        if (one.gone_seconds == 0 && recv(one.client.fd(), &byte, 1, MSG_DONTWAIT) >= 0) one.gone_seconds = seconds_since(one.begin);
      }
      std::this_thread::sleep_for(10ms);
    }
    for (Slow& one : slow) {
      if (one.gone_seconds == 0) one.client.send_text(std::string_view(whole).substr(one.sent++, 1));
    }
  }
  const double machine_seconds = delay.answer_seconds();
  EXPECT_LE(p99(seconds), 0.05 * kSanitizerSlowdown + machine_seconds) << seconds.size() << " answers";
  EXPECT_EQ(process_number("Threads"), threads_before);
  for (const Slow& one : slow) {
    ASSERT_GT(one.gone_seconds, 5) << "cut too early";
    ASSERT_LE(one.gone_seconds, 10 + machine_seconds);
  }
  for (Client& client : idle) EXPECT_EQ(client.read_some(0ms), "") << "an idle connection is closed";
  std::printf("/livez p99 %.1f ms, of which the machine %.1f ms\n", p99(seconds) * 1e3, machine_seconds * 1e3);
}

// The most that the system keeps of what was written to one of the connections of that port and not read by its client.
int64_t kernel_bytes_max(int port) {
  int64_t most = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    sockaddr_in address{};
    socklen_t length = sizeof address;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 || ntohs(address.sin_port) != port) continue;
    std::array<uint32_t, SK_MEMINFO_VARS> memory{};
    length = sizeof memory;
    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory.data(), &length) == 0) most = std::max<int64_t>(most, memory[SK_MEMINFO_WMEM_QUEUED]);
  }
  return most;
}

// 72 streams: first all are read, then 64 of them are not. The engine must not feel it, nor must the memory.
TEST_F(Front, ReadersThatStallHoldUpNobodyAndAreCut) {
  ApiSetup setup;
  setup.runner.step_time = 20ms;
  setup.scheduler = {.pages_total = 4096, .step_tokens_max = 512, .running_sequences_max = 128, .context_tokens_max = 4096};
  std::atomic<int> cut{0};
  std::atomic<bool> in_time{true};
  const int port = start(setup, [&](std::vector<Route>* routes) {
    for (Route& route : *routes) {  // measures the write that fails
      route.handle = [&, handle = route.handle](HttpRequest& request, HttpResponse& response) {
        handle(request, response);
        if (!response.stream) return;
        response.stream = [&, run = std::move(response.stream)](HttpStream& out) {
          struct Timed : HttpStream {
            HttpStream& out;
            double last_seconds = 0;
            explicit Timed(HttpStream& to) : out(to) {}
            bool write(std::string_view bytes) override {
              const auto begin = Clock::now();
              const bool written = out.write(bytes);
              last_seconds = seconds_since(begin);
              return written;
            }
          } timed(out);
          run(timed);
          if (timed.last_seconds > 1) {
            ++cut;
            if (timed.last_seconds < 9.5 || timed.last_seconds > 10.5) in_time = false;
          }
        };
      };
    }
  });
  const std::string request = generate(R"("prompt":"a","max_tokens":4000,"ignore_eos":true,"stream":true,"logprobs":20)");
  std::vector<Client> readers, stalled;
  for (int i = 0; i < 72; ++i) {
    std::vector<Client>& group = i < 8 ? readers : stalled;
    group.emplace_back(port, 4096);
    group.back().send_text(request);
  }
  wait_until([&] { return api_->engine->stats().requests_running == 72; });
  std::atomic<bool> ended{false}, all_read{true};
  std::thread reading([&] {
    std::string buffer(1 << 16, '\0');
    while (!ended) {
      for (Client& client : readers) recv(client.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      for (Client& client : stalled) {
        if (all_read) recv(client.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      }
      std::this_thread::sleep_for(1ms);
    }
  });
  const auto step_seconds = [&](std::chrono::milliseconds over) {
    const int64_t first = api_->engine->stats().steps;
    const auto begin = Clock::now();
    std::this_thread::sleep_for(over);
    return seconds_since(begin) / static_cast<double>(api_->engine->stats().steps - first);
  };
  const double all_reading = step_seconds(3s);
  const int64_t memory_before = process_number("VmRSS");
  all_read = false;
  const auto stalled_since = Clock::now();
  std::this_thread::sleep_for(4s);  // until buffers are full
  const double some_stalled = step_seconds(5s);
  const int64_t memory_grown = (process_number("VmRSS") - memory_before) * 1024;
  const int64_t kernel_bytes = kernel_bytes_max(port);
  wait_until([&] { return cut == 64; }, 20 * kSanitizerSlowdown);
  const double cut_seconds = seconds_since(stalled_since);
  wait_until([&] { return api_->engine->stats().requests_running == 8; }, 0.1);
  EXPECT_TRUE(in_time) << "each is cut ten seconds after its last byte was taken";
  EXPECT_LE(some_stalled, all_reading * (1 + 0.05 * kSanitizerSlowdown));
  if (kMemoryIsCounted) {
    EXPECT_LE(memory_grown, 64 * (256 << 10));
    EXPECT_GT(kernel_bytes, 64 << 10) << "the measure itself does not work";
    EXPECT_LE(memory_grown / 64 + kernel_bytes, 256 << 10) << "of which the system's " << kernel_bytes;
  }
  EXPECT_LE(cut_seconds, 20 * kSanitizerSlowdown);
  std::printf("a stalled reader: %lld KiB of the process, %lld KiB of the system\n", static_cast<long long>(memory_grown / 64 / 1024),
              static_cast<long long>(kernel_bytes / 1024));
  ended = true;
  reading.join();
  readers.clear();
  EXPECT_TRUE(api_->becomes_idle());
}

TEST_F(Front, AnExceptionInAStreamEndsItWithAnErrorEvent) {
  const int port = start({}, [](std::vector<Route>* routes) {
    for (Route& route : *routes) {
      if (route.path != "/v1/completions") continue;
      route.handle = [handle = route.handle](HttpRequest& request, HttpResponse& response) {
        handle(request, response);
        response.stream = [run = std::move(response.stream)](HttpStream& out) {
          out.write("data: {\"begun\":true}\n\n");
          throw std::runtime_error("invalid UTF-8 byte of somebody's secret");
        };
      };
    }
  });
  Client client(port);
  client.send_text(generate(R"("prompt":"a","stream":true)"));
  const std::string all = client.read_until("\r\n0\r\n\r\n");
  EXPECT_THAT(all, HasSubstr("begun"));
  EXPECT_THAT(all, HasSubstr("data: {\"error\":{\"message\":\"internal error\",\"type\":\"internal_server_error\",\"param\":null,\"code\":null}}\n\n"
                             "data: [DONE]\n\n\r\n0\r\n\r\n"));
  EXPECT_THAT(all, Not(HasSubstr("secret")));
  client.send_text(get("/livez"));
  EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 200")) << "the connection is still in step";
  EXPECT_TRUE(api_->becomes_idle());
}

TEST_F(Front, AFailingAcceptIsForgottenWithinATenthOfASecond) {
  const int port = start();
  for (const int error : {ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTO, EINTR, ENETDOWN, EPERM}) {
    g_accept_error = error;
    g_accept_errors_due = 1;
    MachineDelay delay;
    Client client(port);
    const auto begin = Clock::now();
    client.send_text(get("/livez"));
    EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 200")) << std::strerror(error);
    const double seconds = seconds_since(begin);
    EXPECT_LE(seconds, 0.1 * kSanitizerSlowdown + delay.answer_seconds()) << std::strerror(error);
    EXPECT_LE(g_accept_errors_due, 0);
  }
}

TEST(FrontThreads, WithoutAThreadARequestIs503AndTheNextOneIsAnswered) {
  std::atomic<bool> has_threads{false};
  WorkerPool pool(0, 4, 16, [&](std::function<void()> run) {
    if (!has_threads) throw std::system_error(EAGAIN, std::generic_category());
    return std::thread(std::move(run));
  });
  Listener* listening = nullptr;
  Listener listener(
      {},
      [&](std::unique_ptr<Connection>& connection) {
        Connection* owned = connection.release();
        const auto answer = [&listening, owned] {
          constexpr std::string_view kAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
          EXPECT_EQ(send(owned->fd(), kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL), static_cast<ssize_t>(kAnswer.size()));
          owned->keep_alive = false;
          listening->finish(std::unique_ptr<Connection>(owned));
        };
        if (pool.submit(answer)) return true;
        connection.reset(owned);
        return false;
      },
      [](int status, const char*) { return "HTTP/1.1 " + std::to_string(status) + " Refused\r\nConnection: close\r\n\r\n"; });
  listening = &listener;
  listener.bind("127.0.0.1", 0);
  std::thread thread([&] { listener.serve(); });
  const auto ask = [&] {
    Client client(listener.port());
    client.send_text(get("/livez"));
    return client.read_all();
  };
  EXPECT_THAT(ask(), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(ask(), StartsWith("HTTP/1.1 503"));
  has_threads = true;
  EXPECT_THAT(ask(), StartsWith("HTTP/1.1 200"));
  listener.stop();
  thread.join();
}

// The client goes away while it waits in the queue, while its prompt is computed, and while tokens come: streamed or not, its pages are
// free within two steps of the engine having heard of it, and within a tenth of a second of its leaving.
TEST_F(Front, PagesAreFreeSoonAfterTheirClientHasGone) {
  struct Case {
    const char* name;
    int32_t step_tokens_max, running_max;
    bool somebody_runs;
    int prompt_tokens;
  };
  for (const Case& one : {Case{"queue", 64, 1, true, 5}, Case{"prefill", 1, 16, false, 400}, Case{"decode", 64, 16, false, 5}}) {
    for (const char* stream : {"false", "true"}) {
      SCOPED_TRACE(std::string(one.name) + ", stream " + stream);
      ApiSetup setup;
      setup.runner.step_time = 5ms;
      setup.client_poll_period = ApiOptions().client_poll_period;
      setup.scheduler.step_tokens_max = one.step_tokens_max;
      setup.scheduler.running_sequences_max = one.running_max;
      const int port = start(setup);
      Client other(port);
      if (one.somebody_runs) {
        other.send_text(generate(R"("prompt":"a","max_tokens":500,"ignore_eos":true,"stream":true)"));
        wait_until([&] { return api_->engine->stats().requests_running == 1; });
      }
      const int64_t others = one.somebody_runs ? 1 : 0;
      Client client(port);
      client.send_text(generate("\"prompt\":\"" + std::string(static_cast<size_t>(one.prompt_tokens), 'x') +
                                "\",\"max_tokens\":90,\"ignore_eos\":true,\"stream\":" + stream));
      wait_until([&] {
        const EngineStats stats = api_->engine->stats();
        return stats.requests_running + stats.requests_waiting == others + 1 &&
               (one.prompt_tokens > 100 || one.somebody_runs || stats.generated_tokens > 3);
      });
      MachineDelay delay;
      const auto begin = Clock::now();
      client.close_now();
      wait_until([&] {
        const EngineStats stats = api_->engine->stats();
        return stats.requests_running + stats.requests_waiting == others && (others > 0 || stats.pages.live == 0);
      });
      const double seconds = seconds_since(begin);
      EXPECT_LE(seconds, 0.1 * kSanitizerSlowdown + delay.answer_seconds());
      other.close_now();
      TearDown();
      server_ = nullptr;
    }
  }
}

TEST_F(Front, EveryRouteNeedsTheKeyButTheProbes) {
  http_.api_keys = {{sha256_hex("correct horse"), TenantId{0}}};
  start();
  const std::string key = "Connection: close\r\nAuthorization: Bearer correct horse\r\n";
  for (const Route& route : api_->routes()) {
    const bool is_open = route.path == "/livez" || route.path == "/readyz";
    const auto request = [&](const std::string& headers) {
      return route.method == "GET" ? get(route.path, headers) : post(route.path, "{}", headers);
    };
    for (const char* host : {"h", "localhost", "127.0.0.1", "livez"}) {
      std::string text = request("Connection: close\r\n");
      text.replace(text.find("Host: h"), 7, std::string("Host: ") + host);
      EXPECT_EQ(ask(text).starts_with("HTTP/1.1 401 "), !is_open) << route.path << " by Host " << host;
    }
    EXPECT_THAT(ask(request(key)), Not(StartsWith("HTTP/1.1 401 "))) << route.path;
    EXPECT_EQ(ask(request(key.substr(0, key.size() - 3) + "\r\n")).starts_with("HTTP/1.1 401 "), !is_open) << "a key cut short";
  }
}

// Bodies, heads and framings that broke others. Each is refused in a whole answer, and the server neither grows nor gets out of step.
TEST_F(Front, HostileRequestsAreRefusedInAWholeAnswer) {
  start();
  const std::string mebibyte(1 << 20, '[');
  MachineDelay delay;
  const auto begin = Clock::now();
  EXPECT_THAT(ask(post("/v1/completions", mebibyte)), StartsWith("HTTP/1.1 400"));
  const double seconds = seconds_since(begin);
  EXPECT_LE(seconds, 0.05 * kSanitizerSlowdown + delay.answer_seconds()) << "per MiB of brackets";
  const auto with_list = [](const std::string& before, size_t count, const std::function<std::string(size_t)>& element, const std::string& after) {
    std::string list;
    for (size_t i = 0; i < count; ++i) list += (i == 0 ? "" : ",") + element(i);
    return post("/v1/completions", before + list + after);
  };
  const std::string gzip = "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {post("/v1/completions", std::string(200000, '[')), "400"},
      {post("/v1/completions", R"({"prompt":"x","n":4294967297})"), "400"},
      {post("/v1/completions", R"({"prompt":"x","n":true})"), "400"},
      {post("/v1/completions", R"({"prompt":"x","n":1e20})"), "400"},
      {post("/v1/completions", R"({"prompt":"x","max_tokens":-1})"), "400"},
      {post("/v1/completions", R"({"prompt":[-1]})"), "400"},
      {post("/v1/completions", R"({"prompt":[260]})"), "400"},
      {post("/v1/completions", R"({"prompt":[2147483648]})"), "400"},
      {post("/v1/completions", "{\"prompt\":\"\xed\xa0\x80\"}"), "400"},
      {post("/v1/completions", R"({"prompt":"\ud800"})"), "400"},
      {with_list("{\"prompt\":\"x\",\"stop\":[", 100'000, [](size_t) { return "\"s\""; }, "]}"), "400"},
      {with_list("{\"prompt\":\"x\",\"logit_bias\":{", 100'000, [](size_t i) { return "\"" + std::to_string(i) + "\":1"; }, "}}"), "400"},
      {with_list("{\"prompt\":[", 10 * 512, [](size_t) { return "97"; }, "]}"), "400"},
      {with_list("{\"n\":64,\"prompt\":[", 100'000, [](size_t) { return "\"x\""; }, "]}"), "400"},
      {post("/v1/completions", R"({"prompt":"x","logprobs":1000000})"), "400"},
      {post("/v1/completions", R"({"prompt":"x","max_tokens":2147483648})"), "400"},
      {post("/v1/completions", std::string("{\"prompt\":\"x\"}\0{", 16)), "400"},
      {get("/livez", "X: " + std::string(100000, 'x') + "\r\n"), "431"},
      {gzip + "Content-Length: 2\r\n\r\n\x1f\x8b", "415"},
      {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
      {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", "400"},
      {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "400"},
      {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "400"},
      {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"},
      {"GET /livez HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\rSet-Cookie: b\r\n\r\n", "400"},
      {"GET /livez HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", "400"},
      {"GET /livez HTTP/1.1\r\nHost : h\r\n\r\n", "400"}};
  // Each worker grows until it has met each of them, which takes it longer where other work has the cores; what leaks grows in every turn.
  int64_t grown_kib = 0;
  for (int turn = 0; turn < 6; ++turn) {
    const int64_t before = process_number("VmRSS");
    for (int round = 0; round < 20; ++round) {
      for (const auto& [request, status] : cases) {
        const std::string answer = ask(request.find("Connection") == std::string::npos ? request : request + get("/livez"));
        ASSERT_THAT(answer, StartsWith("HTTP/1.1 " + status + " ")) << request.substr(0, 200);
        ASSERT_THAT(answer, HasSubstr("{\"error\":{\"message\":\"")) << request.substr(0, 200);
        ASSERT_THAT(answer, Not(HasSubstr("exception")));
        ASSERT_THAT(answer, Not(HasSubstr("HTTP/1.1 200"))) << "the rest of a refused request was taken for the next one";
      }
    }
    grown_kib = process_number("VmRSS") - before;
    if (turn > 0 && (grown_kib <= 4096 || !kMemoryIsCounted)) break;
  }
  if (kMemoryIsCounted) {
    EXPECT_LE(grown_kib, 4096) << "by the last turn";
  }
  EXPECT_EQ(api_->engine->stats().steps, 0) << "none of it reached the engine";
}

}  // namespace
}  // namespace headroom
