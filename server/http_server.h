// The HTTP front: listener, limits, authentication, route table, drain. http_server.cc is the only file that sees httplib.h.
// Handlers run on worker threads, several at once; a handler that streams holds its worker until the stream ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace headroom {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                        // 0: any free one
  int32_t streams_max = 256;              // workers for requests that generate; one more is answered 503
  int32_t reserve_workers = 8;            // kept for /livez, /readyz, /metrics and other short answers
  int64_t body_bytes_max = 16 << 20;      // more: 413
  double read_seconds_max = 10;           // of one read of a request
  double write_seconds_max = 10;          // of one write: a client that does not read is cut
  double keep_alive_seconds_max = 5;
  int32_t keep_alive_requests_max = 1000;
  std::vector<std::string> api_key_digests;  // SHA-256, hex; empty: no keys needed
  bool metrics_public = true;                // /metrics without a key
};

struct HttpRequest {
  std::string method;
  std::string path;          // without query
  std::string query;
  std::string body;
  std::string request_id;    // of the client (X-Request-Id) if well-formed, else made here; echoed in the response
  std::string tenant;        // digest of the API key that was used; empty without keys
  std::function<bool()> client_gone;  // true once the peer has closed; cheap enough for every 50 ms
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
  // the connection broke before, not at all (its destructor must release what it holds). An exception that leaves it ends the connection.
  std::function<void(HttpStream&)> stream;
};

// Route attributes: `generates` counts against streams_max; `is_public` needs no key.
struct Route {
  std::string method;
  std::string path;  // literal
  bool generates = false;
  bool is_public = false;
  std::function<void(const HttpRequest&, HttpResponse&)> handle;
};

// Called after each answered request: what the metrics count. `path` is the route's, or "other".
using HttpObserver = std::function<void(std::string_view path, std::string_view method, int status, double seconds)>;

class HttpServer {
 public:
  HttpServer(HttpServerOptions options, std::vector<Route> routes, HttpObserver observer);
  ~HttpServer();

  // Binds; throws std::runtime_error with one line that says what to do ("port 8000 of 127.0.0.1 is in use: …").
  void bind();
  int port() const;
  // Serves until stop(); returns when all workers have ended.
  void serve();
  // No new connections; open requests may finish. Any thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headroom
