// A server that the page shows beside this one, and whose pages may watch this one. Plain values.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace headroom {

struct Peer {
  std::string name;
  std::string url;  // http://HOST[:PORT], https:// likewise; or :PORT, of the host that the page came from
};

inline constexpr size_t kPeersMax = 8;

// Throws std::runtime_error: what would do.
Peer make_peer(const std::string& name, const std::string& url);

// The origins that a peer may have for a client that knows this server as `host`: the Host header, whatever is in it.
std::vector<std::string> origins_of(const Peer& peer, std::string_view host);

}  // namespace headroom
