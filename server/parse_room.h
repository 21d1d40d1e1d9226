// Bounds what the bodies that are being parsed take in memory, all together. A tree of JSON takes up to thirty times the bytes of a text that
// is made for it ("[[],[],…]"), so a body waits until there is room for what it may come to, and gives it back once it was understood.
// Any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

namespace headroom {

// No less than the bytes that read_json() takes for the tree of `text`, of which it reads at most values_max values.
int64_t parsed_bytes_max(std::string_view text, int64_t values_max);

class ParseRoom {
 public:
  // Room that is given back at the end.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept : room_(std::exchange(other.room_, nullptr)), bytes_(other.bytes_) {}
    Share& operator=(Share&& other) noexcept {
      give_back();
      room_ = std::exchange(other.room_, nullptr);
      bytes_ = other.bytes_;
      return *this;
    }
    ~Share() { give_back(); }
    void give_back();

   private:
    friend class ParseRoom;
    Share(ParseRoom* room, int64_t bytes) : room_(room), bytes_(bytes) {}
    ParseRoom* room_ = nullptr;
    int64_t bytes_ = 0;
  };

  explicit ParseRoom(int64_t bytes_max) : bytes_max_(bytes_max) {}

  int64_t bytes_max() const { return bytes_max_; }
  // Waits for at most `wait_max`, in turn; nullopt if there was no room by then. A small body need not wait. REQUIRES: bytes ≤ bytes_max().
  std::optional<Share> take(int64_t bytes, std::chrono::milliseconds wait_max);

 private:
  void give_back(int64_t bytes);

  const int64_t bytes_max_;
  std::timed_mutex turn_;  // held while waiting: who needs much is not passed by those who need little
  std::mutex mutex_;
  std::condition_variable freed_;
  int64_t used_ = 0;
};

}  // namespace headroom
