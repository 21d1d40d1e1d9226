// Server-sent events over an HttpStream: framing, and a comment during silence so that proxies and clients keep the
// connection. Used by the one worker that streams.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "server/http_server.h"

namespace headroom {

inline constexpr std::string_view kSseContentType = "text/event-stream; charset=utf-8";

inline constexpr std::string_view kSseEventBegin = "data: ", kSseEventEnd = "\n\n";

// data: {json}\n\n. REQUIRES: no line break in `json`, which JsonWriter never writes.
void append_sse_event(std::string_view json, std::string* out);
void append_sse_done(std::string* out);

class SseStream {
 public:
  using Clock = std::chrono::steady_clock;

  SseStream(HttpStream* stream, std::chrono::milliseconds ping_after, Clock::time_point now)
      : stream_(*stream), ping_after_(ping_after), last_write_(now) {}

  // Whole events. False when the client is gone: then every later call is false too and writes nothing.
  bool send(std::string_view events, Clock::time_point now);
  // A comment if nothing was written for `ping_after`.
  bool ping_if_silent(Clock::time_point now);

 private:
  HttpStream& stream_;
  std::chrono::milliseconds ping_after_;
  Clock::time_point last_write_;
  bool broken_ = false;
};

}  // namespace headroom
