// Who may use the server, and how much of it: the file of API keys.
//
//   # name   SHA-256 of the key                                                  limits, each optional
//   alice    ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad    weight=2 kv_percent_max=50 tokens_per_minute=60000
//   bob      …
//   bob      …                                                                   # a second key of bob, with the first one's limits
//
// A name is a tenant: its requests share a queue, limits and cached prefixes, and it is a label of metrics. No key is in the file, in
// memory after a request, or in an error: a line that is not understood is named by its number alone, for it may hold one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/scheduler.h"

namespace headroom {

inline constexpr size_t kTenantsMax = 1000;  // bounds the series of /metrics

struct ApiKey {
  std::string digest;  // SHA-256 of the key, 64 lower-case digits
  TenantId tenant{};
};
struct Tenant {
  std::string name;
  TenantLimits limits;
};
struct ApiKeys {
  std::vector<ApiKey> keys;
  std::vector<Tenant> tenants;  // by TenantId
};

// Throws std::runtime_error: the source, the line and what to do.
ApiKeys parse_api_keys(std::string_view text, const std::string& source);
ApiKeys load_api_keys(const std::string& path);

// The tenant of a key, or null. Takes the same time for every key of a length, whether and wherever it is in the list.
const ApiKey* find_api_key(const std::vector<ApiKey>& keys, std::string_view key);

}  // namespace headroom
