#include "engine/token_stream.h"

#include <utility>

#include "kernels/check.h"

namespace headroom {

std::optional<StreamEvent> TokenStream::next(std::chrono::milliseconds wait_max) {
  std::unique_lock lock(mutex_);
  if (!arrived_.wait_for(lock, wait_max, [this] { return !events_.empty() || failure_ != nullptr; })) return std::nullopt;
  if (events_.empty()) return Finished{.reason = FinishReason::error, .message = std::exchange(failure_, nullptr)};
  StreamEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void TokenStream::cancel() {
  if (cancelled_.exchange(true, std::memory_order_acq_rel)) return;
  if (on_signal_) on_signal_();
}

void TokenStream::stop_choice(int32_t choice) {
  stopped_[static_cast<size_t>(choice)].store(true, std::memory_order_release);
  if (on_signal_) on_signal_();
}

void TokenStream::push(StreamEvent event) {
  {
    const std::lock_guard lock(mutex_);
    CHECK(!finished_) << "an event after Finished";
    finished_ = std::holds_alternative<Finished>(event);
    events_.push_back(std::move(event));
  }
  arrived_.notify_one();
}

void TokenStream::fail(const char* message) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(finished_, true)) return;
    failure_ = message;
  }
  arrived_.notify_one();
}

}  // namespace headroom
