#include "server/worker_pool.h"

#include <exception>
#include <new>
#include <utility>

namespace headroom {

WorkerPool::WorkerPool(size_t threads_min, size_t threads_max, size_t pending_max, StartThread start_thread)
    : threads_max_(threads_max),
      pending_max_(pending_max),
      start_thread_(start_thread ? std::move(start_thread)
                                 : [](std::function<void()> run) { return std::thread(std::move(run)); }) {
  threads_.reserve(threads_max);  // so that a started thread can always be stored
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < threads_min; ++i, ++idle_) threads_.push_back(start_thread_([this] { thread_main(); }));
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::submit(Job job) {
  const std::lock_guard lock(mutex_);
  if (jobs_.size() >= pending_max_ + idle_) return false;
  if (jobs_.size() >= idle_ && threads_.size() < threads_max_) {
    try {
      threads_.push_back(start_thread_([this] { thread_main(); }));
      ++idle_;
    } catch (const std::exception&) {
      return false;  // no thread, or no memory for one: those that run may be streams that last for minutes
    }
  }
  try {
    jobs_.push_back(std::move(job));
  } catch (const std::bad_alloc&) {
    return false;
  }
  work_.notify_one();
  return true;
}

size_t WorkerPool::threads() const {
  const std::lock_guard lock(mutex_);
  return threads_.size();
}

void WorkerPool::thread_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::exchange(jobs_.front(), nullptr);
    jobs_.pop_front();
    --idle_;
    lock.unlock();
    job();
    job = nullptr;  // what it holds is let go outside the lock
    lock.lock();
    ++idle_;
  }
}

}  // namespace headroom
