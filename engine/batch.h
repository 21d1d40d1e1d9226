// From the scheduler's plan to the flat arrays of a step (hop 6). Keeps its vectors from step to step. Engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/scheduler.h"
#include "kernels/backend.h"

namespace headroom {

class Batch {
 public:
  // Rows in the plan's order. The views stay valid until the next build().
  void build(const StepPlan& plan, const Scheduler& scheduler);

  const BatchView& view() const { return view_; }
  // The row of the last token of the plan's i-th sequence; its first is last_row(i) − tokens + 1.
  int32_t last_row(size_t i) const { return first_rows_[i + 1] - 1; }

 private:
  std::vector<int32_t> tokens_, positions_, first_rows_, page_tables_, page_table_begin_;
  BatchView view_;
};

}  // namespace headroom
