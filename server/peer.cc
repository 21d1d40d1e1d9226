#include "server/peer.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>

namespace headroom {
namespace {

bool is_host_text(std::string_view text) {
  return !text.empty() && text.size() <= 255 && std::ranges::all_of(text, [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_' || c == '[' ||
           c == ']' || c == ':';
  });
}

bool is_port(std::string_view text) {
  int port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

// "host:8000" without its port; a header's text, so anything may be in it.
std::string_view host_name(std::string_view host) {
  if (!is_host_text(host)) return {};
  const size_t colon = host.rfind(':');
  const size_t bracket = host.rfind(']');  // of an IPv6 address, whose colons are its own
  return colon == std::string_view::npos || (bracket != std::string_view::npos && bracket > colon) ? host : host.substr(0, colon);
}

}  // namespace

Peer make_peer(const std::string& name, const std::string& url) {
  const bool is_name = !name.empty() && name.size() <= 32 && std::ranges::all_of(name, [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
  });
  if (!is_name) throw std::runtime_error("must have names of up to 32 letters, digits, dots and dashes before each =");
  std::string_view rest = url;
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (rest.starts_with(scheme)) rest.remove_prefix(scheme.size());
  }
  const std::string_view host = host_name(rest);
  const std::string_view port = rest.substr(host.size());
  const bool is_whole = rest.size() < url.size() && !host.empty() && (port.empty() || is_port(port.substr(1)));
  const bool is_local = url.starts_with(':') && is_port(std::string_view(url).substr(1));
  if (!is_whole && !is_local) throw std::runtime_error("must have http://HOST[:PORT] or :PORT behind each =, without a path");
  return {name, url};
}

std::vector<std::string> origins_of(const Peer& peer, std::string_view host) {
  if (peer.url.front() != ':') return {peer.url};
  const std::string name(host_name(host));
  if (name.empty()) return {};
  return {"http://" + name + peer.url, "https://" + name + peer.url};
}

}  // namespace headroom
