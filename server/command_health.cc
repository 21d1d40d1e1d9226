#include "server/command_health.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#include "server/command_line.h"

namespace headroom {
namespace {

constexpr size_t kAnswerBytesMax = 16 << 10;
constexpr timeval kSecondsMax = {.tv_sec = 5, .tv_usec = 0};  // of one call to the system

class Socket {
 public:
  explicit Socket(const addrinfo& address) : descriptor_(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol)) {
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &kSecondsMax, sizeof kSecondsMax);
    setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &kSecondsMax, sizeof kSecondsMax);
  }
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool connect_to(const addrinfo& address) const { return descriptor_ >= 0 && connect(descriptor_, address.ai_addr, address.ai_addrlen) == 0; }

  // What the other side says before it closes; what it sends is small, and so is what is sent to it. Empty on an error.
  std::string ask(std::string_view request) const {
    std::string answer;
    if (send(descriptor_, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) return answer;
    std::array<char, 4096> part;
    while (answer.size() < kAnswerBytesMax) {
      const ssize_t count = recv(descriptor_, part.data(), part.size(), 0);
      if (count <= 0) return count < 0 ? "" : answer;
      answer.append(part.data(), static_cast<size_t>(count));
    }
    return answer;
  }

 private:
  int descriptor_;
};

int not_ready(const std::string& why) {
  std::fprintf(stderr, "headroom: %s\n", why.c_str());
  return 1;
}

}  // namespace

int run_health(const std::vector<std::string>& arguments) {
  std::string host = "127.0.0.1";
  int port = 8000;
  CLI::App app("Asks a running server whether it is ready; exit status 0 if it is", "headroom health");
  app.add_option("--host", host, "address of the server")->capture_default_str();
  app.add_option("--port", port, "port of the server")->check(CLI::Range(1, 65535))->capture_default_str();
  if (!parse_command_line(app, arguments)) return 0;
  const std::string at = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0) {
    return not_ready(host + ": " + gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const Socket socket(*address);
    if (!socket.connect_to(*address)) continue;
    const std::string answer = socket.ask("GET /readyz HTTP/1.1\r\nHost: " + at + "\r\nConnection: close\r\n\r\n");
    if (answer.starts_with("HTTP/1.1 200")) return 0;
    const size_t body = answer.find("\r\n\r\n");
    return not_ready(body == std::string::npos ? "no answer from " + at : answer.substr(body + 4));
  }
  return not_ready("no server at " + at + ": " + std::strerror(errno));
}

}  // namespace headroom
