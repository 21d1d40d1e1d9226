#include "server/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <system_error>

namespace headroom {
namespace {

using namespace std::chrono_literals;

void wait_until(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + 10s;
  while (!done() && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(1ms);
  ASSERT_TRUE(done());
}

TEST(WorkerPool, StartsNoThreadBeforeThereIsWorkAndReusesTheIdleOnes) {
  WorkerPool pool(0, 8, 8);
  EXPECT_EQ(pool.threads(), 0u);
  for (int i = 0; i < 20; ++i) {
    std::promise<void> ran;
    ASSERT_TRUE(pool.submit([&] { ran.set_value(); }));
    ran.get_future().wait();
    std::this_thread::sleep_for(5ms);  // until the thread is idle again
  }
  EXPECT_LE(pool.threads(), 2u);
}

TEST(WorkerPool, RunsUpToThreadsMaxJobsAtOnceAndKeepsABoundedQueue) {
  std::promise<void> open;
  const std::shared_future<void> gate = open.get_future().share();
  std::atomic<int> running{0}, done{0};
  WorkerPool pool(1, 3, 2);
  const auto job = [&, gate] {
    ++running;
    gate.wait();
    ++done;
  };
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(pool.submit(job));
  wait_until([&] { return running == 3; });
  EXPECT_TRUE(pool.submit(job));
  EXPECT_TRUE(pool.submit(job));
  EXPECT_FALSE(pool.submit(job));
  EXPECT_EQ(pool.threads(), 3u);
  open.set_value();
  wait_until([&] { return done == 5; });
}

TEST(WorkerPool, RunsEveryAcceptedJobBeforeItEnds) {
  std::atomic<int> done{0};
  int accepted = 0;
  {
    WorkerPool pool(0, 2, 1000);
    for (int i = 0; i < 500; ++i) accepted += pool.submit([&] { ++done; });
  }
  EXPECT_EQ(accepted, 500);
  EXPECT_EQ(done, 500);
}

TEST(WorkerPool, RefusesWorkWhenTheSystemHasNoThreadAndGoesOnWhenItHas) {
  int starts_left = 0;
  WorkerPool pool(0, 4, 4, [&](std::function<void()> run) {
    if (starts_left-- <= 0) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    return std::thread(std::move(run));
  });
  std::atomic<int> done{0};
  EXPECT_FALSE(pool.submit([&] { ++done; }));
  starts_left = 1;
  std::promise<void> open;
  EXPECT_TRUE(pool.submit([&, gate = open.get_future().share()] {
    gate.wait();
    ++done;
  }));
  EXPECT_TRUE(pool.submit([&] { ++done; }));  // the only thread is busy, but not for long
  open.set_value();
  wait_until([&] { return done == 2; });
  bool accepted = false;  // once the thread is idle again
  wait_until([&] { return accepted = accepted || pool.submit([&] { ++done; }); });
  wait_until([&] { return done == 3; });
  EXPECT_EQ(pool.threads(), 1u);
}

// Jobs that last begin only where threads_min threads are left for the others, whatever the system gives.
TEST(WorkerPool, LastingJobsLeaveTheReserveWhenTheSystemHasNoMoreThreads) {
  std::atomic<int> starts_left{5};
  std::promise<void> open;
  const std::shared_future<void> gate = open.get_future().share();
  std::atomic<int> began{0}, refused{0}, done{0};
  WorkerPool pool(2, 16, 16, [&](std::function<void()> run) {
    if (starts_left-- <= 0) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    return std::thread(std::move(run));
  });
  for (int i = 1; i <= 6; ++i) {
    ASSERT_TRUE(pool.submit([&, gate] {
      if (!pool.begin_lasting()) return void(++refused);
      ++began;
      gate.wait();
      pool.end_lasting();
    }));
    wait_until([&] { return began + refused == i; });
  }
  EXPECT_EQ(began, 3) << "of five threads two are kept";
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(pool.submit([&] { ++done; }));
  wait_until([&] { return done == 10; });
  open.set_value();
  wait_until([&] { return pool.submit([&] {
    if (pool.begin_lasting()) {
      ++began;
      pool.end_lasting();
    }
  }) && began > 3; });
}

TEST(WorkerPool, LastingJobsAreBoundedByThreadsMax) {
  WorkerPool pool(1, 3, 4);
  EXPECT_TRUE(pool.begin_lasting());
  EXPECT_TRUE(pool.begin_lasting());
  EXPECT_FALSE(pool.begin_lasting());
  EXPECT_EQ(pool.threads(), 3u);
  pool.end_lasting();
  EXPECT_TRUE(pool.begin_lasting());
}

TEST(WorkerPool, AReserveThatCannotBeHadIsAnExceptionAndNotTheEnd) {
  int starts_left = 3;
  EXPECT_THROW(WorkerPool(8, 16, 16, [&](std::function<void()> run) {
                 if (starts_left-- <= 0) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
                 return std::thread(std::move(run));
               }),
               std::system_error);
}

// A burst of jobs leaves no threads behind, though there is always a little to do, at which all of them take turns.
TEST(WorkerPool, ThreadsThatABurstNeededEndAfterIt) {
  std::atomic<int> started{0};
  WorkerPool pool(2, 64, 64, [&](std::function<void()> run) {
    ++started;
    return std::thread(std::move(run));
  }, 50ms);
  for (int burst = 1; burst <= 3; ++burst) {
    std::promise<void> open;
    const std::shared_future<void> gate = open.get_future().share();
    for (int i = 0; i < 64; ++i) ASSERT_TRUE(pool.submit([gate] { gate.wait(); }));
    EXPECT_EQ(pool.threads(), 64u);
    std::this_thread::sleep_for(150ms);
    EXPECT_EQ(pool.threads(), 64u) << "those that work stay";
    open.set_value();
    wait_until([&] {
      EXPECT_TRUE(pool.submit([] {}));
      return pool.threads() <= 4;
    });
    wait_until([&] { return pool.threads() == 2; });
  }
  EXPECT_GE(started, 2 + 3 * 60);
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(pool.threads(), 2u) << "the reserve stays";
}

}  // namespace
}  // namespace headroom
