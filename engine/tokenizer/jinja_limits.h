// Bounds of one rendering of a chat template, and the budget that enforces them. A template comes with a model and a
// conversation comes from a client: neither is trusted to end, or to stay small.
// A Budget belongs to one rendering and thus to one thread; it outlives every value that was charged to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace headroom {

struct JinjaLimits {
  int64_t operations_max = 5'000'000;  // evaluated nodes, produced elements, and text touched (kBytesPerOperation)
  int depth_max = 100;                 // nested macro calls and recursive loops; nesting of lists and objects
  size_t output_bytes_max = 8 << 20;   // the prompt, and any other single string
  size_t live_bytes_max = 64 << 20;    // all values alive at one moment
};

namespace jinja {

// Ends a rendering. The text is safe to show to a client.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Thrown by raise_exception: the template refuses the conversation, in its own words.
class RaisedByTemplate : public Error {
 public:
  using Error::Error;
};

class Budget {
 public:
  explicit Budget(const JinjaLimits& limits) : limits_(limits), operations_left_(limits.operations_max) {}
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  const JinjaLimits& limits() const { return limits_; }

  void spend(int64_t operations) {
    operations_left_ -= operations;
    if (operations_left_ < 0) fail_operations();
  }
  // Text that is only copied costs 1/8 of text that is looked at character by character.
  void spend_copy(size_t bytes) { spend(1 + static_cast<int64_t>(bytes / kBytesCopiedPerOperation)); }
  void spend_scan(size_t bytes) { spend(1 + static_cast<int64_t>(bytes / kBytesScannedPerOperation)); }

  void hold(size_t bytes) {
    if (bytes > limits_.live_bytes_max - live_bytes_) fail_memory();
    live_bytes_ += bytes;
  }
  void release(size_t bytes) noexcept { live_bytes_ -= bytes; }
  size_t live_bytes() const { return live_bytes_; }

  // Frames of the interpreter's own recursion: bounds the stack, whatever mixture of calls and nesting led there.
  void enter_frame() {
    if (frames_ >= limits_.depth_max * kFramesPerDepth) fail_depth();
    ++frames_;
  }
  void leave_frame() noexcept { --frames_; }
  void enter_call() {
    if (calls_ >= limits_.depth_max) fail_depth();
    ++calls_;
  }
  void leave_call() noexcept { --calls_; }
  [[noreturn]] void fail_depth() const;
  [[noreturn]] void fail_size() const;

 private:
  static constexpr size_t kBytesCopiedPerOperation = 256;
  static constexpr size_t kBytesScannedPerOperation = 32;
  static constexpr int kFramesPerDepth = 15;

  [[noreturn]] void fail_operations() const;
  [[noreturn]] void fail_memory() const;

  JinjaLimits limits_;
  int64_t operations_left_;
  size_t live_bytes_ = 0;
  int frames_ = 0;
  int calls_ = 0;
};

class FrameGuard {
 public:
  explicit FrameGuard(Budget& budget) : budget_(budget) { budget_.enter_frame(); }
  ~FrameGuard() { budget_.leave_frame(); }
  FrameGuard(const FrameGuard&) = delete;
  FrameGuard& operator=(const FrameGuard&) = delete;

 private:
  Budget& budget_;
};

class CallGuard {
 public:
  explicit CallGuard(Budget& budget) : budget_(budget) { budget_.enter_call(); }
  ~CallGuard() { budget_.leave_call(); }
  CallGuard(const CallGuard&) = delete;
  CallGuard& operator=(const CallGuard&) = delete;

 private:
  Budget& budget_;
};

// Bytes of a value, given back when the value dies. Literals of the template have no budget: they are paid by nobody.
class Charge {
 public:
  Charge(Budget* budget, size_t bytes) : budget_(budget), bytes_(bytes) {
    if (budget_) budget_->hold(bytes_);
  }
  ~Charge() {
    if (budget_) budget_->release(bytes_);
  }
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;
  void grow(size_t bytes) {
    if (budget_) budget_->hold(bytes);
    bytes_ += bytes;
  }

 private:
  Budget* budget_;
  size_t bytes_;
};

}  // namespace jinja
}  // namespace headroom
