// Fibers by ucontext once, for a stack of their own, then sigsetjmp without a signal mask: a change-over takes nanoseconds,
// where swapcontext makes a system call. The stack checks of fortified longjmp take a change of stacks for an error.
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 0
#include "tests/cuda_on_cpu/block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/check.h"

namespace headroom::cuda_on_cpu {
namespace {

constexpr int kThreadsMax = 1024;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSlotBytes = 64;  // of a lane at a meeting

struct Copy {
  unsigned char* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  const uint32_t* waits_for = nullptr;  // runs again when this differs from `seen`
  uint32_t seen = 0;
  bool begun = false;
  bool done = true;
  sigjmp_buf place;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> closed;  // groups of copies that were not waited for
  std::vector<Copy> open;
};

struct Warp {
  const char* what = nullptr;
  int arrived = 0;
  uint32_t meetings = 0;
  alignas(64) unsigned char in[kLanes][kSlotBytes];
  alignas(64) unsigned char out[kLanes][kSlotBytes];
};

// The one block that runs.
struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block
  std::vector<Warp> warps;
  std::vector<int> turn;  // order of threads
  std::vector<int> place_of;
  std::vector<unsigned char> shared_memory;
  unsigned char* shared = nullptr;
  size_t shared_size = 0;
  const std::function<void()>* body = nullptr;
  sigjmp_buf host;
  int threads = 0, running = 0, finished = 0, at_barrier = 0;
  uint32_t barriers = 0;
  Index3 index, grid;
};
Block block;
Order thread_order = Order::ascending, block_order = Order::ascending;
size_t shared_bytes_max = 227 * 1024;

bool can_run(const Fiber& fiber) { return !fiber.done && (fiber.waits_for == nullptr || *fiber.waits_for != fiber.seen); }

void fiber_main() {
  for (;;) {
    (*block.body)();
    Fiber& self = *block.fibers[static_cast<size_t>(block.running)];
    wait_copy_groups(0);
    self.done = true;
    ++block.finished;
    if (sigsetjmp(self.place, 0) == 0) siglongjmp(block.host, 1);
  }
}

[[gnu::noinline]] void enter(Fiber& fiber) {
  if (fiber.begun) siglongjmp(fiber.place, 1);
  fiber.begun = true;
  fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
  CHECK(false) << "setcontext failed";
}

// The next thread in turn that can run; −1: none can.
int next_to_run(int after) {
  size_t place = static_cast<size_t>(block.place_of[static_cast<size_t>(after)]);
  for (int i = 0; i < block.threads; ++i) {
    if (++place == static_cast<size_t>(block.threads)) place = 0;
    const int thread = block.turn[place];
    if (can_run(*block.fibers[static_cast<size_t>(thread)])) return thread;
  }
  return -1;
}

void wait_until_changed(const uint32_t& counter, uint32_t seen) {
  Fiber& self = *block.fibers[static_cast<size_t>(block.running)];
  self.waits_for = &counter;
  self.seen = seen;
  const int next = next_to_run(block.running);
  CHECK_GE(next, 0) << "block (" << block.index.x << ", " << block.index.y << ", " << block.index.z
                    << ") is stuck: " << block.at_barrier << " of " << block.threads << " threads are at a barrier, "
                    << block.finished << " have ended, the others wait for lanes of their warp";
  if (next != block.running && sigsetjmp(self.place, 0) == 0) {
    block.running = next;
    enter(*block.fibers[static_cast<size_t>(next)]);
  }
  self.waits_for = nullptr;
}

std::vector<int> ordered(int count, Order order) {
  std::vector<int> indices(static_cast<size_t>(count));
  std::iota(indices.begin(), indices.end(), 0);
  if (order == Order::descending) std::reverse(indices.begin(), indices.end());
  if (order == Order::shuffled) std::shuffle(indices.begin(), indices.end(), std::mt19937(12345u));
  return indices;
}

void run_block() {
  // Shared memory begins as NaN in every element type.
  std::memset(block.shared, 0xFF, block.shared_size);
  for (int t = 0; t < block.threads; ++t) block.fibers[static_cast<size_t>(t)]->done = false;
  block.finished = block.at_barrier = 0;
  while (block.finished < block.threads) {
    const int next = next_to_run(block.turn.back());
    CHECK_GE(next, 0) << "threads ended while others wait for them: " << block.at_barrier << " at a barrier, " << block.finished
                      << " of " << block.threads << " ended";
    block.running = next;
    if (sigsetjmp(block.host, 0) == 0) enter(*block.fibers[static_cast<size_t>(next)]);
  }
}

}  // namespace

void set_order(Order threads, Order blocks) {
  thread_order = threads;
  block_order = blocks;
}
void set_shared_bytes_max(size_t bytes) { shared_bytes_max = bytes; }

bool run_grid(Index3 grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (shared_bytes > shared_bytes_max) return false;
  CHECK(threads > 0 && threads <= kThreadsMax && threads % kLanes == 0) << threads;
  while (block.fibers.size() < static_cast<size_t>(threads)) block.fibers.push_back(std::make_unique<Fiber>());
  block.warps = std::vector<Warp>(static_cast<size_t>(threads / kLanes));
  block.threads = threads;
  block.turn = ordered(threads, thread_order);
  block.place_of.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) block.place_of[static_cast<size_t>(block.turn[static_cast<size_t>(i)])] = i;
  constexpr size_t kAlign = 1024;
  block.shared_memory.resize(shared_bytes + kAlign);
  void* begin = block.shared_memory.data();
  size_t room = block.shared_memory.size();
  block.shared = static_cast<unsigned char*>(std::align(kAlign, shared_bytes, begin, room));
  block.shared_size = shared_bytes;
  block.grid = grid;
  block.body = &body;
  for (const int i : ordered(grid.x * grid.y * grid.z, block_order)) {
    block.index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block();
  }
  return true;
}

int thread_id() { return block.running; }
Index3 block_id() { return block.index; }
Index3 grid_size() { return block.grid; }
unsigned char* shared_begin() { return block.shared; }
size_t shared_bytes() { return block.shared_size; }

void block_barrier() {
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0;
    ++block.barriers;
    return;
  }
  wait_until_changed(block.barriers, block.barriers);
}

void warp_meet(const char* what, const void* in, size_t in_bytes, void* out, size_t out_bytes,
               void (*combine)(const void* in, void* out)) {
  static_assert(sizeof(Warp::in) == kLanes * kSlotBytes);
  CHECK(in_bytes <= kSlotBytes && out_bytes <= kSlotBytes);
  Warp& warp = block.warps[static_cast<size_t>(block.running / kLanes)];
  const size_t lane = static_cast<size_t>(block.running % kLanes);
  if (warp.arrived == 0) warp.what = what;
  CHECK(warp.what == what) << "lane " << lane << " of warp " << block.running / kLanes << " is at " << what << ", others at "
                           << warp.what;
  std::memcpy(warp.in[lane], in, in_bytes);
  if (++warp.arrived == kLanes) {
    combine(warp.in, warp.out);
    warp.arrived = 0;
    ++warp.meetings;
  } else {
    wait_until_changed(warp.meetings, warp.meetings);
  }
  std::memcpy(out, warp.out[lane], out_bytes);
}

void copy_later(unsigned char* to, const void* from, size_t bytes) {
  block.fibers[static_cast<size_t>(block.running)]->open.push_back({to, from, bytes});
}
void close_copy_group() {
  Fiber& self = *block.fibers[static_cast<size_t>(block.running)];
  self.closed.push_back(std::move(self.open));
  self.open.clear();
}
void wait_copy_groups(int pending) {
  Fiber& self = *block.fibers[static_cast<size_t>(block.running)];
  while (self.closed.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : self.closed.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    self.closed.pop_front();
  }
}

}  // namespace headroom::cuda_on_cpu
