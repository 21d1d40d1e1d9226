// What the engine holds, ten times a second, for everybody who watches: one picture of it is made for all of them, by whichever
// watcher comes first after it is due. Nobody watching costs nothing; an engine at rest is asked once a second.
//
// The pool goes out as a map of cells (engine/scheduler_view.h): all of it to a new watcher, and to one that missed a frame; else what
// has changed. Nothing of a prompt or an answer is in it; requests are numbers, sizes and times, and left out where tenants
// must not see each other.
// Threads: watch() and picture() by HTTP workers, several at once.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/http_server.h"
#include "server/served_model.h"

namespace headroom {

struct LiveFeedOptions {
  std::string model_name;
  std::string version;
  bool show_requests = true;
  std::chrono::milliseconds period{80};
  std::chrono::milliseconds quiet_period{1000};  // while nothing happens
};

class LiveFeed {
 public:
  using Clock = std::chrono::steady_clock;
  using ServedPtr = std::shared_ptr<const ServedModel>;

  explicit LiveFeed(LiveFeedOptions options) : options_(std::move(options)) {}

  // Sends frames as server-sent events until the watcher is gone, or the server has drained.
  void watch(const ServedPtr& served, HttpStream* stream);
  // One whole frame, as JSON. Made anew at most as often as frames are.
  std::string picture(const ServedPtr& served);

 private:
  struct Frame {
    int64_t number = 0;
    std::string whole;    // events
    std::string changes;  // the same for one who has the frame before; empty: send the whole
    bool last = false;    // drained: none follows
  };

  std::shared_ptr<const Frame> next(const ServedModel& served, int64_t seen);
  bool is_quiet(const ServedModel& served) const;
  void make_frame(const ServedModel& served);
  std::string frame_json(const ServedModel& served, const LiveView& view, const std::vector<uint8_t>& cells, bool whole) const;

  const LiveFeedOptions options_;
  std::mutex mutex_;
  std::condition_variable made_;
  std::shared_ptr<const Frame> frame_;
  int64_t frames_ = 0;
  Clock::time_point due_{}, made_at_{};
  std::shared_ptr<const LiveView> view_;  // that frame_ shows
  std::vector<uint8_t> cells_;            // as sent
};

// The cells as base64; and the runs in which `to` differs from `from`, as [first, count, value, …]. For tests.
std::string cells_base64(const std::vector<uint8_t>& cells);
std::vector<int64_t> changed_runs(const std::vector<uint8_t>& from, const std::vector<uint8_t>& to);

}  // namespace headroom
