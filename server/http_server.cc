#include "server/http_server.h"

#include <arpa/inet.h>
#include <httplib.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <typeinfo>

#include "kernels/check.h"
#include "server/api_error.h"
#include "server/listener.h"
#include "server/logging.h"
#include "server/worker_pool.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int32_t kExceptionLinesPerSecond = 10;
constexpr double kWriteBytesPerSecondMin = 16 << 10;  // a large answer may take longer than write_seconds_max at this rate

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string make_request_id() {
  std::array<unsigned char, 16> random{};
  CHECK_EQ(getrandom(random.data(), random.size(), 0), static_cast<ssize_t>(random.size()));
  std::string id;
  for (const unsigned char byte : random) {
    id += "0123456789abcdef"[byte >> 4];
    id += "0123456789abcdef"[byte & 15];
  }
  return id;
}

// What may stand in a log line and in a header as it is.
bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  });
}

// W3C Trace Context: 00-<32 hexadecimal digits>-<16>-<2>. Empty if it is not well-formed; then there is no trace.
std::string_view trace_id(std::string_view traceparent) {
  constexpr std::string_view kForm = "00-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
  const auto fits = [](char c, char form) { return form == 'x' ? (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') : c == form; };
  if (traceparent.size() != kForm.size() || !std::equal(traceparent.begin(), traceparent.end(), kForm.begin(), fits)) return {};
  const std::string_view id = traceparent.substr(3, 32);
  const std::string_view span = traceparent.substr(36, 16);
  return id.find_first_not_of('0') == id.npos || span.find_first_not_of('0') == span.npos ? std::string_view() : id;
}

// Names of hosts and types: upper and lower case are the same.
bool same_name(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return lower(x) == lower(y);
  });
}

bool is_address(const std::string& host) {
  in6_addr parsed{};
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    return inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &parsed) == 1;
  }
  return inet_pton(AF_INET, host.c_str(), &parsed) == 1;
}

bool is_json_type(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && type.back() == ' ') type.remove_suffix(1);
  return same_name(type, "application/json");
}

// Reads the head of the request from memory and writes to the socket, within a time for each write.
// The functions of all releases of cpp-httplib are here, hence no `override`.
class SocketStream : public httplib::Stream {
 public:
  SocketStream(const Connection& connection, double write_seconds_max)
      : connection_(connection), rest_(connection.frame.head()), write_seconds_max_(write_seconds_max) {}

  bool is_readable() const { return !rest_.empty(); }
  bool wait_readable() const { return !rest_.empty(); }
  bool is_writable() const { return !failed_ && !connection_.peer_gone(); }
  bool wait_writable() const { return is_writable(); }
  bool is_peer_alive() const { return is_writable(); }

  ssize_t read(char* out, size_t size) {
    const size_t count = rest_.copy(out, size);
    rest_.remove_prefix(count);
    return static_cast<ssize_t>(count);
  }

  ssize_t write(const char* bytes, size_t size) {
    const double seconds_max = write_seconds_max_ + static_cast<double>(size) / kWriteBytesPerSecondMin;
    const Clock::time_point begin = Clock::now();
    size_t done = 0;
    while (done < size && !failed_) {
      const ssize_t sent = send(connection_.fd(), bytes + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) {
        done += static_cast<size_t>(sent);
      } else if (errno != EINTR) {
        failed_ = (errno != EAGAIN && errno != EWOULDBLOCK) || !wait_for_room(seconds_max - seconds_since(begin));
      }
    }
    return failed_ ? -1 : static_cast<ssize_t>(size);
  }

  void get_remote_ip_and_port(std::string&, int&) const {}
  void get_local_ip_and_port(std::string&, int&) const {}
  socket_t socket() const { return INVALID_SOCKET; }  // nobody else shall touch it
  time_t duration() const { return 0; }
  bool failed() const { return failed_; }

 private:
  bool wait_for_room(double seconds) const {
    if (seconds <= 0) return false;
    pollfd poll_fd{.fd = connection_.fd(), .events = POLLOUT | POLLRDHUP, .revents = 0};
    const int ready = poll(&poll_fd, 1, static_cast<int>(seconds * 1000) + 1);
    return (ready > 0 && (poll_fd.revents & (POLLERR | POLLHUP | POLLRDHUP)) == 0) || (ready < 0 && errno == EINTR);
  }

  const Connection& connection_;
  std::string_view rest_;
  const double write_seconds_max_;
  bool failed_ = false;
};

// One request on its worker.
struct Exchange {
  Connection& connection;
  std::string_view path = "other";
  std::string_view method = "other";
  std::string request_id;
  int status = 400;
  bool holds_slot = false;
  bool closing = false;  // the response says so
};

// cpp-httplib calls its handlers without a pointer of ours; a request runs on one thread from its first byte to its last.
thread_local Exchange* current_exchange = nullptr;

// Parses the request line and formats responses. Accepting, reading, time limits and threads are listener.h's; every request is
// answered in the pre-routing handler, so that no regular expression of the library's router ever runs.
class Formatter : public httplib::Server {
 public:
  void prepare(int listen_fd, const HttpServerOptions& options) {
    svr_sock_ = listen_fd;  // the library ends streams when it is invalid
    set_keep_alive_timeout(static_cast<time_t>(options.keep_alive_seconds_max));
    set_keep_alive_max_count(static_cast<size_t>(options.keep_alive_requests_max));
  }

  // False when the connection must be closed.
  bool run(SocketStream& stream, bool close_connection) { return run_any(stream, close_connection); }

 private:
  // A template, so that the form that this release of the library does not have is not compiled.
  template <typename Strm>
  bool run_any(Strm& stream, bool close_connection) {
    bool closed = false;
    const std::function<void(httplib::Request&)> no_setup;
    const std::string no_address;
    if constexpr (requires { this->process_request(stream, close_connection, closed, no_setup); }) {
      return this->process_request(stream, close_connection, closed, no_setup) && !closed;
    } else {
      return this->process_request(stream, no_address, 0, no_address, 0, close_connection, closed, no_setup) && !closed;
    }
  }
};

class SinkStream : public HttpStream {
 public:
  explicit SinkStream(httplib::DataSink& sink) : sink_(sink) {}
  bool write(std::string_view bytes) override {
    // An empty chunk would end the body.
    alive_ = alive_ && (bytes.empty() || (sink_.is_writable() && sink_.write(bytes.data(), bytes.size())));
    return alive_;
  }
  bool alive() const { return alive_; }

 private:
  httplib::DataSink& sink_;
  bool alive_ = true;
};

void set_error(HttpResponse& response, int status, std::string_view message) {
  response = HttpResponse{};
  response.status = status;
  response.body = http_error_body(status, message);
}

// What an exception was, without its text: that may hold a piece of the request.
void log_exception(const Exchange& exchange, const char* where) {
  const char* type = "unknown";
  try {
    throw;
  } catch (const std::exception& error) {
    type = typeid(error).name();
  } catch (...) {
  }
  static LineLimit limit(kExceptionLinesPerSecond);
  const std::optional<int64_t> left_out = limit.take(Clock::now());
  if (!left_out) return;
  if (*left_out > 0) spdlog::error("{} lines of exceptions were left out", *left_out);
  spdlog::error("request {} {}: exception {} in the {}", exchange.request_id, exchange.path, type, where);
}

}  // namespace

std::string http_error_body(int status, std::string_view message) {
  return api_error_body({.status = status, .message = std::string(message), .type = std::string(error_type(status))});
}

struct HttpServer::Impl {
  Impl(HttpServerOptions options, std::vector<Route> routes, HttpObserver observer);

  bool dispatch(std::unique_ptr<Connection>& connection);
  void answer(std::unique_ptr<Connection> connection);
  void respond(const httplib::Request& request, httplib::Response& response);
  void handle(const httplib::Request& request, HttpResponse& response);
  bool is_own_name(std::string_view host) const;
  const Route* find_route(const std::string& path, const std::string& method, std::string& allowed) const;
  bool authorize(const httplib::Request& request, const Route* route, TenantId& tenant) const;
  void attach_stream(const httplib::Request& request, HttpResponse& from, httplib::Response& to);
  std::string refusal(int status, const char* message);

  const HttpServerOptions options;
  const HttpObserver observer;
  std::multimap<std::string, Route> routes;
  Formatter formatter;
  Listener listener;
  WorkerPool pool;  // last: its threads use all of the above
};

HttpServer::Impl::Impl(HttpServerOptions options_in, std::vector<Route> routes_in, HttpObserver observer_in)
    : options(std::move(options_in)),
      observer(std::move(observer_in)),
      listener(ListenerOptions{.framing = {.body_bytes_max = static_cast<size_t>(options.body_bytes_max)},
                               .connections_max = static_cast<size_t>(options.connections_max),
                               .buffered_bytes_max = options.buffered_bytes_max,
                               .read_seconds_max = options.read_seconds_max,
                               .keep_alive_seconds_max = options.keep_alive_seconds_max,
                               .keep_alive_requests_max = options.keep_alive_requests_max},
               [this](std::unique_ptr<Connection>& connection) { return dispatch(connection); },
               [this](int status, const char* message) { return refusal(status, message); }),
      pool(static_cast<size_t>(options.reserve_workers), static_cast<size_t>(options.streams_max + options.reserve_workers),
           static_cast<size_t>(options.pending_requests_max)) {
  for (Route& route : routes_in) {
    std::string path = route.path;
    routes.emplace(std::move(path), std::move(route));
  }
  formatter.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    respond(request, response);
    return httplib::Server::HandlerResponse::Handled;
  });
  // What the library itself refuses, such as a method that it does not know.
  formatter.set_error_handler([](const httplib::Request&, httplib::Response& response) {
    if (response.body.empty()) {
      response.set_content(http_error_body(response.status, "the request line cannot be read"), "application/json");
    }
  });
  // What leaves the handler above can only be a lack of memory; the library's own answer would hold the exception's text.
  formatter.set_exception_handler([](const httplib::Request&, httplib::Response& response, const std::exception_ptr&) {
    response.status = 500;
    response.set_content(R"({"error":{"message":"internal error","type":"internal_server_error","param":null,"code":null}})", "application/json");
  });
  formatter.set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    current_exchange->status = response.status;
    current_exchange->closing = response.get_header_value("Connection") == "close";
    response.set_header("X-Request-Id", current_exchange->request_id);
  });
}

bool HttpServer::Impl::dispatch(std::unique_ptr<Connection>& connection) {
  Connection* owned = connection.release();
  if (pool.submit([this, owned] { answer(std::unique_ptr<Connection>(owned)); })) return true;
  connection.reset(owned);
  return false;
}

void HttpServer::Impl::answer(std::unique_ptr<Connection> connection) {
  const Clock::time_point begin = Clock::now();
  Exchange exchange{.connection = *connection};
  current_exchange = &exchange;
  SocketStream stream(*connection, options.write_seconds_max);
  bool keep = false;
  try {
    exchange.request_id = make_request_id();
    keep = formatter.run(stream, !connection->keep_alive || listener.stopping());
  } catch (...) {
    log_exception(exchange, "response");
  }
  if (exchange.holds_slot) pool.end_lasting();
  current_exchange = nullptr;
  connection->keep_alive = connection->keep_alive && keep && !exchange.closing && !stream.failed();
  const double seconds = seconds_since(begin);
  try {
    if (observer) observer(exchange.path, exchange.method, exchange.status, seconds);
  } catch (...) {
    log_exception(exchange, "metrics");
  }
  spdlog::debug("request {} {} {} {} {:.3f} s", exchange.request_id, exchange.method, exchange.path, exchange.status, seconds);
  listener.finish(std::move(connection));
}

void HttpServer::Impl::respond(const httplib::Request& request, httplib::Response& response) {
  Exchange& exchange = *current_exchange;
  if (request.method == "GET" || request.method == "HEAD" || request.method == "POST") {
    exchange.method = request.method == "GET" ? "GET" : request.method == "POST" ? "POST" : "HEAD";
  }
  const std::string id = request.get_header_value("X-Request-Id");
  const std::string traceparent = request.get_header_value("traceparent");
  if (is_request_id(id)) {
    exchange.request_id = id;
  } else if (const std::string_view trace = trace_id(traceparent); !trace.empty()) {
    exchange.request_id = trace;  // so that log lines and answers are found from the trace
  }

  HttpResponse answer;
  try {
    handle(request, answer);
  } catch (...) {
    log_exception(exchange, "handler");
    set_error(answer, 500, "internal error");
  }
  response.status = answer.status;
  for (const auto& [name, value] : answer.headers) response.set_header(name, value);
  if (answer.stream) {
    attach_stream(request, answer, response);
  } else {
    response.set_content(std::move(answer.body), answer.content_type);
  }
}

void HttpServer::Impl::handle(const httplib::Request& request, HttpResponse& response) {
  Exchange& exchange = *current_exchange;
  if (options.check_host_name && listener.is_local() && !is_own_name(request.get_header_value("Host"))) {
    return set_error(response, 421, "this server listens on its own machine alone: ask it as localhost or by its address, or start it with --host-names");
  }
  std::string allowed;
  const Route* route = find_route(request.path, request.method, allowed);
  HttpRequest in;
  if (!authorize(request, route, in.tenant)) {
    set_error(response, 401, "a valid API key is needed: send \"Authorization: Bearer KEY\"");
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return;
  }
  if (route == nullptr && allowed.empty()) return set_error(response, 404, "there is no such path; see GET /v1/models");
  if (route == nullptr) {
    set_error(response, 405, "this path answers " + allowed);
    response.headers.emplace_back("Allow", allowed);
    return;
  }
  exchange.path = route->path;
  // Also keeps web pages of other origins out: a browser asks before it sends this type.
  if (request.method == "POST" && !is_json_type(request.get_header_value("Content-Type"))) {
    return set_error(response, 415, "the body must be JSON, sent with \"Content-Type: application/json\"");
  }
  if (route->generates) {
    exchange.holds_slot = pool.begin_lasting();
    if (!exchange.holds_slot) {
      set_error(response, 503, "all " + std::to_string(options.streams_max) + " streams are in use, or the system has no thread for one more; try again");
      response.headers.emplace_back("Retry-After", "1");
      return;
    }
  }
  const size_t question = request.target.find('?');
  if (question != std::string::npos) in.query = request.target.substr(question + 1);
  in.host = request.get_header_value("Host");
  in.origin = request.get_header_value("Origin");
  in.body = std::move(exchange.connection.frame.body());
  in.request_id = exchange.request_id;
  in.client_gone = [&connection = exchange.connection] { return connection.peer_gone(); };
  in.body_dropped = [&connection = exchange.connection] { connection.forget_body(); };
  route->handle(in, response);
  in.drop_body();
}

// A web page elsewhere whose name is made to mean this machine (DNS rebinding) is of the same origin to a browser; only the name that the
// browser sends tells. An address cannot be such a name, and who sends none is no browser.
bool HttpServer::Impl::is_own_name(std::string_view host) const {
  const size_t port = host.rfind(':');
  if (port != host.npos && host.find(']', port) == host.npos) host = host.substr(0, port);
  const std::string name(host);
  return name.empty() || is_address(name) || same_name(name, "localhost") ||
         std::ranges::any_of(options.host_names, [&](const std::string& own) { return same_name(name, own); });
}

const Route* HttpServer::Impl::find_route(const std::string& path, const std::string& method, std::string& allowed) const {
  const auto [first, last] = routes.equal_range(path);
  for (auto at = first; at != last; ++at) {
    const Route& route = at->second;
    if (route.method == method || (route.method == "GET" && method == "HEAD")) return &route;
    allowed += (allowed.empty() ? "" : ", ") + (route.method == "GET" ? std::string("GET, HEAD") : route.method);
  }
  return nullptr;
}

// Deny by default: without a key only what is marked public is answered, and an unknown path is as closed as a known one.
bool HttpServer::Impl::authorize(const httplib::Request& request, const Route* route, TenantId& tenant) const {
  if (options.api_keys.empty()) return true;
  if (route != nullptr && (route->is_public || (route->path == "/metrics" && options.metrics_public))) return true;
  const std::string header = request.get_header_value("Authorization");
  constexpr std::string_view kBearer = "Bearer ";
  if (!same_name(std::string_view(header).substr(0, kBearer.size()), kBearer)) return false;
  const ApiKey* key = find_api_key(options.api_keys, std::string_view(header).substr(kBearer.size()));
  if (key == nullptr) return false;
  tenant = key->tenant;
  return true;
}

void HttpServer::Impl::attach_stream(const httplib::Request& request, HttpResponse& from, httplib::Response& to) {
  const auto run = std::make_shared<std::function<void(HttpStream&)>>(std::move(from.stream));
  const auto provider = [run, failure = std::move(from.stream_failure)](size_t, httplib::DataSink& sink) {
    SinkStream out(sink);
    try {
      (*run)(out);
    } catch (...) {
      log_exception(*current_exchange, "stream");
      if (failure.empty() || !out.write(failure)) return false;
    }
    if (out.alive()) sink.done();
    return out.alive();
  };
  if (request.version == "HTTP/1.0") {
    to.set_content_provider(from.content_type, provider);  // knows no chunks: the end of the connection is the end of the body
  } else {
    to.set_chunked_content_provider(from.content_type, provider);
  }
}

// An answer without a worker, for requests that are not whole: the listener closes the connection after it.
std::string HttpServer::Impl::refusal(int status, const char* message) {
  const std::string body = http_error_body(status, message);
  if (observer) observer("other", "other", status, 0);
  std::string response = "HTTP/1.1 " + std::to_string(status) + " Refused\r\nContent-Type: application/json\r\nContent-Length: " +
                         std::to_string(body.size()) + "\r\nConnection: close\r\nX-Request-Id: " + make_request_id() + "\r\n";
  if (status == 503) response += "Retry-After: 1\r\n";
  return response + "\r\n" + body;
}

HttpServer::HttpServer(HttpServerOptions options, std::vector<Route> routes, HttpObserver observer)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(routes), std::move(observer))) {}
HttpServer::~HttpServer() = default;

void HttpServer::bind() {
  impl_->listener.bind(impl_->options.host, impl_->options.port);
  impl_->formatter.prepare(impl_->listener.fd(), impl_->options);
}
int HttpServer::port() const { return impl_->listener.port(); }
void HttpServer::serve() { impl_->listener.serve(); }
void HttpServer::stop() { impl_->listener.stop(); }

}  // namespace headroom
