// A client of tests that speaks bytes, not HTTP: it can stop in the middle of a request, read slowly, or go away.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "tests/unit/sanitizer_slowdown.h"

namespace headroom {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

class Client {
 public:
  explicit Client(int port, int receive_buffer_bytes = 0) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close_now(); }
  Client(Client&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}
  bool connected() const { return connected_; }
  int fd() const { return fd_; }
  void close_now() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  void send_text(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // One read; empty at the end of the connection, nullopt when nothing came in time.
  std::optional<std::string> read_some(std::chrono::milliseconds wait = std::chrono::seconds(static_cast<int>(5 * kSanitizerSlowdown))) {
    pollfd poll_fd{fd_, POLLIN, 0};
    if (poll(&poll_fd, 1, static_cast<int>(wait.count())) <= 0) return std::nullopt;
    std::string buffer(1 << 16, '\0');
    const ssize_t count = recv(fd_, buffer.data(), buffer.size(), 0);
    buffer.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return buffer;
  }
  std::string read_until(std::string_view mark) {
    std::string all;
    while (all.find(mark) == std::string::npos) {
      const auto part = read_some();
      if (!part || part->empty()) break;
      all += *part;
    }
    return all;
  }
  std::string read_all() {
    std::string all;
    for (;;) {
      const auto part = read_some();
      if (!part) return all + "<still open>";
      if (part->empty()) return all;
      all += *part;
    }
  }

 private:
  int fd_;
  bool connected_ = false;
};

inline std::string get(const std::string& path, const std::string& headers = "Connection: close\r\n") {
  return "GET " + path + " HTTP/1.1\r\nHost: h\r\n" + headers + "\r\n";
}
inline std::string post(const std::string& path, const std::string& body, const std::string& headers = "Connection: close\r\n") {
  return "POST " + path + " HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
}

}  // namespace headroom
