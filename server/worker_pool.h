// A bounded pool of threads that are started when there is work for them and end when there is none for long, so that a server with room
// for hundreds of streams costs no more memory than the threads it needs. Every method may be called from any thread.
//
// threads_min of them are there from the beginning and stay, and a job that may take minutes must find a thread beyond them to begin: so many
// are left for short ones, whatever the system has left under load.
//
// Invariants: at most threads_max threads, at least threads_min more than lasting jobs; at most pending_max jobs that no thread has taken
// yet; every job that submit() accepted runs.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <thread>

namespace headroom {

class WorkerPool {
 public:
  using Job = std::function<void()>;  // must not throw
  // Starts a thread, or throws std::system_error as std::thread does when the system has none left.
  using StartThread = std::function<std::thread(std::function<void()>)>;

  // As many threads as had nothing to do for all of `idle_time` end after it. Throws std::system_error if the first threads_min threads
  // cannot be had.
  WorkerPool(size_t threads_min, size_t threads_max, size_t pending_max, StartThread start_thread = {},
             std::chrono::milliseconds idle_time = std::chrono::seconds(2));
  ~WorkerPool();  // runs what was accepted, then joins

  // False when the job cannot be taken: too many wait, or all threads are at lasting ones and none can be started.
  bool submit(Job job);
  // By a job that may last, until end_lasting(). False: threads_max or the system has no thread in its place, so it must not.
  bool begin_lasting();
  void end_lasting();
  size_t threads() const;

 private:
  using Clock = std::chrono::steady_clock;
  using Threads = std::list<std::thread>;

  // All four: REQUIRES the mutex.
  void start_one();
  size_t threads_needed() const { return threads_min_ + lasting_; }
  void run_one(std::unique_lock<std::mutex>& lock);
  void count_surplus();
  void thread_main(Threads::iterator self);
  void end();

  const size_t threads_min_;
  const size_t threads_max_;
  const size_t pending_max_;
  const StartThread start_thread_;
  const std::chrono::milliseconds idle_time_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Job> jobs_;
  Threads threads_;
  Threads left_;           // the last that ended by itself, which the next one joins
  size_t lasting_ = 0;     // jobs between begin_lasting() and end_lasting()
  size_t idle_ = 0;        // threads without a job, those that are just starting included
  size_t idle_least_ = 0;  // the fewest for which there was no job, since period_begin_
  size_t surplus_ = 0;     // threads that are to end
  Clock::time_point period_begin_ = Clock::now();
  bool ending_ = false;
};

}  // namespace headroom
