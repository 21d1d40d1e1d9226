#include "server/api_keys.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>

#include "server/options.h"
#include "server/sha256.h"

namespace headroom {
namespace {

struct LimitRow {
  const char* name;
  int64_t max;
  void (*set)(TenantLimits&, int64_t);
};

constexpr LimitRow kLimits[] = {
    {"weight", FairQueue::kWeightMax, [](TenantLimits& l, int64_t value) { l.weight = static_cast<int32_t>(value); }},
    {"running_requests_max", 1 << 20, [](TenantLimits& l, int64_t value) { l.running_requests_max = static_cast<int32_t>(value); }},
    {"kv_percent_max", 100, [](TenantLimits& l, int64_t value) { l.kv_percent_max = static_cast<int32_t>(value); }},
    {"queue_requests_max", 1 << 20, [](TenantLimits& l, int64_t value) { l.queue_requests_max = static_cast<int32_t>(value); }},
    {"queue_tokens_max", int64_t{1} << 40, [](TenantLimits& l, int64_t value) { l.queue_tokens_max = value; }},
    {"requests_per_minute", int64_t{1} << 40, [](TenantLimits& l, int64_t value) { l.requests_per_minute = value; }},
    {"tokens_per_minute", int64_t{1} << 40, [](TenantLimits& l, int64_t value) { l.tokens_per_minute = value; }},
};

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  });
}

bool is_digest(std::string_view digest) {
  return digest.size() == 64 && digest.find_first_not_of("0123456789abcdef") == digest.npos;
}

// What is wrong with it; empty if nothing is. The text is not repeated unless it is a known name.
std::string set_limit(std::string_view word, std::set<std::string>& seen, TenantLimits& limits) {
  const std::string name(word.substr(0, word.find('=')));
  std::vector<std::string> known;
  for (const LimitRow& row : kLimits) known.emplace_back(row.name);
  const auto row = std::ranges::find(kLimits, name, &LimitRow::name);
  if (row == std::end(kLimits) || name.size() == word.size()) {
    const std::string nearest = nearest_name(name, known);
    if (!nearest.empty()) return "a limit is written " + nearest + "=NUMBER";
    std::string all;
    for (const std::string& one : known) all += (all.empty() ? "" : ", ") + one;
    return "what follows the digest must be limits, NAME=NUMBER: " + all;
  }
  int64_t value = 0;
  const std::string_view number = word.substr(name.size() + 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (error != std::errc() || end != number.data() + number.size() || value < 1 || value > row->max) {
    return name + " must be a whole number from 1 to " + std::to_string(row->max);
  }
  if (!seen.insert(name).second) return name + " is given twice";
  row->set(limits, value);
  return {};
}

// Adds the key of one line. Returns what is wrong with it.
std::string add_key(const std::vector<std::string>& words, ApiKeys& result) {
  const std::string form = "write NAME, then the SHA-256 of the key as 64 digits (printf %s KEY | sha256sum), then its limits";
  if (words.size() < 2 || !is_digest(words[1])) return form;
  if (!is_name(words[0])) return "a name is at most 64 letters, digits, '.', '_' or '-'";
  if (std::ranges::find(result.keys, words[1], &ApiKey::digest) != result.keys.end()) return "the same key stands on an earlier line";
  const auto known = std::ranges::find(result.tenants, words[0], &Tenant::name);
  const TenantId tenant{static_cast<int32_t>(known - result.tenants.begin())};
  result.keys.push_back({words[1], tenant});
  if (known != result.tenants.end()) {
    return words.size() == 2 ? "" : "the limits of a name stand with its first key; further keys have none";
  }
  if (result.tenants.size() == kTenantsMax) return "there may be " + std::to_string(kTenantsMax) + " names at most";
  Tenant added{.name = words[0], .limits = {}};
  std::set<std::string> seen;
  for (size_t i = 2; i < words.size(); ++i) {
    if (std::string fault = set_limit(words[i], seen, added.limits); !fault.empty()) return fault;
  }
  result.tenants.push_back(std::move(added));
  return {};
}

}  // namespace

ApiKeys parse_api_keys(std::string_view text, const std::string& source) {
  ApiKeys result;
  std::istringstream lines{std::string(text)};
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream in(line.substr(0, line.find('#')));
    const std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
    if (words.empty()) continue;
    if (const std::string fault = add_key(words, result); !fault.empty()) {
      throw std::runtime_error(source + ": line " + std::to_string(number) + ": " + fault);
    }
  }
  // An empty list would mean that no key is needed.
  if (result.keys.empty()) throw std::runtime_error(source + " holds no key: " + "write NAME and the SHA-256 of a key on a line");
  return result;
}

ApiKeys load_api_keys(const std::string& path) {
  return parse_api_keys(read_own_file(path, "the file of API keys"), "the file of API keys " + path);
}

const ApiKey* find_api_key(const std::vector<ApiKey>& keys, std::string_view key) {
  const std::string digest = sha256_hex(key);
  const ApiKey* found = nullptr;
  for (const ApiKey& one : keys) found = equal_in_constant_time(digest, one.digest) ? &one : found;
  return found;
}

}  // namespace headroom
