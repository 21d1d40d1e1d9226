#include "server/logging.h"

#include <limits.h>
#include <poll.h>
#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "server/options.h"

namespace headroom {
namespace {

// {"time":1700000000.123,"level":"info","message":"…"}: what a message holds cannot forge a second line.
class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto since_1970 = std::chrono::duration_cast<std::chrono::milliseconds>(message.time.time_since_epoch());
    const auto level = spdlog::level::to_string_view(message.level);
    const nlohmann::ordered_json line = {{"time", static_cast<double>(since_1970.count()) / 1000},
                                         {"level", std::string(level.data(), level.size())},
                                         {"message", std::string(message.payload.data(), message.payload.size())}};
    const std::string text = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

// A name that the operator gave, or a file, may hold anything. A message of several lines indents all but its first.
class TextFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string_view payload(message.payload.data(), message.payload.size());
    std::string text = without_control(payload);
    for (size_t i = payload.find("\n  "); i != payload.npos; i = payload.find("\n  ", i + 1)) text[i] = '\n';
    spdlog::details::log_msg shown = message;
    shown.payload = text;
    pattern_.format(shown, out);
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<TextFormatter>(); }

 private:
  spdlog::pattern_formatter pattern_{"%Y-%m-%d %H:%M:%S.%e %l %v"};
};

// Standard error, as long as somebody reads it: what would block is left out, and counted. A worker that waits for its log would take the
// server down with whatever collects the lines. A pipe that can be written to takes PIPE_BUF bytes without blocking.
class StderrSink : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    if (lost_lines_ > 0 && can_write()) {
      spdlog::memory_buf_t note;
      const std::string text = std::to_string(lost_lines_) + " lines of the log could not be written";
      formatter_->format(spdlog::details::log_msg("headroom", spdlog::level::warn, text), note);
      if (write_all({note.data(), note.size()})) lost_lines_ = 0;
    }
    if (lost_lines_ > 0 || !write_all({line.data(), line.size()})) ++lost_lines_;
  }
  void flush_() override {}

 private:
  static bool can_write() {
    pollfd fd{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    return poll(&fd, 1, 0) == 1 && (fd.revents & POLLOUT) != 0;
  }
  static bool write_all(std::string_view text) {
    while (!text.empty()) {
      if (!can_write()) return false;
      const ssize_t written = write(STDERR_FILENO, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
      if (written <= 0) return false;
      text.remove_prefix(static_cast<size_t>(written));
    }
    return true;
  }

  int64_t lost_lines_ = 0;
};

}  // namespace

std::optional<int64_t> LineLimit::take(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (now - second_ >= std::chrono::seconds(1)) {
    second_ = now;
    lines_ = 0;
  }
  if (lines_ == lines_per_second_) {
    ++left_out_;
    return std::nullopt;
  }
  ++lines_;
  return std::exchange(left_out_, 0);
}

std::string without_control(std::string_view text) {
  std::string shown(text);
  for (size_t i = 0; i < shown.size(); ++i) {
    const auto byte = static_cast<unsigned char>(shown[i]);
    const auto before = i == 0 ? 0 : static_cast<unsigned char>(text[i - 1]);
    const bool is_c1 = before == 0xC2 && byte >= 0x80 && byte < 0xA0;  // U+0080 to U+009F
    if (byte < ' ' || byte == 0x7F || is_c1) shown[i] = '?';
    if (is_c1) shown[i - 1] = '?';
  }
  return shown;
}

void set_up_logging(const std::string& level, const std::string& format) {
  auto logger = std::make_shared<spdlog::logger>("headroom", std::make_shared<StderrSink>());
  logger->set_level(spdlog::level::from_str(level));
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_formatter(std::make_unique<TextFormatter>());
  }
  spdlog::set_default_logger(std::move(logger));
}

std::function<void(size_t done, size_t total)> make_progress(const std::string& what) {
  using Clock = std::chrono::steady_clock;
  const bool is_terminal = isatty(STDERR_FILENO) == 1;
  return [what, is_terminal, shown = Clock::now() + std::chrono::seconds(1), drawn = false](size_t done, size_t total) mutable {
    const Clock::time_point now = Clock::now();
    const bool ended = done >= total;
    if (!ended && now < shown) return;
    if (ended && !drawn) return;
    shown = now + std::chrono::milliseconds(is_terminal ? 100 : 3000);
    drawn = true;
    const int percent = total == 0 ? 100 : static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    if (!is_terminal) {
      spdlog::info("{}: {} %, {} of {}", what, percent, format_bytes(static_cast<int64_t>(done)), format_bytes(static_cast<int64_t>(total)));
      return;
    }
    const std::string bar(static_cast<size_t>(percent * 30 / 100), '#');
    std::fprintf(stderr, "\r%s [%-30s] %3d %% of %s%s", what.c_str(), bar.c_str(), percent,
                 format_bytes(static_cast<int64_t>(total)).c_str(), ended ? "\n" : "");
  };
}

}  // namespace headroom
