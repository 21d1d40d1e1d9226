// Seconds that something took this thread, without those in which it was ready to run while others held the processors:
// so that a comparison also holds on a machine that is shared. The kernel counts the latter (Linux,
// /proc/thread-self/schedstat); where it does not, they are not taken off. Waiting for a device or for other threads
// counts.
#pragma once

#include <chrono>

namespace headroom {

class Stopwatch {
 public:
  Stopwatch();
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // On the thread that made it.
  void start();
  double seconds() const;  // since start()

 private:
  double queued_seconds() const;  // of this thread, since it began

  int schedstat_;
  std::chrono::steady_clock::time_point start_;
  double queued_at_start_ = 0;
};

}  // namespace headroom
