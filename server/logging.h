// Log lines to stderr, as text or as one JSON object each. Nothing of a prompt, an answer or a key is ever logged.
// A log that nobody reads, or a disk without room, costs lines, which are counted, and never a request.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace headroom {

// Bounds the lines of one kind that clients can cause. Any thread.
class LineLimit {
 public:
  using Clock = std::chrono::steady_clock;
  explicit LineLimit(int32_t lines_per_second) : lines_per_second_(lines_per_second) {}
  // Whether to write one now; then how many were left out since the last one.
  std::optional<int64_t> take(Clock::time_point now);

 private:
  const int32_t lines_per_second_;
  std::mutex mutex_;
  Clock::time_point second_{};
  int32_t lines_ = 0;  // in this second
  int64_t left_out_ = 0;
};

// What may stand in a line of a terminal or a log: control characters, which could move its cursor or forge a line, become '?'.
std::string without_control(std::string_view text);

void set_up_logging(const std::string& level, const std::string& format);

// Shows how far long work is, from its second second on: a bar when stderr is a terminal, a line every few seconds otherwise.
// One thread. The result may be called with (done, total) as often as you like.
std::function<void(size_t done, size_t total)> make_progress(const std::string& what);

}  // namespace headroom
