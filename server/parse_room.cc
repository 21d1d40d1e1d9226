#include "server/parse_room.h"

#include <malloc.h>

#include <algorithm>

#include "kernels/check.h"

namespace headroom {
namespace {

// A list that grows has room for twice its elements, and holds the old ones as well for a moment: 16 bytes each, or 48 with a key. Strings and
// lists are 48 more with their blocks of the heap, and a string that is read may have room for twice its bytes.
constexpr int64_t kValueBytesMax = 128;
constexpr int64_t kTextBytesMax = 3;
constexpr int64_t kSmallBytes = 64 << 10;
// From here on the heap is asked to give back what is free: of itself it keeps blocks as small as these.
constexpr int64_t kTrimBytes = 4 << 20;

}  // namespace

int64_t parsed_bytes_max(std::string_view text, int64_t values_max) {
  // One of these stands before each value and each key.
  const auto marks = std::count_if(text.begin(), text.end(), [](char c) { return (c == ',') | (c == ':') | (c == '[') | (c == '{'); });
  return static_cast<int64_t>(text.size()) * kTextBytesMax + (1 + std::min<int64_t>(marks, 2 * values_max)) * kValueBytesMax;
}

std::optional<ParseRoom::Share> ParseRoom::take(int64_t bytes, std::chrono::milliseconds wait_max) {
  CHECK_LE(bytes, bytes_max_);
  if (bytes <= kSmallBytes) return Share();
  const auto deadline = std::chrono::steady_clock::now() + wait_max;
  const std::unique_lock turn(turn_, deadline);
  if (!turn.owns_lock()) return std::nullopt;
  std::unique_lock lock(mutex_);
  if (!freed_.wait_until(lock, deadline, [&] { return used_ + bytes <= bytes_max_; })) return std::nullopt;
  used_ += bytes;
  return Share(this, bytes);
}

void ParseRoom::give_back(int64_t bytes) {
  if (bytes >= kTrimBytes) malloc_trim(0);  // first: the next one may be read by another thread, whose heap is another
  {
    const std::lock_guard lock(mutex_);
    used_ -= bytes;
  }
  freed_.notify_one();
}

void ParseRoom::Share::give_back() {
  if (ParseRoom* room = std::exchange(room_, nullptr)) room->give_back(bytes_);
}

}  // namespace headroom
