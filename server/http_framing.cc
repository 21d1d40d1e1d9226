#include "server/http_framing.h"

#include <algorithm>
#include <array>

namespace headroom {
namespace {

constexpr size_t kChunkLineBytesMax = 256;
constexpr size_t kTrailerBytesMax = 4 << 10;

// Headers that handlers use. The others stop here: what nobody reads cannot be misread.
constexpr std::array<std::string_view, 8> kPassedHeaders = {"host",         "authorization", "content-type", "origin",
                                                            "x-request-id", "connection",    "user-agent",    "traceparent"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool equal_ignoring_case(std::string_view a, std::string_view lowered) {
  return a.size() == lowered.size() &&
         std::equal(a.begin(), a.end(), lowered.begin(), [](char x, char y) { return lower(x) == y; });
}

// RFC 9110: token.
bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

bool has_control_character(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
  });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool list_has(std::string_view list, std::string_view lowered) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    if (equal_ignoring_case(trim(list.substr(0, comma)), lowered)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

// Up to 15 digits, so that no sum of sizes can overflow.
bool parse_size(std::string_view digits, int base, size_t& value) {
  if (digits.empty() || digits.size() > 15) return false;
  value = 0;
  for (const char c : digits) {
    int digit = -1;
    if (c >= '0' && c <= '9') digit = c - '0';
    if (base == 16 && lower(c) >= 'a' && lower(c) <= 'f') digit = lower(c) - 'a' + 10;
    if (digit < 0) return false;
    value = value * static_cast<size_t>(base) + static_cast<size_t>(digit);
  }
  return true;
}

}  // namespace

size_t RequestFrame::consume(std::string_view input) {
  size_t taken = 0;
  if (state_ == State::head) taken = consume_head(input);
  if (state_ == State::body) {
    taken += chunked_ ? consume_chunked(input.substr(taken)) : consume_sized(input.substr(taken));
  }
  return taken;
}

void RequestFrame::reset() {
  *this = RequestFrame(limits_);
  for (std::string* text : {&head_, &body_}) text->shrink_to_fit();  // an assigned empty string leaves the memory where it was
}

bool RequestFrame::take_expect_continue() {
  const bool waits = state_ == State::body && expect_continue_ && body_.empty();
  expect_continue_ = false;
  return waits;
}

bool RequestFrame::fail(int status, const char* message) {
  state_ = State::failed;
  status_ = status;
  message_ = message;
  keep_alive_ = false;
  return false;
}

size_t RequestFrame::consume_head(std::string_view input) {
  size_t taken = 0;
  // RFC 9112 2.2: an empty line before the request line is passed over.
  while (head_.empty() && taken < input.size() && (input[taken] == '\r' || input[taken] == '\n')) {
    if (++trailer_bytes_ > 4) return fail(400, "the request does not begin with a request line"), taken;
    ++taken;
  }
  if (head_.empty() && taken < input.size() && !is_token(input.substr(taken, 1))) {
    return fail(400, "this port speaks HTTP: a request begins with its method (https:// is for a proxy in front)"), taken;
  }
  const size_t before = head_.size();
  const size_t room = limits_.head_bytes_max + 1 - std::min(limits_.head_bytes_max + 1, before);
  const std::string_view offered = input.substr(taken, room);
  head_.append(offered);
  // Looked at before the end of the head is looked for, so that the answer does not depend on how the bytes arrive.
  if (std::min(head_.find('\n'), head_.size()) > limits_.request_line_bytes_max + 1) {
    return fail(414, "the request line is too long"), taken + offered.size();
  }
  const size_t end = head_.find("\r\n\r\n", before < 3 ? 0 : before - 3);
  if (end == std::string::npos || end + 4 > limits_.head_bytes_max) {
    if (head_.size() > limits_.head_bytes_max) fail(431, "the request's headers are too large");
    return taken + offered.size();
  }
  taken += end + 4 - before;
  head_.resize(end + 2);  // each line with its end
  end_head();
  return taken;
}

void RequestFrame::end_head() {
  std::string_view rest = head_;
  size_t headers = 0;
  for (bool first = true; !rest.empty(); first = false) {
    const size_t end = rest.find("\r\n");
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 2);
    if (has_control_character(line)) return void(fail(400, "the request's headers hold a control character"));
    if (first ? !take_request_line(line) : !take_header(line)) return;
    if (++headers > limits_.headers_max + 1) return void(fail(431, "the request has too many headers"));
  }
  passed_ += "\r\n";
  head_.clear();
  trailer_bytes_ = 0;
  if (!http_1_0_ && !has_host_) return void(fail(400, "the request has no Host header"));
  if (chunked_ && (has_length_ || http_1_0_)) {
    return void(fail(400, "Transfer-Encoding cannot stand beside Content-Length, nor in HTTP/1.0"));
  }
  state_ = chunked_ || remaining_ > 0 ? State::body : State::complete;
}

bool RequestFrame::take_request_line(std::string_view line) {
  if (line.size() > limits_.request_line_bytes_max) return fail(414, "the request line is too long");
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos) return fail(400, "the request line is not \"METHOD target HTTP/1.1\"");
  const std::string_view version = line.substr(second + 1);
  const std::string_view target = line.substr(first + 1, second - first - 1);
  if (!is_token(line.substr(0, first)) || target.empty() || target[0] != '/' ||
      (version != "HTTP/1.1" && version != "HTTP/1.0")) {
    return fail(400, "the request line is not \"METHOD /path HTTP/1.1\"");
  }
  http_1_0_ = version == "HTTP/1.0";
  keep_alive_ = !http_1_0_;
  passed_.assign(line).append("\r\n");
  return true;
}

bool RequestFrame::take_header(std::string_view line) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return fail(400, "a header line is not \"Name: value\"");
  }
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = trim(line.substr(colon + 1));
  if (!take_framing_header(name, value)) return false;
  for (const std::string_view passed : kPassedHeaders) {
    if (!equal_ignoring_case(name, passed)) continue;
    passed_.append(passed).append(": ").append(value).append("\r\n");
  }
  return true;
}

bool RequestFrame::take_framing_header(std::string_view name, std::string_view value) {
  if (equal_ignoring_case(name, "content-length")) {
    if (has_length_) return fail(400, "the request has several Content-Length headers");
    if (!parse_size(value, 10, remaining_)) return fail(400, "Content-Length is not a number of bytes");
    if (remaining_ > limits_.body_bytes_max) return fail(413, "the request body is too large");
    has_length_ = true;
  } else if (equal_ignoring_case(name, "transfer-encoding")) {
    if (chunked_ || !equal_ignoring_case(value, "chunked")) return fail(400, "the only Transfer-Encoding known is chunked");
    chunked_ = true;
  } else if (equal_ignoring_case(name, "content-encoding")) {
    if (!equal_ignoring_case(value, "identity")) return fail(415, "compressed request bodies are not accepted");
  } else if (equal_ignoring_case(name, "host")) {
    if (has_host_) return fail(400, "the request has several Host headers");
    has_host_ = true;
  } else if (equal_ignoring_case(name, "expect")) {
    if (!equal_ignoring_case(value, "100-continue")) return fail(417, "the only Expect known is 100-continue");
    expect_continue_ = !http_1_0_;
  } else if (equal_ignoring_case(name, "connection")) {
    if (list_has(value, "close")) keep_alive_ = false;
  }
  return true;
}

size_t RequestFrame::consume_sized(std::string_view input) {
  const std::string_view part = input.substr(0, remaining_);
  body_.append(part);
  remaining_ -= part.size();
  if (remaining_ == 0) state_ = State::complete;
  return part.size();
}

size_t RequestFrame::consume_chunked(std::string_view input) {
  size_t taken = 0;
  while (state_ == State::body && taken < input.size()) {
    if (chunk_state_ == ChunkState::data) {
      const std::string_view part = input.substr(taken, remaining_);
      body_.append(part);
      remaining_ -= part.size();
      taken += part.size();
      if (remaining_ == 0) chunk_state_ = ChunkState::data_end;
    } else if (take_line(input, taken)) {
      take_chunk_line();
      line_.clear();
    }
  }
  return taken;
}

bool RequestFrame::take_line(std::string_view input, size_t& taken) {
  while (taken < input.size()) {
    const char c = input[taken++];
    if (c == '\n') {
      if (line_.empty() || line_.back() != '\r') return fail(400, "a line of the chunked body does not end in CR LF");
      line_.pop_back();
      return true;
    }
    if (!line_.empty() && line_.back() == '\r') return fail(400, "a line of the chunked body does not end in CR LF");
    line_ += c;
    if (line_.size() > kChunkLineBytesMax) return fail(400, "a line of the chunked body is too long");
  }
  return false;
}

void RequestFrame::take_chunk_line() {
  switch (chunk_state_) {
    case ChunkState::size: {
      const std::string_view line = line_;
      if (has_control_character(line) || !parse_size(trim(line.substr(0, line.find(';'))), 16, remaining_)) {
        fail(400, "a chunk's size is not a hexadecimal number");
      } else if (remaining_ > limits_.body_bytes_max - body_.size()) {
        fail(413, "the request body is too large");
      } else {
        chunk_state_ = remaining_ > 0 ? ChunkState::data : ChunkState::trailer;
      }
      return;
    }
    case ChunkState::data_end:
      if (!line_.empty()) fail(400, "a chunk is longer than its size");
      chunk_state_ = ChunkState::size;
      return;
    case ChunkState::trailer:
      trailer_bytes_ += line_.size() + 2;
      if (line_.empty()) state_ = State::complete;
      else if (trailer_bytes_ > kTrailerBytesMax) fail(431, "the request's trailers are too large");
      return;
    case ChunkState::data:
      return;  // has no lines
  }
}

}  // namespace headroom
