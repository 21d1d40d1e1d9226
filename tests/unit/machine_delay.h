// Figures of time on a machine that has other work: what of them is the machine's.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "tests/unit/http_client.h"

namespace headroom {

// A rank among measured seconds; the slowest of every hundred may have met the machine's other work.
inline double p99(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.at((seconds.size() - 1) * 99 / 100);
}

// How late the machine itself wakes a thread, meanwhile: a figure of the server counts without what other programs take from it. An answer
// takes three wake-ups: of the listener, the worker and the client.
class MachineDelay {
 public:
  MachineDelay() : thread_([this] {
    while (!ended_) {
      const auto begin = Clock::now();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      late_seconds_.push_back(seconds_since(begin) - 0.001);
    }
  }) {}
  double answer_seconds() {
    ended_ = true;
    if (thread_.joinable()) thread_.join();
    return late_seconds_.empty() ? 0 : 3 * p99(late_seconds_);
  }
  ~MachineDelay() { answer_seconds(); }

 private:
  std::atomic<bool> ended_{false};
  std::vector<double> late_seconds_;
  std::thread thread_;
};

}  // namespace headroom
