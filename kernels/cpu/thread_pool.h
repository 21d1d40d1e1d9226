// A fixed set of threads that run one task together, built for tasks of microseconds.
//
// Threads: run() belongs to the thread that made the pool; it takes part as worker 0 and returns when all parts are
// done.
//   Between tasks the workers spin for a short while, so that the next op of a step starts within a microsecond, then
//   sleep.
//   Each part of a task has its worker, but the caller, once its own is done, takes those that nobody has begun: on a
//   busy machine a worker without a core then costs nothing but its help.
// The pool decides who computes a row, never how: no result may depend on the worker or on their number.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace headroom {

// Physical cores that this process may use, after CPU affinity and the cgroup's CPU quota; at least 1.
int usable_physical_cores();

class ThreadPool {
 public:
  // threads counts the caller's too. Throws std::runtime_error if the system refuses a thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(worker) once for every worker in [0, threads()), on that worker or on the caller. Tasks do not nest.
  // What a body throws is thrown here, once all parts are done.
  template <class Body>
  void run(const Body& body) {
    if (threads_ == 1) return body(0);
    run_task(Task{[](const void* context, int worker) { (*static_cast<const Body*>(context))(worker); }, &body});
  }

  // Calls body(begin, end) on contiguous parts of [0, count), one part per worker, each part a multiple of `grain` long
  // except the last. Runs on the caller alone where there is one part.
  template <class Body>
  void for_range(int64_t count, int64_t grain, const Body& body) {
    const int64_t grains = (count + grain - 1) / grain;
    if (threads_ == 1 || grains <= 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    run([&](int worker) {
      const int64_t begin = grains * worker / threads_ * grain;
      const int64_t end = std::min(count, grains * (worker + 1) / threads_ * grain);
      if (begin < end) body(begin, end);
    });
  }

  // Calls body(worker, begin, end) on neighbouring parts of [0, count), each `grain` long but the last. A worker goes through a
  // contiguous share, then takes parts that are left of the others': what is bound by memory takes unequal times on equal cores.
  template <class Body>
  void for_shared(int64_t count, int64_t grain, const Body& body) {
    const int64_t grains = (count + grain - 1) / grain;
    for (int worker = 0; worker < threads_; ++worker) {
      shares_[static_cast<size_t>(worker)].next.store(grains * worker / threads_, std::memory_order_relaxed);
      shares_[static_cast<size_t>(worker)].end = grains * (worker + 1) / threads_;
    }
    run([&](int worker) {
      for (int i = 0; i < threads_; ++i) {
        Share& share = shares_[static_cast<size_t>((worker + i) % threads_)];
        for (int64_t g; (g = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
          body(worker, g * grain, std::min(count, (g + 1) * grain));
        }
      }
    });
  }

 private:
  struct Task {
    void (*call)(const void* context, int worker) = nullptr;
    const void* context = nullptr;
  };
  struct alignas(64) Claim {
    std::atomic<uint32_t> generation{0};  // of the last task whose part for this worker was begun
  };
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};  // grain that nobody has begun
    int64_t end = 0;
  };
  void run_task(Task task);
  void work(int worker);
  bool claim(int worker, uint32_t generation);
  void call_contained(Task task, int worker);
  void stop();

  const int threads_;
  Task task_;                                        // written before generation_ advances
  alignas(64) std::atomic<uint32_t> generation_{0};  // advances with every task
  alignas(64) std::atomic<int> unfinished_{0};       // parts of the current task, without the caller's own
  std::vector<Claim> claims_;                        // by worker
  std::vector<Share> shares_;                        // by worker, of for_shared
  std::atomic<bool> stopping_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;  // the first that a body threw
  std::vector<std::thread> workers_;
};

}  // namespace headroom
