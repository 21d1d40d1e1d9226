#include "engine/scheduler_view.h"

#include <algorithm>

#include "engine/scheduler.h"

namespace headroom {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

SchedulerView::State state_of(const Sequence& sequence) {
  if (sequence.state != SequenceState::running) return SchedulerView::State::waiting;
  const bool reading = sequence.uncomputed() > 1 || sequence.computed < sequence.request->prompt_tokens;
  return reading ? SchedulerView::State::prefill : SchedulerView::State::decode;
}

// Which pages are free, cached, live: of each cell all, or the first few, whose records are neighbours in memory.
void map_states(const PageAllocator& pages, SchedulerView& view) {
  const int64_t looked_at = std::min(view.pages_per_cell, ceil_div(kViewPagesMax, static_cast<int64_t>(view.cells.size())));
  for (size_t cell = 0; cell < view.cells.size(); ++cell) {
    const int64_t begin = static_cast<int64_t>(cell) * view.pages_per_cell;
    const int64_t end = std::min(begin + looked_at, pages.total());
    uint8_t code = kCellFree;
    for (int64_t index = begin; index < end && code != kCellLive; ++index) {
      const PageId page{static_cast<int32_t>(index)};
      code = pages.references(page) > 0 ? kCellLive : pages.is_cacheable(page) ? kCellCached : code;
    }
    view.cells[cell] = code;
  }
}

void map_owner(const Sequence& sequence, int64_t stride, SchedulerView& view) {
  const uint8_t owner = cell_of(sequence.request_id);
  const auto mark = [&](PageId page) {
    if (page == kNoPage) return;
    uint8_t& cell = view.cells[static_cast<size_t>(index_of(page) / view.pages_per_cell)];
    if (cell < kCellShared) {
      cell = owner;
    } else if (cell != owner && view.pages_per_cell == 1) {
      cell = kCellShared;
    }
  };
  const std::vector<PageId>& table = sequence.pages;
  for (size_t i = 0; i < table.size(); i += static_cast<size_t>(stride)) mark(table[i]);
  if (!table.empty()) mark(table.back());
}

void add_request(const Sequence& sequence, SchedulerView& view) {
  const Request& request = *sequence.request;
  if (!view.requests.empty() && view.requests.back().id == request.id) {  // its choices are neighbours
    int32_t& computed = view.requests.back().computed_tokens;
    computed = std::max(computed, sequence.computed);
    return;
  }
  if (view.requests.size() == kViewRequestsMax) return;
  view.requests.push_back({.id = request.id,
                           .state = state_of(sequence),
                           .choices = request.choices,
                           .prompt_tokens = request.prompt_tokens,
                           .cached_tokens = static_cast<int32_t>(request.usage.cached_prompt_tokens),
                           .computed_tokens = sequence.computed,
                           .preemptions = request.usage.preemptions,
                           .pages = request.pages.held()});
}

}  // namespace

SchedulerView Scheduler::view() const {
  const int64_t total = allocator_.total();
  const int64_t stride = ceil_div(total, kViewPagesMax);
  SchedulerView view;
  view.pages_per_cell = ceil_div(total, kViewCellsMax);
  view.cells.resize(static_cast<size_t>(ceil_div(total, view.pages_per_cell)));
  view.requests.reserve(kViewRequestsMax);
  map_states(allocator_, view);
  for (const Sequence* sequence : running_) {
    map_owner(*sequence, stride, view);
    add_request(*sequence, view);
  }
  size_t looked_at = 0;
  const auto add_waiting = [&](const Sequence* first) {
    for (const Sequence* s = first; s != nullptr && looked_at < kViewRequestsMax; s = s->waiting_next, ++looked_at) add_request(*s, view);
  };
  add_waiting(preempted_.first());
  for (size_t tenant = 0; tenant < tenant_use_.size(); ++tenant) add_waiting(queue_.first_of(TenantId{static_cast<int32_t>(tenant)}));
  return view;
}

}  // namespace headroom
