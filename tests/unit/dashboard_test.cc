// The page's routes over a real engine with a fake model: what a watcher is sent, who may watch, and from where.
#include "server/dashboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <map>
#include <random>

#include "tests/unit/api_fixture.h"

namespace headroom {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using nlohmann::json;

// What GET /v1/live sends, until `frames_max` frames have come or it ends.
class Watcher : public HttpStream {
 public:
  explicit Watcher(int frames_max) : left_(frames_max) {}
  bool write(std::string_view bytes) override {
    EXPECT_TRUE(bytes.starts_with("data: ") && bytes.ends_with("\n\n")) << bytes;
    frames.push_back(json::parse(bytes.substr(6)));
    return --left_ > 0;
  }
  std::vector<json> frames;

 private:
  int left_;
};

// RFC 4648, the other way round: a byte for each cell.
std::vector<uint8_t> cells_of_base64(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<uint8_t> cells;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
    if ((count += 6) >= 8) cells.push_back(static_cast<uint8_t>(bits >> (count -= 8)));
  }
  return cells;
}

// What a page makes of the frames, one after the other.
void apply(const json& frame, std::vector<uint8_t>* cells) {
  if (frame.contains("cells")) {
    *cells = cells_of_base64(frame.at("cells").get<std::string>());
    return;
  }
  const auto runs = frame.at("runs").get<std::vector<size_t>>();
  for (size_t i = 0; i < runs.size(); i += 3) {
    for (size_t cell = runs[i]; cell < runs[i] + runs[i + 1]; ++cell) cells->at(cell) = static_cast<uint8_t>(runs[i + 2]);
  }
}

struct Page {
  explicit Page(const ApiSetup& setup = {}, DashboardOptions options = {}) : api(setup) {
    options.feed.model_name = "demo";
    options.feed.period = std::chrono::milliseconds(1);
    options.feed.quiet_period = std::chrono::milliseconds(20);
    options.served = [this] { return api.served; };
    routes = dashboard_routes(std::move(options));
  }

  HttpResponse get(const std::string& path, HttpRequest request = {}) {
    for (const Route& route : routes) {
      if (route.path != path) continue;
      HttpResponse response;
      route.handle(request, response);
      return response;
    }
    throw std::runtime_error("no route " + path);
  }
  json once() { return json::parse(get("/v1/live", {.query = "once"}).body); }

  ApiUnderTest api;
  std::vector<Route> routes;
};

std::string header_of(const HttpResponse& response, const std::string& name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

std::string error_text(const HttpResponse& response) { return json::parse(response.body).at("error").at("message").get<std::string>(); }

TEST(LiveFeed, CellsAreBase64AsInTheRfc) {
  const std::map<std::string, std::string> vectors = {{"", ""},         {"f", "Zg=="},        {"fo", "Zm8="},       {"foo", "Zm9v"},
                                                      {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : vectors) EXPECT_EQ(cells_base64({bytes.begin(), bytes.end()}), text);
  EXPECT_EQ(cells_base64({255, 254, 253}), "//79");
}

TEST(LiveFeed, RunsAreWhatChanged) {
  EXPECT_EQ(changed_runs({0, 0, 0}, {0, 0, 0}), std::vector<int64_t>{});
  EXPECT_EQ(changed_runs({0, 0, 0, 0}, {5, 5, 0, 7}), (std::vector<int64_t>{0, 2, 5, 3, 1, 7}));
  EXPECT_EQ(changed_runs({5, 0, 0}, {5, 5, 5}), (std::vector<int64_t>{1, 2, 5}));
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint8_t> from(random() % 40), to;
    for (uint8_t& cell : from) cell = random() % 3;
    for (const uint8_t cell : from) to.push_back(random() % 2 ? cell : random() % 3);
    std::vector<uint8_t> page = from;
    apply({{"runs", changed_runs(from, to)}}, &page);
    EXPECT_EQ(page, to);
  }
}

// Every frame adds up, and the changes lead to the same map as the whole.
TEST(LiveFeed, FramesAddUpToThePool) {
  Page page({.runner = {.step_time = std::chrono::microseconds(500)}});
  std::thread client([&] {
    for (int i = 0; i < 6; ++i) {
      page.api.complete(R"("prompt": ["abcdefghijklmnopqrstuvwxyz", "0123456789012345678901234567890123456789"], "max_tokens": 60, "ignore_eos": true)");
    }
  });
  Watcher watcher(150);
  page.get("/v1/live").stream(watcher);
  client.join();

  std::vector<uint8_t> cells;
  int64_t live_seen = 0, cached_seen = 0, requests_seen = 0, changes = 0;
  ASSERT_EQ(watcher.frames.size(), 150u);
  for (const json& frame : watcher.frames) {
    EXPECT_EQ(frame.contains("model"), frame.contains("cells"));
    changes += frame.contains("runs") ? 1 : 0;
    apply(frame, &cells);
    ASSERT_EQ(cells.size(), 64u);
    const auto count = [&](auto matches) { return std::ranges::count_if(cells, matches); };
    const json& pages = frame.at("pages");
    EXPECT_EQ(count([](uint8_t c) { return c == kCellFree; }), pages.at("free").get<int64_t>());
    EXPECT_EQ(count([](uint8_t c) { return c == kCellCached; }), pages.at("cached").get<int64_t>());
    EXPECT_EQ(count([](uint8_t c) { return c >= kCellShared; }), pages.at("live").get<int64_t>());
    EXPECT_EQ(frame.at("requests").size(), frame.at("running").get<size_t>() + frame.at("waiting").get<size_t>());
    for (const json& request : frame.at("requests")) {
      EXPECT_LE(count([&](uint8_t c) { return c == request.at("cell").get<int>(); }), request.at("pages").get<int64_t>());
      EXPECT_LE(request.at("generated").get<int>(), 60);
    }
    live_seen += pages.at("live").get<int64_t>();
    cached_seen += pages.at("cached").get<int64_t>();
    requests_seen += static_cast<int64_t>(frame.at("requests").size());
  }
  EXPECT_GT(live_seen, 0);
  EXPECT_GT(cached_seen, 0);
  EXPECT_GT(requests_seen, 0);
  EXPECT_GT(changes, 100);
}

TEST(LiveFeed, AtRestItShowsTheSameAsTheMetrics) {
  Page page;
  const Reply reply = page.api.complete(R"("prompt": "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz", "max_tokens": 5, "ignore_eos": true)");
  ASSERT_TRUE(page.api.becomes_idle());
  const json frame = page.once();
  const EngineStats stats = page.api.engine->stats();
  EXPECT_EQ(frame.at("pages").at("cached").get<int64_t>(), stats.pages.cached);
  EXPECT_EQ(frame.at("pages").at("free").get<int64_t>(), stats.pages.free);
  EXPECT_EQ(frame.at("generated_tokens").get<int64_t>(), 5);
  EXPECT_EQ(frame.at("prefill_tokens").get<int64_t>(), reply.json().at("usage").at("prompt_tokens").get<int64_t>());
  EXPECT_EQ(frame.at("first_tokens").get<int64_t>(), 1);
  EXPECT_EQ(frame.at("next_tokens").get<int64_t>(), 4);
  const json& model = frame.at("model");
  EXPECT_EQ(model.at("page_bytes").get<int64_t>(), kApiPageBytes);
  EXPECT_EQ(model.at("mha_token_bytes").get<int64_t>(), 4 * model.at("token_bytes").get<int64_t>());
  EXPECT_EQ(model.at("pages").get<int64_t>(), 64);
  EXPECT_EQ(model.at("kv_heads").get<int64_t>(), 2);
  EXPECT_EQ(frame.at("requests").size(), 0u);
}

// With API keys, tenants do not see each other: neither rows nor whose a page is.
TEST(LiveFeed, WithoutRequestsNothingOfOneIsSent) {
  Page page({.runner = {.step_time = std::chrono::milliseconds(1)}}, {.feed = {.show_requests = false}});
  std::thread client([&] { page.api.complete(R"("prompt": "abcdefghijklmnopqrstuvwxyz", "max_tokens": 200, "ignore_eos": true)"); });
  Watcher watcher(60);
  page.get("/v1/live").stream(watcher);
  client.join();
  std::vector<uint8_t> cells;
  bool live = false;
  for (const json& frame : watcher.frames) {
    EXPECT_FALSE(frame.contains("requests"));
    apply(frame, &cells);
    EXPECT_TRUE(std::ranges::all_of(cells, [](uint8_t c) { return c <= kCellLive; }));
    live |= std::ranges::count(cells, kCellLive) > 0;
  }
  EXPECT_TRUE(live);
}

TEST(LiveFeed, OneWatcherTooManyIsRefused) {
  Page page({}, {.watchers_max = 2});
  const HttpResponse first = page.get("/v1/live");
  {
    const HttpResponse second = page.get("/v1/live");
    EXPECT_EQ(second.status, 200);
    const HttpResponse third = page.get("/v1/live");
    EXPECT_EQ(third.status, 503);
    EXPECT_THAT(error_text(third), HasSubstr("2 watch already"));
  }
  EXPECT_EQ(page.get("/v1/live").status, 200) << "who never began to read has left as well";

  Page closed({}, {.watchers_max = 0});
  EXPECT_EQ(closed.get("/v1/live").status, 503);
  EXPECT_THAT(error_text(closed.get("/v1/live")), HasSubstr("--live-watchers-max"));
}

TEST(LiveFeed, EndsWithTheDrainAndWaitsForTheModel) {
  Page page;
  page.api.engine->drain(std::chrono::seconds(5));
  Watcher watcher(100);
  page.get("/v1/live").stream(watcher);
  EXPECT_EQ(watcher.frames.size(), 1u);
  EXPECT_TRUE(watcher.frames.back().at("draining").get<bool>());

  page.api.served = nullptr;
  EXPECT_EQ(page.get("/v1/live").status, 503);
  EXPECT_THAT(error_text(page.get("/v1/live")), HasSubstr("being loaded"));
}

// Who watches when the engine thread ends is told so, and does not keep the server from ending.
TEST(LiveFeed, EndsWithTheEngineThread) {
  struct Thrower : EngineObserver {
    void on_step(const StepObservation&) override { throw std::runtime_error("no memory"); }
  } thrower;
  ApiSetup setup;
  setup.observer = &thrower;
  Page page(setup);
  Watcher watcher(INT_MAX);
  std::future<void> watching = std::async(std::launch::async, [&] { page.get("/v1/live").stream(watcher); });
  EXPECT_EQ(page.api.complete(R"("prompt":"a","max_tokens":3)").status, 500);
  page.api.engine->drain(std::chrono::seconds(5));
  ASSERT_EQ(watching.wait_for(std::chrono::seconds(5)), std::future_status::ready);
  EXPECT_TRUE(watcher.frames.back().at("fault").get<bool>());
}

// The engine is asked once for all watchers, and hardly at all while nothing happens.
TEST(LiveFeed, FramesAreSharedAndRareAtRest) {
  Page page;
  std::vector<std::future<std::vector<json>>> watchers;
  for (int i = 0; i < 4; ++i) {
    watchers.push_back(std::async(std::launch::async, [&] {
      Watcher watcher(5);
      page.get("/v1/live").stream(watcher);
      return watcher.frames;
    }));
  }
  const auto begin = std::chrono::steady_clock::now();
  for (auto& watcher : watchers) {
    EXPECT_EQ(watcher.get().size(), 5u);
  }
  // Five frames at rest are at least four quiet periods, whatever the number of watchers.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(60));
}

TEST(Dashboard, OnlyPagesOfPeersMayReadFromAnotherOrigin) {
  Page page({}, {.peers = {make_peer("mha", ":8001"), make_peer("far", "https://far.example:9000")}});
  const auto allowed = [&](const std::string& host, const std::string& origin) {
    return header_of(page.get("/v1/live", {.query = "once", .host = host, .origin = origin}), "Access-Control-Allow-Origin");
  };
  EXPECT_EQ(allowed("gpu-1:8000", "http://gpu-1:8001"), "http://gpu-1:8001");
  EXPECT_EQ(allowed("[::1]:8000", "http://[::1]:8001"), "http://[::1]:8001");
  EXPECT_EQ(allowed("gpu-1:8000", "https://far.example:9000"), "https://far.example:9000");
  EXPECT_EQ(allowed("gpu-1:8000", "http://evil.example:8001"), "");
  EXPECT_EQ(allowed("gpu-1:8000", "http://gpu-1:8002"), "");
  EXPECT_EQ(allowed("gpu-1:8000", "http://far.example:9000"), "");
  EXPECT_EQ(allowed("gpu-1:8000", ""), "");
  EXPECT_EQ(allowed("", "http://:8001"), "");
  EXPECT_EQ(allowed("a\r\nb:8000", "http://a\r\nb:8001"), "");
  Page alone;
  EXPECT_EQ(header_of(alone.get("/v1/live", {.query = "once", .host = "a:8000", .origin = "http://a:8001"}), "Access-Control-Allow-Origin"), "");
}

TEST(Dashboard, ThePageMayReachNothingElse) {
  Page page({}, {.peers = {make_peer("mha", ":8001"), make_peer("far", "https://far.example:9000")}});
  const HttpResponse html = page.get("/", {.host = "gpu-1:8000"});
  EXPECT_EQ(html.content_type, "text/html; charset=utf-8");
  EXPECT_EQ(header_of(html, "Content-Security-Policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' http://gpu-1:8001 "
            "https://gpu-1:8001 https://far.example:9000; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  EXPECT_THAT(header_of(page.get("/", {.host = "x; script-src *"}), "Content-Security-Policy"), Not(HasSubstr("*")));

  size_t files = 0;
  for (const Route& route : page.routes) {
    if (route.path.starts_with("/v1/")) {
      EXPECT_FALSE(route.is_public) << route.path;
      continue;
    }
    ++files;
    EXPECT_TRUE(route.is_public) << route.path;
    const std::string body = page.get(route.path).body;
    EXPECT_GT(body.size(), 500u) << route.path;
    // Whatever is named is on this server, but for the name of SVG's own language.
    for (size_t at = 0; (at = body.find("://", at)) != std::string::npos; ++at) {
      EXPECT_TRUE(body.compare(at, 14, "://www.w3.org/") == 0) << route.path << ": " << body.substr(at, 40);
    }
    for (size_t at = 0; (at = body.find("\"/page/", at)) != std::string::npos; ++at) {
      EXPECT_NO_THROW(page.get(body.substr(at + 1, body.find('"', at + 1) - at - 1)));
    }
  }
  EXPECT_GE(files, 5u);
  EXPECT_EQ(json::parse(page.get("/v1/live/peers").body),
            json::parse(R"({"peers": [{"name": "mha", "url": ":8001"}, {"name": "far", "url": "https://far.example:9000"}]})"));
}

TEST(Peer, BadOnesAreNamed) {
  for (const char* url : {"", ":", ":0", ":65536", ":80a", "http://", "http://a/b", "http://a:x", "ftp://a", "a:80", "http://a b", "http://u@a"}) {
    EXPECT_THROW(make_peer("name", url), std::runtime_error) << url;
  }
  EXPECT_THROW(make_peer("", ":80"), std::runtime_error);
  EXPECT_THROW(make_peer("a b", ":80"), std::runtime_error);
  EXPECT_NO_THROW(make_peer("a", "http://10.0.0.1"));
  EXPECT_NO_THROW(make_peer("a", "https://[::1]:8443"));
}

}  // namespace
}  // namespace headroom
