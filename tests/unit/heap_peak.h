// Bytes on the heap and their peak, to bound what a hostile file can take. Replaces the program's operators new and delete: included by
// one source of a program.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace headroom {

inline std::atomic<size_t> live_bytes{0};
inline std::atomic<size_t> peak_bytes{0};

// How far the heap grew beyond what was there before, during the call.
template <typename Call>
size_t heap_growth(const Call& call) {
  const size_t before = live_bytes;
  peak_bytes = before;
  call();
  return peak_bytes - before;
}

}  // namespace headroom

void* operator new(size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  const size_t live = headroom::live_bytes += malloc_usable_size(memory);
  for (size_t peak = headroom::peak_bytes; live > peak && !headroom::peak_bytes.compare_exchange_weak(peak, live);) {
  }
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory != nullptr) headroom::live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}
void operator delete(void* memory, size_t /*bytes*/) noexcept { operator delete(memory); }
// A sanitizer's own array forms would pass by the counters.
void* operator new[](size_t bytes) { return operator new(bytes); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t /*bytes*/) noexcept { operator delete(memory); }
