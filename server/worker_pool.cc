#include "server/worker_pool.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

namespace headroom {

WorkerPool::WorkerPool(size_t threads_min, size_t threads_max, size_t pending_max, StartThread start_thread,
                       std::chrono::milliseconds idle_time)
    : threads_min_(threads_min),
      threads_max_(threads_max),
      pending_max_(pending_max),
      start_thread_(start_thread ? std::move(start_thread)
                                 : [](std::function<void()> run) { return std::thread(std::move(run)); }),
      idle_time_(idle_time) {
  try {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < threads_min; ++i) start_one();
  } catch (...) {
    end();
    throw;
  }
}

WorkerPool::~WorkerPool() { end(); }

void WorkerPool::end() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;  // from here on none leaves by itself
  }
  work_.notify_all();
  threads_.splice(threads_.end(), left_);
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::submit(Job job) {
  const std::lock_guard lock(mutex_);
  if (jobs_.size() >= pending_max_ + idle_) return false;
  if (jobs_.size() >= idle_ && threads_.size() < threads_max_) {
    try {
      start_one();
    } catch (const std::exception&) {
      if (threads_.size() == lasting_) return false;  // no thread, or no memory for one, and those that run may do so for minutes
    }
  }
  try {
    jobs_.push_back(std::move(job));
  } catch (const std::bad_alloc&) {
    return false;
  }
  idle_least_ = std::min(idle_least_, idle_ - std::min(idle_, jobs_.size()));
  work_.notify_one();
  return true;
}

bool WorkerPool::begin_lasting() {
  const std::lock_guard lock(mutex_);
  if (threads_needed() >= threads_max_) return false;
  try {
    while (threads_.size() <= threads_needed()) start_one();
  } catch (const std::exception&) {
    return false;
  }
  ++lasting_;
  return true;
}

void WorkerPool::end_lasting() {
  const std::lock_guard lock(mutex_);
  --lasting_;
}

size_t WorkerPool::threads() const {
  const std::lock_guard lock(mutex_);
  return threads_.size();
}

void WorkerPool::start_one() {
  const Threads::iterator place = threads_.emplace(threads_.end());
  try {
    *place = start_thread_([this, place] { thread_main(place); });
  } catch (...) {
    threads_.erase(place);
    throw;
  }
  ++idle_;
}

void WorkerPool::run_one(std::unique_lock<std::mutex>& lock) {
  Job job = std::exchange(jobs_.front(), nullptr);
  jobs_.pop_front();
  --idle_;
  lock.unlock();
  job();
  job = nullptr;  // what it holds is let go outside the lock
  lock.lock();
  ++idle_;
}

// The system wakes waiting threads in turn, so that each has work now and then: how many are too many is counted, not how long one waited.
void WorkerPool::count_surplus() {
  const Clock::time_point now = Clock::now();
  if (now - period_begin_ < idle_time_) return;
  surplus_ = std::min(idle_least_, threads_.size() - threads_needed());
  idle_least_ = idle_ - std::min(idle_, jobs_.size());
  period_begin_ = now;
}

void WorkerPool::thread_main(Threads::iterator self) {
  Threads before;
  {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait_for(lock, idle_time_, [this] { return ending_ || !jobs_.empty(); });
      if (!jobs_.empty()) run_one(lock);
      if (!jobs_.empty()) continue;
      if (ending_) return;
      count_surplus();
      if (surplus_ > 0 && threads_.size() > threads_needed()) break;
    }
    --surplus_;
    --idle_;
    before.swap(left_);
    left_.splice(left_.end(), threads_, self);
  }
  for (std::thread& thread : before) thread.join();
}

}  // namespace headroom
