// What the operating system says of this process and this machine's memory. Any thread; each call reads /proc anew.
#pragma once

#include <cstdint>

namespace headroom {

struct ProcessStats {
  double start_time_seconds = 0;  // since 1970
  double cpu_seconds = 0;
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  int64_t open_fds = 0;
  int64_t max_fds = 0;
};
ProcessStats read_process_stats();

// What could still be used, in this machine and in this control group.
int64_t available_memory_bytes();

}  // namespace headroom
