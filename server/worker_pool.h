// A bounded pool of threads that are started when there is work for them, so that a server with room for hundreds of streams costs no
// more memory at start than the few threads it needs. Every method may be called from any thread.
//
// threads_min of them are there from the beginning: a reserve that does not depend on what the system has left under load.
//
// Invariants: at most threads_max threads, at most pending_max jobs that no thread has taken yet; every job that submit() accepted runs.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace headroom {

class WorkerPool {
 public:
  using Job = std::function<void()>;  // must not throw
  // Starts a thread, or throws std::system_error as std::thread does when the system has none left.
  using StartThread = std::function<std::thread(std::function<void()>)>;

  // Throws std::system_error if the first threads_min threads cannot be had.
  WorkerPool(size_t threads_min, size_t threads_max, size_t pending_max, StartThread start_thread = {});
  ~WorkerPool();  // runs what was accepted, then joins

  // False when the job cannot be taken: too many wait, or no thread is idle and none can be started.
  bool submit(Job job);
  size_t threads() const;

 private:
  void thread_main();

  const size_t threads_max_;
  const size_t pending_max_;
  const StartThread start_thread_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Job> jobs_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;  // threads without a job, those that are just starting included
  bool ending_ = false;
};

}  // namespace headroom
