#include "engine/batch.h"

namespace headroom {

void Batch::build(const StepPlan& plan, const Scheduler& scheduler) {
  tokens_.clear();
  positions_.clear();
  page_tables_.clear();
  first_rows_.assign(1, 0);
  page_table_begin_.assign(1, 0);
  for (const ScheduledSequence& scheduled : plan.sequences) {
    const std::span<const TokenId> tokens = scheduler.tokens(scheduled.id);
    for (int32_t i = 0; i < scheduled.tokens; ++i) {
      const int32_t position = scheduled.first_position + i;
      tokens_.push_back(tokens[static_cast<size_t>(position)]);
      positions_.push_back(position);
    }
    for (PageId page : scheduler.page_table(scheduled.id)) page_tables_.push_back(static_cast<int32_t>(page));
    first_rows_.push_back(static_cast<int32_t>(tokens_.size()));
    page_table_begin_.push_back(static_cast<int32_t>(page_tables_.size()));
  }
  view_ = {.rows = static_cast<int32_t>(tokens_.size()),
           .tokens = tokens_,
           .positions = positions_,
           .sequence_first_row = first_rows_,
           .page_tables = page_tables_,
           .page_table_begin = page_table_begin_};
}

}  // namespace headroom
