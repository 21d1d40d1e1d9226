// Finds where one HTTP/1.1 request ends in the bytes of a connection, under limits, before a worker is taken for it.
//
// It reads what decides the framing (line ends, header names, Content-Length, Transfer-Encoding, Host, Expect, Content-Encoding) and
// nothing else, and refuses whatever two readers could read in two ways: bare LF, folded lines, spaces before a colon, several or
// signed lengths, a length beside chunks. The request line and the few headers that handlers use are handed on as head().
// One thread at a time; bounded by FramingLimits whatever the input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace headroom {

struct FramingLimits {
  size_t request_line_bytes_max = 8 << 10;  // more: 414
  size_t head_bytes_max = 32 << 10;         // request line and headers; more: 431
  size_t headers_max = 100;                 // more: 431
  size_t body_bytes_max = 16 << 20;         // more: 413
};

class RequestFrame {
 public:
  enum class State : uint8_t { head, body, complete, failed };

  explicit RequestFrame(FramingLimits limits) : limits_(limits) {}

  // Takes bytes from the front of `input` until the request is complete or has failed; returns how many it took.
  size_t consume(std::string_view input);
  // Forgets the request; ready for the next one of the connection.
  void reset();

  State state() const { return state_; }
  bool begun() const { return state_ != State::head || !head_.empty(); }
  // The client waits for "100 Continue" before it sends the body. True once.
  bool take_expect_continue();
  bool keep_alive() const { return keep_alive_; }

  // Complete: request line and known headers, ending in an empty line; and the decoded body.
  const std::string& head() const { return passed_; }
  std::string& body() { return body_; }
  const std::string& body() const { return body_; }

  // Failed: status to answer, and why.
  int status() const { return status_; }
  const char* message() const { return message_; }

 private:
  enum class ChunkState : uint8_t { size, data, data_end, trailer };

  size_t consume_head(std::string_view input);
  size_t consume_sized(std::string_view input);
  size_t consume_chunked(std::string_view input);
  bool take_line(std::string_view input, size_t& taken);  // into line_; false: not whole yet, or failed
  void take_chunk_line();
  void end_head();
  bool take_request_line(std::string_view line);
  bool take_header(std::string_view line);
  bool take_framing_header(std::string_view name, std::string_view value);
  bool fail(int status, const char* message);

  FramingLimits limits_;
  State state_ = State::head;
  std::string head_;    // as received, until its empty line
  std::string passed_;
  std::string body_;
  std::string line_;    // of the chunked framing
  ChunkState chunk_state_ = ChunkState::size;
  size_t remaining_ = 0;  // bytes of the body, or of the current chunk
  size_t trailer_bytes_ = 0;
  bool has_length_ = false, chunked_ = false, has_host_ = false;
  bool http_1_0_ = false, keep_alive_ = true, expect_continue_ = false;
  int status_ = 0;
  const char* message_ = "";
};

}  // namespace headroom
