#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

// How long a worker spins for the next task before it sleeps. A step leaves gaps of a few microseconds between ops and
// of tens of microseconds between steps (sampling, scheduling); waking a sleeper costs 5 to 50 µs.
constexpr auto kSpinTime = std::chrono::microseconds(100);
constexpr int kSpinsBetweenClockReads = 64;
constexpr int kSpinsBeforeYield = 2000;  // about 30 µs

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The quota of cgroup v2 in whole CPUs, rounded up; 0: none.
int cgroup_cpu_limit() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return static_cast<int>(std::ceil(std::strtod(quota.c_str(), nullptr) / period));
}

std::string topology(int cpu, const char* name) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + name);
  std::string value;
  std::getline(file, value);
  return value;
}

}  // namespace

int usable_physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    std::set<std::string> seen;  // hyper-threads of one core share package and core id
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string core = topology(cpu, "core_id");
      seen.insert(core.empty() ? "cpu" + std::to_string(cpu) : topology(cpu, "physical_package_id") + ":" + core);
    }
    if (!seen.empty()) cores = static_cast<int>(seen.size());
  }
  if (const int limit = cgroup_cpu_limit(); limit > 0) cores = std::min(cores, limit);
  return std::max(cores, 1);
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads), claims_(static_cast<size_t>(std::max(threads, 1))), shares_(claims_.size()) {
  CHECK_GE(threads, 1);
  try {
    for (int worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (const std::system_error& error) {
    const size_t started = workers_.size() + 1;
    stop();
    throw std::runtime_error("cannot start " + std::to_string(threads_) + " compute threads, the system allowed " +
                             std::to_string(started) + " (" + error.what() +
                             "): lower --threads or raise the process limit");
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::call_contained(Task task, int worker) {
  try {
    task.call(task.context, worker);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::run_task(Task task) {
  task_ = task;
  unfinished_.store(threads_ - 1, std::memory_order_relaxed);
  const uint32_t generation = generation_.fetch_add(1, std::memory_order_release) + 1;
  generation_.notify_all();
  call_contained(task, 0);
  for (int worker = 1; worker < threads_; ++worker) {
    if (!claim(worker, generation)) continue;
    call_contained(task, worker);
    unfinished_.fetch_sub(1, std::memory_order_relaxed);
  }
  // The others finish at about the same time; yield where the machine is so busy that one of them lost its core.
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Whether the part is the caller's to do. A task ends when all of its parts are claimed and done, so the one before has
// been claimed, and one that is claimed in time is not over.
bool ThreadPool::claim(int worker, uint32_t generation) {
  uint32_t before = generation - 1;
  return claims_[static_cast<size_t>(worker)].generation.compare_exchange_strong(before, generation,
                                                                                 std::memory_order_acq_rel);
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    auto spin_end = std::chrono::steady_clock::now() + kSpinTime;
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      pause_cpu();
      if (++spins % kSpinsBetweenClockReads == 0 && std::chrono::steady_clock::now() > spin_end) {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!claim(worker, seen)) continue;  // too late: the caller has it, or has even ended the task
    call_contained(task_, worker);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace headroom
