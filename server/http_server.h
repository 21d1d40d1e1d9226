// The HTTP front: listener, limits, authentication, route table, drain. http_server.cc is the only file that sees httplib.h.
//
// listener.h gathers whole requests on the thread that called serve(); workers answer them. Handlers run on worker threads, several at
// once; a handler that streams holds its worker until the stream ends.
// Invariants: at most streams_max requests that generate are being answered, and reserve_workers threads remain for the rest; an
// exception never leaves a worker; no text of an exception reaches a client.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_keys.h"

namespace headroom {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                      // 0: any free one
  bool check_host_name = false;         // where only this machine is listened to, a Host that is neither an address nor localhost nor one of host_names is answered 421
  std::vector<std::string> host_names;
  int32_t streams_max = 1280;           // requests that generate at the same time; one more is answered 503
  int32_t reserve_workers = 8;          // kept for /livez, /readyz, /metrics and other short answers
  int32_t pending_requests_max = 1024;  // whole requests that wait for a worker; one more is answered 503
  int32_t connections_max = 2048;       // one more: the one idle, or slow, for longest is closed
  int64_t body_bytes_max = 16 << 20;    // more: 413
  int64_t buffered_bytes_max = 256 << 20;  // of all bodies that are received or not read yet; more: 503
  double read_seconds_max = 10;         // for a request to arrive; a body may take longer at 16 KiB/s or more
  double write_seconds_max = 10;        // of one write: a client that does not read is cut
  double keep_alive_seconds_max = 5;
  int32_t keep_alive_requests_max = 1000;
  std::vector<ApiKey> api_keys;  // empty: no keys needed
  bool metrics_public = false;   // /metrics without a key; it has the names of tenants
};

struct HttpRequest {
  std::string query;
  std::string body;
  std::string host, origin;  // headers of these names; empty without
  std::string request_id;  // X-Request-Id if well-formed, else the trace id of traceparent, else made here; echoed in the response
  TenantId tenant{};       // of the API key that was used; 0 without keys
  std::function<bool()> client_gone;  // true once the peer has closed; cheap enough for every 50 ms; valid while the request is
  std::function<void()> body_dropped;

  // The body was read. A handler that goes on for long says so, and others may send theirs.
  void drop_body() {
    body = std::string();
    if (body_dropped) body_dropped();
  }
};

// What a streaming handler writes to. write() is false when the client is gone or too slow: stop then.
class HttpStream {
 public:
  virtual ~HttpStream() = default;
  virtual bool write(std::string_view bytes) = 0;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  // When set, the body is what this writes, chunked; it runs after the handler returned, on the same worker, exactly once or, if
  // the connection broke before, not at all (its destructor must release what it holds). An exception that leaves it ends the stream with
  // stream_failure; without one the connection is cut, so that the client sees that the body is not whole.
  std::function<void(HttpStream&)> stream;
  std::string stream_failure;
};

// Route attributes: `generates` counts against streams_max; `is_public` needs no key.
struct Route {
  std::string method;
  std::string path;  // literal; a GET route answers HEAD too
  bool generates = false;
  bool is_public = false;
  std::function<void(HttpRequest&, HttpResponse&)> handle;
};

// Called after each answered request: what the metrics count. `path` is the route's, or "other"; `method` one of GET, HEAD, POST or "other".
using HttpObserver = std::function<void(std::string_view path, std::string_view method, int status, double seconds)>;

// {"error":{"message","type","param":null,"code":null}}: the form of every error that this layer answers.
std::string http_error_body(int status, std::string_view message);

class HttpServer {
 public:
  HttpServer(HttpServerOptions options, std::vector<Route> routes, HttpObserver observer);
  ~HttpServer();

  // Binds; throws std::runtime_error with one line that says what to do ("port 8000 of 127.0.0.1 is in use: …").
  void bind();
  int port() const;
  // Serves until stop(); returns when every open request has been answered.
  void serve();
  // No new connections; open requests may finish. Any thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headroom
