// Accepts connections and gathers whole requests, so that a worker is taken only when there is something to answer.
//
//   accept → gather head and body under limits → dispatch (a worker owns the connection) → finish() → gather the next, or close
//
// One thread runs serve() and owns every connection that is being gathered, idle, or closing; between dispatch and finish() a connection
// belongs to its worker. A slow or idle client therefore costs a file descriptor and what it has sent, never a thread.
// Invariants: connections, buffered bytes and the time of each phase are bounded by Options; a failing accept() is never the end of it,
// nor is a lack of memory, which costs the connection that needed it.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/http_framing.h"

namespace headroom {

struct ListenerOptions {
  FramingLimits framing;
  size_t connections_max = 2048;           // one more: the one that has been idle, or slow, for longest is closed; if workers hold all, it waits
  int64_t buffered_bytes_max = 256 << 20;  // of all bodies that are gathered or not read yet; more: 503
  double read_seconds_max = 10;            // for a head; a body may take longer if it keeps body_bytes_per_second_min
  double body_bytes_per_second_min = 16 << 10;
  double keep_alive_seconds_max = 5;
  int32_t keep_alive_requests_max = 1000;
};

class Connection {
 public:
  // `buffered_bytes`: the memory that input takes is counted in there until it is read.
  Connection(int fd, FramingLimits limits, std::atomic<int64_t>* buffered_bytes) : frame(limits), fd_(fd), buffered_bytes_(*buffered_bytes) {}
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int fd() const { return fd_; }
  bool peer_gone() const;  // has closed or reset, or at least ended its side
  void forget_body();      // the worker has taken it out of `frame` and read it: it is counted no more

  RequestFrame frame;
  bool keep_alive = true;  // after this request; the worker may clear it

 private:
  friend class Listener;
  using Clock = std::chrono::steady_clock;

  void count_bytes(int64_t bytes);

  const int fd_;
  std::string unread_;           // came after the end of the request: the next one, pipelined
  std::atomic<int64_t>& buffered_bytes_;  // of all connections
  int64_t counted_bytes_ = 0;    // of this one, in there
  int32_t requests_ = 0;
  bool watched_ = false;         // by epoll
  bool discarding_ = false;      // answered with an error; waits for the peer to read it
  Clock::time_point phase_begin_ = Clock::now();  // of idleness, of the request, or of the discarding
  std::unique_ptr<Connection> next_finished_;      // in Listener::finished_: to come back must not need memory
};

class Listener {
 public:
  using Dispatch = std::function<bool(std::unique_ptr<Connection>&)>;      // false: nobody can take it
  using Refuse = std::function<std::string(int status, const char* message)>;  // whole response, closing

  Listener(ListenerOptions options, Dispatch dispatch, Refuse refuse);
  ~Listener();

  void bind(const std::string& host, int port);  // throws std::runtime_error with one line that says what to do
  int port() const { return port_; }
  int fd() const { return listen_fd_; }
  bool is_local() const { return is_local_; }           // reached from this machine alone
  void serve();                                        // until stop() and the last finish()
  void stop();                                         // any thread
  void finish(std::unique_ptr<Connection> connection) noexcept;  // any thread: the worker is done with it
  bool stopping() const { return stopping_.load(); }

 private:
  using Clock = Connection::Clock;

  void accept_all();
  void read_some(Connection& connection);
  void advance(std::unique_ptr<Connection> connection);  // after new bytes, or after a response
  void resume(std::unique_ptr<Connection> connection);   // after a response
  void refuse(Connection& connection, int status, const char* message);
  void take_finished();
  void close_expired(Clock::time_point now);
  bool expired(const Connection& connection, Clock::time_point now) const;
  void evict_one();
  void close_all();
  void keep(std::unique_ptr<Connection> connection);
  void unwatch(Connection& connection);
  void set_accepting(bool accepting);

  const ListenerOptions options_;
  const Dispatch dispatch_;
  const Refuse refuse_;
  int listen_fd_ = -1, epoll_fd_ = -1, wake_fd_ = -1;
  int port_ = 0;
  bool is_local_ = false;
  bool accepting_ = false;
  std::array<char, 64 << 10> buffer_;  // of serve()'s thread: what is read at once
  std::atomic<int64_t> buffered_bytes_{0};
  int64_t dispatched_ = 0;  // connections that workers hold
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;
  std::atomic<bool> stopping_{false};
  std::mutex finished_mutex_;
  std::unique_ptr<Connection> finished_;  // a list
};

}  // namespace headroom
