#include "engine/analysis/stopwatch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace headroom {

Stopwatch::Stopwatch() : schedstat_(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)) { start(); }

Stopwatch::~Stopwatch() {
  if (schedstat_ >= 0) close(schedstat_);
}

// The clock is read first here and last in seconds(): what is taken off lies within what was measured.
void Stopwatch::start() {
  start_ = std::chrono::steady_clock::now();
  queued_at_start_ = queued_seconds();
}

double Stopwatch::seconds() const {
  const double queued = queued_seconds() - queued_at_start_;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count() - queued;
}

// The file is "nanoseconds-run nanoseconds-queued slices".
double Stopwatch::queued_seconds() const {
  std::array<char, 96> text;
  const ssize_t size = schedstat_ < 0 ? 0 : pread(schedstat_, text.data(), text.size(), 0);
  const char* const end = text.data() + std::max<ssize_t>(size, 0);
  int64_t nanoseconds = 0;
  const char* second = std::find(static_cast<const char*>(text.data()), end, ' ');
  if (second != end) std::from_chars(second + 1, end, nanoseconds);
  return static_cast<double>(nanoseconds) * 1e-9;
}

}  // namespace headroom
