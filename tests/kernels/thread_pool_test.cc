#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace headroom {
namespace {

TEST(ThreadPool, RunsEveryWorkerOncePerTask) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<int> calls(static_cast<size_t>(threads));
    for (int task = 0; task < 500; ++task) pool.run([&](int worker) { ++calls[static_cast<size_t>(worker)]; });
    EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(threads), 500));
  }
}

TEST(ThreadPool, RangesCoverEverythingOnceAtMultiplesOfTheGrain) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 7, 63, 64, 65, 1000}) {
      for (const int64_t grain : {1, 8, 64}) {
        std::vector<int> touched(static_cast<size_t>(count));
        pool.for_range(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          for (int64_t i = begin; i < end; ++i) ++touched[static_cast<size_t>(i)];
        });
        EXPECT_EQ(touched, std::vector<int>(static_cast<size_t>(count), 1)) << count << " by " << grain;
      }
    }
  }
}

TEST(ThreadPool, PassesAnExceptionOnAndGoesOn) {
  ThreadPool pool(3);
  for (int thrower = 0; thrower < 3; ++thrower) {
    EXPECT_THROW(pool.run([&](int worker) {
      if (worker == thrower) throw std::runtime_error("from a worker");
    }),
                 std::runtime_error);
    std::atomic<int> calls{0};
    pool.run([&](int) { ++calls; });
    EXPECT_EQ(calls, 3);
  }
}

// Stands for the system taking a worker's core away: the thread that gets the signal does nothing else until it is let
// go.
std::atomic<bool> hold{false}, held{false};
void hold_thread(int) {
  held = true;
  while (hold) {
    const timespec millisecond{0, 1000000};
    nanosleep(&millisecond, nullptr);
  }
}

TEST(ThreadPool, CallerDoesThePartsOfAWorkerWithoutACore) {
  ThreadPool pool(3);
  pthread_t threads[3] = {};
  while (threads[2] == pthread_t{} || threads[2] == pthread_self()) {  // until the worker came in time for its part
    pool.run([&](int worker) { threads[worker] = pthread_self(); });
  }
  hold = true;
  std::signal(SIGUSR1, hold_thread);
  ASSERT_EQ(pthread_kill(threads[2], SIGUSR1), 0);
  while (!held) std::this_thread::yield();
  std::vector<int> calls(3), by_caller(3);
  for (int task = 0; task < 1000; ++task) {
    pool.run([&, caller = pthread_self()](int worker) {
      ++calls[static_cast<size_t>(worker)];
      by_caller[static_cast<size_t>(worker)] += pthread_self() == caller ? 1 : 0;
    });
  }
  EXPECT_EQ(calls, std::vector<int>(3, 1000));
  EXPECT_EQ(by_caller[2], 1000);
  hold = false;
  std::atomic<int> after{0};
  for (int task = 0; task < 1000; ++task)
    pool.run([&](int) { ++after; });  // back among the others, out of step by 1,000
  EXPECT_EQ(after, 3000);
}

TEST(ThreadPool, SleepsWhenIdleAndWakes) {
  ThreadPool pool(2);
  pool.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // past the spin time
  const auto cpu_time = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = cpu_time();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(cpu_time() - before, 0.02) << "an idle pool burns CPU";
  std::atomic<int> calls{0};
  pool.run([&](int) { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(ThreadPool, SharesEveryPartOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
        pool.for_shared(count, grain, [&](int worker, int64_t begin, int64_t end) {
          EXPECT_TRUE(worker >= 0 && worker < threads);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(begin < end && end <= std::min(count, begin + grain));
          for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
        });
        for (const auto& call : calls) EXPECT_EQ(call, 1) << threads << " threads, " << count << " by " << grain;
      }
    }
  }
}

TEST(ThreadPool, TakesWhatASlowWorkerHasNotBegun) {
  ThreadPool pool(2);
  std::atomic<int> left{100};
  std::atomic<int> by_slow{0};
  // Whoever takes the very first part keeps it until all others are done: of its share, the other one does the rest.
  pool.for_shared(100, 1, [&](int, int64_t begin, int64_t) {
    if (begin == 0) {
      while (left > 1) std::this_thread::yield();
      ++by_slow;
    }
    --left;
  });
  EXPECT_EQ(left, 0);
  EXPECT_EQ(by_slow, 1);
}

// In a child: the stacks of 64 threads do not fit into the address space that is left.
[[noreturn]] void start_too_many_threads() {
  const rlimit limit{256 << 20, 256 << 20};
  setrlimit(RLIMIT_AS, &limit);
  try {
    const ThreadPool pool(64);
  } catch (const std::runtime_error& error) {
    fputs(error.what(), stderr);
    _exit(3);
  }
  _exit(0);
}

TEST(ThreadPoolDeathTest, SaysWhenTheSystemRefusesAThread) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP()
      << "SKIPPED: a sanitizer's shadow memory needs more address space than the limit that provokes the error";
#endif
  EXPECT_EXIT(start_too_many_threads(), testing::ExitedWithCode(3),
              "cannot start 64 compute threads, the system allowed [0-9]+");
}

TEST(UsablePhysicalCores, IsBetweenOneAndTheMachine) {
  EXPECT_GE(usable_physical_cores(), 1);
  EXPECT_LE(usable_physical_cores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace headroom
