// The events of one request on their way from the engine thread to the HTTP worker that waits for them.
// push() is called by the engine thread; the rest by the one consumer. At most prompt + choices · (generated_tokens_max + 1) + 2
// events exist, so the queue is bounded by the request's own limits.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/request.h"

namespace headroom {

class TokenStream {
 public:
  // `on_signal` is called at the first cancel() and at each stop_choice(), on the consumer's thread.
  explicit TokenStream(int32_t choices, std::function<void()> on_signal = {})
      : on_signal_(std::move(on_signal)), stopped_(static_cast<size_t>(choices)) {}

  // Waits for the next event; nullopt after `wait_max` without one. After Finished no event follows.
  std::optional<StreamEvent> next(std::chrono::milliseconds wait_max);

  // The consumer needs no more: the engine frees the request's pages at its next step. Finished{abort} still arrives.
  void cancel();
  // One choice has met a stop string: the engine ends it; no further event of it is delivered except ChoiceFinished.
  void stop_choice(int32_t choice);

  // Engine thread.
  void push(StreamEvent event);
  // The engine has failed in the midst of its work: what was pushed is still delivered, then Finished{error}, unless it came. Takes no
  // memory.
  void fail(const char* message) noexcept;  // of static storage
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  bool choice_stopped(int32_t choice) const { return stopped_[static_cast<size_t>(choice)].load(std::memory_order_acquire); }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<StreamEvent> events_;
  bool finished_ = false;
  const char* failure_ = nullptr;
  std::function<void()> on_signal_;
  std::atomic<bool> cancelled_{false};
  std::vector<std::atomic<bool>> stopped_;
};

}  // namespace headroom
