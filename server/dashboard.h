// The page at /: its files, embedded in the binary, and GET /v1/live, which feeds it (live_feed.h). The files hold nothing of this
// server and need no key; the feed needs one where keys are set.
//
// The page may load and ask for nothing but what its own server has (Content-Security-Policy), and /v1/live of the peers that the
// operator named. Pages of those peers, and of nobody else, may read /v1/live of this server from another origin (CORS).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_server.h"
#include "server/live_feed.h"
#include "server/peer.h"

namespace headroom {

struct DashboardOptions {
  LiveFeedOptions feed;
  int32_t watchers_max = 16;  // one more is answered 503
  std::vector<Peer> peers;
  std::function<std::shared_ptr<const ServedModel>()> served;  // null while the model is being loaded
};

std::vector<Route> dashboard_routes(DashboardOptions options);

struct PageFile {
  std::string_view name, bytes;
};
std::vector<PageFile> page_files();  // made by the build from server/dashboard/

}  // namespace headroom
