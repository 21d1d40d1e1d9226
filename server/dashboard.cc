#include "server/dashboard.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "server/api_error.h"
#include "server/json_writer.h"
#include "server/sse.h"

namespace headroom {
namespace {

const char* content_type(std::string_view file) {
  if (file.ends_with(".css")) return "text/css; charset=utf-8";
  if (file.ends_with(".js")) return "text/javascript; charset=utf-8";
  return "text/html; charset=utf-8";
}

class Dashboard {
 public:
  explicit Dashboard(DashboardOptions options) : options_(std::move(options)), feed_(options_.feed) {}

  void file(const PageFile& file, const HttpRequest& request, HttpResponse& response) const;
  void live(const HttpRequest& request, HttpResponse& response);
  void peers(HttpResponse& response) const;

 private:
  // Held by each watcher.
  struct Seat {
    explicit Seat(std::atomic<int32_t>& taken_in) : taken(taken_in) { ++taken; }
    ~Seat() { --taken; }
    Seat(const Seat&) = delete;
    Seat& operator=(const Seat&) = delete;
    std::atomic<int32_t>& taken;
  };

  const DashboardOptions options_;
  LiveFeed feed_;
  std::atomic<int32_t> watchers_{0};
};

void Dashboard::file(const PageFile& file, const HttpRequest& request, HttpResponse& response) const {
  std::string connect = "'self'";
  for (const Peer& peer : options_.peers) {
    for (const std::string& origin : origins_of(peer, request.host)) connect += " " + origin;
  }
  response.content_type = content_type(file.name);
  response.body = file.bytes;
  response.headers = {
      {"Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src " + connect +
                                      "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-cache"}};
}

void Dashboard::live(const HttpRequest& request, HttpResponse& response) {
  const auto refuse = [&](ApiError error) { respond_with_error(error, &response); };
  bool is_peer = false;
  for (const Peer& peer : options_.peers) {
    const auto origins = origins_of(peer, request.host);
    is_peer |= std::ranges::find(origins, request.origin) != origins.end();
  }
  const auto served = options_.served();
  const auto seat = std::make_shared<Seat>(watchers_);
  if (served == nullptr) {
    refuse(unavailable("the model is being loaded"));
  } else if (watchers_ > options_.watchers_max) {
    refuse(unavailable(options_.watchers_max == 0 ? "this server shows nothing live: --live-watchers-max is 0"
                                                  : std::to_string(options_.watchers_max) + " watch already; close a page, or raise --live-watchers-max"));
  } else if (request.query == "once") {
    response.body = feed_.picture(served);
  } else {
    response.content_type = std::string(kSseContentType);
    response.headers.emplace_back("X-Accel-Buffering", "no");
    response.stream = [this, served, seat](HttpStream& stream) { feed_.watch(served, &stream); };
  }
  response.headers.emplace_back("Cache-Control", "no-store");
  if (!options_.peers.empty()) response.headers.emplace_back("Vary", "Origin");
  if (is_peer) response.headers.emplace_back("Access-Control-Allow-Origin", request.origin);
}

void Dashboard::peers(HttpResponse& response) const {
  JsonWriter json(&response.body);
  json.begin_object().key("peers").begin_array();
  for (const Peer& peer : options_.peers) json.begin_object().key("name").string(peer.name).key("url").string(peer.url).end_object();
  json.end_array().end_object();
}

}  // namespace

std::vector<Route> dashboard_routes(DashboardOptions options) {
  const auto dashboard = std::make_shared<Dashboard>(std::move(options));
  std::vector<Route> routes;
  for (const PageFile& file : page_files()) {
    routes.push_back({.method = "GET",
                      .path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name),
                      .is_public = true,
                      .handle = [dashboard, file](const HttpRequest& request, HttpResponse& response) { dashboard->file(file, request, response); }});
  }
  // A watcher holds a worker as one that generates does, and must not take one of those that are kept for probes.
  routes.push_back({.method = "GET",
                    .path = "/v1/live",
                    .generates = true,
                    .handle = [dashboard](const HttpRequest& request, HttpResponse& response) { dashboard->live(request, response); }});
  routes.push_back({.method = "GET",
                    .path = "/v1/live/peers",
                    .handle = [dashboard](const HttpRequest&, HttpResponse& response) { dashboard->peers(response); }});
  return routes;
}

}  // namespace headroom
