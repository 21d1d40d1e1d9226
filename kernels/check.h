// CHECK: an assertion that stays on in release builds. It marks a bug of ours, never bad input: it prints the place, the
// condition and a message, then aborts. Bad input at start-up is an exception; bad input in a request is a value.
#pragma once

#include <sstream>
#include <string>

namespace headroom {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

namespace internal {
// Collects what is streamed behind a failed CHECK and aborts at the end of the full expression.
class CheckMessage {
 public:
  CheckMessage(const char* file, int line, const char* condition) : file_(file), line_(line), condition_(condition) {}
  [[noreturn]] ~CheckMessage() { check_failed(file_, line_, condition_, stream_.str()); }
  std::ostream& stream() { return stream_; }

 private:
  const char* file_;
  int line_;
  const char* condition_;
  std::ostringstream stream_;
};
struct CheckVoidify {
  void operator&(std::ostream&) {}
};
}  // namespace internal

#define CHECK(condition)                                                                         \
  __builtin_expect(static_cast<bool>(condition), 1)                                              \
      ? (void)0                                                                                  \
      : ::headroom::internal::CheckVoidify() & ::headroom::internal::CheckMessage(__FILE__, __LINE__, #condition).stream()
#define CHECK_OP(a, op, b) CHECK((a)op(b)) << " (" << (a) << " vs. " << (b) << ") "
#define CHECK_EQ(a, b) CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) CHECK_OP(a, !=, b)
#define CHECK_LT(a, b) CHECK_OP(a, <, b)
#define CHECK_LE(a, b) CHECK_OP(a, <=, b)
#define CHECK_GT(a, b) CHECK_OP(a, >, b)
#define CHECK_GE(a, b) CHECK_OP(a, >=, b)

}  // namespace headroom
