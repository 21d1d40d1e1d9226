#include "server/listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

constexpr int kTickMilliseconds = 50;         // how late a deadline may be noticed, and accept() tried again after a failure
constexpr double kDiscardSecondsMax = 2;      // for a peer to read why it was refused
constexpr double kEarlySeconds = 0.2;         // a client is cut this much before its time is over, to be gone by then
constexpr int kSendBufferBytes = 64 << 10;    // the kernel doubles it: of the 256 KiB that a client who never reads may cost
constexpr int kBacklog = 1024;

double seconds_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

std::string bind_error(const std::string& host, int port, int error) {
  const std::string where = "port " + std::to_string(port) + " of " + host;
  if (error == EADDRINUSE) return where + " is in use: stop what listens there, or choose another with --port (0: any free one)";
  if (error == EACCES) return where + " needs privileges: choose one above 1023 with --port";
  if (error == EADDRNOTAVAIL) return host + " is not an address of this machine: set --host (0.0.0.0: all)";
  return "cannot listen on " + where + ": " + std::strerror(error);
}

// Returns a listening socket, or −1 with errno set.
int listen_on(const addrinfo& address) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol);
  if (fd < 0) return -1;
  const int on = 1;
  // SO_REUSEADDR alone: a restart need not wait for TIME_WAIT, and a port that another process listens on stays an error.
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(fd, address.ai_addr, address.ai_addrlen) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

sockaddr_storage address_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return address;
}

int port_of(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// 127.0.0.0/8, also as IPv6 maps it, or ::1.
bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) return ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24 == 127;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

}  // namespace

Connection::~Connection() {
  close(fd_);
  count_bytes(0);
}

void Connection::count_bytes(int64_t bytes) {
  buffered_bytes_ += bytes - counted_bytes_;
  counted_bytes_ = bytes;
}

void Connection::forget_body() { count_bytes(static_cast<int64_t>(unread_.capacity())); }

bool Connection::peer_gone() const {
  pollfd poll_fd{.fd = fd_, .events = POLLRDHUP, .revents = 0};
  return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

Listener::Listener(ListenerOptions options, Dispatch dispatch, Refuse refuse)
    : options_(options), dispatch_(std::move(dispatch)), refuse_(std::move(refuse)) {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_fd_ < 0 || wake_fd_ < 0) throw std::runtime_error("no file descriptors left: raise `ulimit -n`");
  epoll_event event{.events = EPOLLIN, .data = {.fd = wake_fd_}};
  CHECK(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event) == 0);
}

Listener::~Listener() {
  if (listen_fd_ >= 0) close(listen_fd_);
  close(epoll_fd_);
  close(wake_fd_);
}

void Listener::bind(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) throw std::runtime_error("host \"" + host + "\" is not known (" + gai_strerror(error) + "): set --host");
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  // A name of both families, as localhost is, means IPv4 to most clients.
  for (const bool v4 : {true, false}) {
    for (const addrinfo* address = found; address != nullptr && listen_fd_ < 0; address = address->ai_next) {
      if ((address->ai_family == AF_INET) == v4) listen_fd_ = listen_on(*address);
    }
  }
  if (listen_fd_ < 0) throw std::runtime_error(bind_error(host, port, errno));
  const sockaddr_storage address = address_of(listen_fd_);
  port_ = port_of(address);
  is_local_ = is_loopback(address);
}

void Listener::stop() {
  stopping_.store(true);
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the loop is being woken already.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof one);
}

void Listener::finish(std::unique_ptr<Connection> connection) noexcept {
  {
    const std::lock_guard lock(finished_mutex_);
    connection->next_finished_ = std::move(finished_);
    finished_ = std::move(connection);
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof one);
}

void Listener::serve() {
  CHECK(listen_fd_ >= 0);
  // Without memory what was begun is given up: the connection closes, or the next tick tries again.
  const auto attempt = [](const auto& work) {
    try {
      work();
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  };
  set_accepting(true);
  std::array<epoll_event, 128> events;
  Clock::time_point last_tick = Clock::now();
  while (!stopping_.load() || dispatched_ > 0) {
    const int count = epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), kTickMilliseconds);
    bool may_accept = false;
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == wake_fd_) {
        uint64_t ignored;
        [[maybe_unused]] const ssize_t taken = read(wake_fd_, &ignored, sizeof ignored);
      } else if (fd == listen_fd_) {
        may_accept = true;  // last: a descriptor closed in this round must not be taken for a new one
      } else if (const auto found = connections_.find(fd); found != connections_.end()) {
        if (!attempt([&] { read_some(*found->second); })) connections_.erase(fd);
      }
    }
    take_finished();
    if (stopping_.load()) {
      close_all();
      continue;
    }
    if (may_accept) attempt([&] { accept_all(); });
    const Clock::time_point now = Clock::now();
    if (seconds_between(last_tick, now) * 1000 < kTickMilliseconds) continue;
    last_tick = now;
    attempt([&] { close_expired(now); });
    if (!accepting_) set_accepting(true);
  }
  close_all();
}

void Listener::set_accepting(bool accepting) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = listen_fd_}};
  const bool done = epoll_ctl(epoll_fd_, accepting ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listen_fd_, &event) == 0;
  accepting_ = done == accepting;  // the kernel may be out of memory: the next tick tries again
}

void Listener::accept_all() {
  for (;;) {
    // All are with workers, some of which come back soon: until then who comes waits with the kernel, as closing would reset it.
    if (connections_.empty() && static_cast<size_t>(dispatched_) >= options_.connections_max) return set_accepting(false);
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
      evict_one();
      return set_accepting(false);  // until the next tick: the listening socket stays readable and would spin the loop
    }
    if (fd < 0) continue;  // that connection is gone (ECONNABORTED, EPROTO, …); the next may be well
    std::unique_ptr<Connection> connection(new (std::nothrow) Connection(fd, options_.framing, &buffered_bytes_));
    if (connection == nullptr) {
      close(fd);
      continue;
    }
    if (connections_.size() + static_cast<size_t>(dispatched_) >= options_.connections_max) evict_one();
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof kSendBufferBytes);
    keep(std::move(connection));
  }
}

// Owned by the loop again. A connection that the kernel cannot watch, for want of memory, is closed.
void Listener::keep(std::unique_ptr<Connection> connection) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = connection->fd_}};
  if (!connection->watched_ && epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, connection->fd_, &event) != 0) return;
  connection->watched_ = true;
  const int fd = connection->fd_;
  connections_.emplace(fd, std::move(connection));
}

void Listener::unwatch(Connection& connection) {
  if (!connection.watched_) return;
  CHECK(epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, connection.fd_, nullptr) == 0);
  connection.watched_ = false;
}

void Listener::read_some(Connection& connection) {
  const ssize_t count = recv(connection.fd_, buffer_.data(), buffer_.size(), 0);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  if (count <= 0) {
    connections_.erase(connection.fd_);
    return;
  }
  if (connection.discarding_) return;
  if (!connection.frame.begun()) connection.phase_begin_ = Clock::now();
  connection.unread_.assign(buffer_.data(), static_cast<size_t>(count));
  auto node = connections_.extract(connection.fd_);
  advance(std::move(node.mapped()));
}

void Listener::advance(std::unique_ptr<Connection> connection) {
  RequestFrame& frame = connection->frame;
  const size_t taken = frame.consume(connection->unread_);
  connection->unread_.erase(0, taken);
  connection->unread_.shrink_to_fit();
  connection->count_bytes(static_cast<int64_t>(frame.body().capacity() + connection->unread_.capacity()));
  if (frame.state() == RequestFrame::State::failed) {
    refuse(*connection, frame.status(), frame.message());
  } else if (frame.state() == RequestFrame::State::complete) {
    unwatch(*connection);
    connection->keep_alive = frame.keep_alive() && ++connection->requests_ < options_.keep_alive_requests_max;
    ++dispatched_;
    if (dispatch_(connection)) return;
    --dispatched_;
    refuse(*connection, 503, "the server has no thread for this request; try again");
  } else if (buffered_bytes_ > options_.buffered_bytes_max) {
    refuse(*connection, 503, "too many request bodies are being received; try again");
  } else if (frame.take_expect_continue()) {
    // A client that is not told waits a second or so and sends the body all the same, so a full buffer does no harm.
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    [[maybe_unused]] const ssize_t sent = send(connection->fd_, kContinue.data(), kContinue.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  keep(std::move(connection));
}

// Answers and then reads on for a moment: closing with unread bytes would reset the connection and could destroy the answer.
void Listener::refuse(Connection& connection, int status, const char* message) {
  const std::string response = refuse_(status, message);
  [[maybe_unused]] const ssize_t sent = send(connection.fd_, response.data(), response.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  shutdown(connection.fd_, SHUT_WR);
  connection.discarding_ = true;
  connection.phase_begin_ = Clock::now();
  connection.frame.reset();
  connection.unread_.clear();
  connection.count_bytes(0);
}

void Listener::take_finished() {
  std::unique_ptr<Connection> finished;
  {
    const std::lock_guard lock(finished_mutex_);
    finished = std::move(finished_);
  }
  while (finished != nullptr) {
    std::unique_ptr<Connection> connection = std::exchange(finished, std::move(finished->next_finished_));
    --dispatched_;
    if (connection->keep_alive && !stopping_.load()) resume(std::move(connection));
    if (!accepting_ && !stopping_.load()) set_accepting(true);
  }
}

void Listener::resume(std::unique_ptr<Connection> connection) {
  connection->frame.reset();
  connection->phase_begin_ = Clock::now();
  try {
    advance(std::move(connection));
  } catch (const std::bad_alloc&) {
    // The connection is closed, and with it what the client had sent ahead.
  }
}

bool Listener::expired(const Connection& connection, Clock::time_point now) const {
  const double seconds = seconds_between(connection.phase_begin_, now);
  if (connection.discarding_) return seconds > kDiscardSecondsMax;
  if (!connection.frame.begun()) {
    return seconds > (connection.requests_ > 0 ? options_.keep_alive_seconds_max : options_.read_seconds_max);
  }
  if (seconds <= options_.read_seconds_max - std::min(kEarlySeconds, options_.read_seconds_max / 10)) return false;
  return connection.frame.state() == RequestFrame::State::head ||
         static_cast<double>(connection.frame.body().size()) < seconds * options_.body_bytes_per_second_min;
}

void Listener::close_expired(Clock::time_point now) {
  std::vector<int> closing;
  for (const auto& [fd, connection] : connections_) {
    if (!expired(*connection, now)) continue;
    if (connection->frame.begun()) {
      refuse(*connection, 408, "the request did not arrive in time");
    } else {
      closing.push_back(fd);
    }
  }
  for (const int fd : closing) connections_.erase(fd);
}

void Listener::evict_one() {
  const auto oldest = std::min_element(connections_.begin(), connections_.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->frame.begun(), a.second->phase_begin_) < std::pair(b.second->frame.begun(), b.second->phase_begin_);
  });
  if (oldest != connections_.end()) connections_.erase(oldest);
}

void Listener::close_all() {
  if (listen_fd_ >= 0) close(std::exchange(listen_fd_, -1));
  connections_.clear();
}

}  // namespace headroom
