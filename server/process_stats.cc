#include "server/process_stats.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace headroom {
namespace {

// The number behind `key` in a file of "key: value" or "key value" lines.
std::optional<int64_t> number_after(const char* path, const std::string& key) {
  std::ifstream in(path);
  for (std::string word; in >> word;) {
    int64_t value = 0;
    if (word == key && in >> value) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> number_in(const char* path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;  // also "max"
}

}  // namespace

ProcessStats read_process_stats() {
  ProcessStats stats;
  std::ifstream in("/proc/self/stat");
  std::string line;
  std::getline(in, line);
  std::istringstream fields(line.substr(line.rfind(')') == std::string::npos ? 0 : line.rfind(')') + 1));
  std::string skipped;
  int64_t user_ticks = 0, system_ticks = 0, start_ticks = 0, pages = 0;
  for (int field = 3; field < 14; ++field) fields >> skipped;  // proc(5): utime is field 14
  fields >> user_ticks >> system_ticks;
  for (int field = 16; field < 22; ++field) fields >> skipped;
  fields >> start_ticks >> stats.virtual_bytes >> pages;
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  stats.cpu_seconds = static_cast<double>(user_ticks + system_ticks) / ticks;
  stats.resident_bytes = pages * sysconf(_SC_PAGESIZE);
  const int64_t boot_seconds = number_after("/proc/stat", "btime").value_or(0);
  stats.start_time_seconds = static_cast<double>(boot_seconds) + static_cast<double>(start_ticks) / ticks;
  std::error_code error;
  for (std::filesystem::directory_iterator at("/proc/self/fd", error), end; !error && at != end; at.increment(error)) {
    ++stats.open_fds;
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = static_cast<int64_t>(limit.rlim_cur);
  return stats;
}

int64_t available_memory_bytes() {
  int64_t available = std::numeric_limits<int64_t>::max();
  if (const auto kib = number_after("/proc/meminfo", "MemAvailable:")) available = *kib * 1024;
  // A container's limit, by the second and by the first version of control groups.
  for (const auto& [max_file, used_file] : {std::pair{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                                            {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    const auto group_max = number_in(max_file);
    const auto group_used = number_in(used_file);
    if (group_max && group_used) available = std::min(available, std::max<int64_t>(0, *group_max - *group_used));
  }
  return available;
}

}  // namespace headroom
