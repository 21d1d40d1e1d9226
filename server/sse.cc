#include "server/sse.h"

#include "kernels/check.h"

namespace headroom {

void append_sse_event(std::string_view json, std::string* out) {
  CHECK(json.find_first_of("\r\n") == std::string_view::npos) << "a line break would end the event";
  out->append(kSseEventBegin).append(json).append(kSseEventEnd);
}

void append_sse_done(std::string* out) { out->append("data: [DONE]\n\n"); }

bool SseStream::send(std::string_view events, Clock::time_point now) {
  if (broken_) return false;
  if (!stream_.write(events)) {
    broken_ = true;
    return false;
  }
  last_write_ = now;
  return true;
}

bool SseStream::ping_if_silent(Clock::time_point now) {
  if (now - last_write_ < ping_after_) return !broken_;
  return send(": ping\n\n", now);
}

}  // namespace headroom
