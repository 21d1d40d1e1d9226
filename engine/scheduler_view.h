// A picture of the scheduler for people to look at: the pool as a map of cells, and the oldest requests. Bounded in size and in the
// time it takes, whatever the pool: at most kViewPagesMax page records and as many entries of page tables are read for it. A plain value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/ids.h"

namespace headroom {

inline constexpr int64_t kViewCellsMax = 1 << 14;
inline constexpr int64_t kViewPagesMax = 1 << 16;  // a larger pool is sampled: some pages of each cell, and every n-th of a page table, its ends included
inline constexpr size_t kViewRequestsMax = 64;

// What a cell shows: the state of its page or, of several, live before cached before free.
inline constexpr uint8_t kCellFree = 0;
inline constexpr uint8_t kCellCached = 1;
inline constexpr uint8_t kCellLive = 2;    // of a request that was not looked at; never in a pool of up to kViewPagesMax pages
inline constexpr uint8_t kCellShared = 3;  // several requests hold the page; only where a cell is one page
inline constexpr uint8_t kCellFirstRequest = 4;

// Which cells are a request's; every 252nd request has the same.
constexpr uint8_t cell_of(RequestId id) {
  constexpr int64_t kCodes = 256 - kCellFirstRequest;
  return static_cast<uint8_t>(kCellFirstRequest + static_cast<int64_t>(id) % kCodes);
}

struct SchedulerView {
  enum class State : uint8_t { waiting, prefill, decode };
  struct Request {
    RequestId id{};
    State state = State::waiting;
    int32_t choices = 1;
    int32_t prompt_tokens = 0;
    int32_t cached_tokens = 0;    // of the prompt, found in the prefix cache
    int32_t computed_tokens = 0;  // of its longest choice: positions whose K and V are in the pages
    int32_t preemptions = 0;
    int64_t pages = 0;  // distinct, of all choices, shared ones included
  };

  int64_t pages_per_cell = 1;
  std::vector<uint8_t> cells;     // [ceil(pages_total / pages_per_cell)]
  std::vector<Request> requests;  // oldest first: those that run, then those that wait, tenant by tenant; at most kViewRequestsMax
};

}  // namespace headroom
