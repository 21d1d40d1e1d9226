#include "kernels/cuda/decode_step.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/check.h"

namespace headroom::cuda {
namespace {

constexpr size_t kAlignBytes = 256;

}  // namespace

DecodeStep::Layout::Layout(const DecodeStepLimits& limits) {
  size_t bytes = 0;
  const auto take = [&bytes](int64_t count, size_t element_bytes) {
    const size_t begin = bytes;
    bytes += (static_cast<size_t>(count) * element_bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    return begin;
  };
  tokens = take(limits.rows, sizeof(int32_t));
  positions = take(limits.rows, sizeof(int32_t));
  row_pages = take(limits.rows, sizeof(int32_t));
  unit_count = take(1, sizeof(int32_t));
  tiles = take(limits.rows, sizeof(AttentionTile));
  units = take(limits.units, sizeof(AttentionUnit));
  page_tables = take(limits.page_entries, sizeof(int32_t));
  end = bytes;
}

DecodeStep::DecodeStep(const DecodeStepLimits& limits)
    : limits_(limits), layout_(limits), device_(layout_.end), hosts_{Host(layout_.end), Host(layout_.end)} {}

size_t DecodeStep::device_bytes(const DecodeStepLimits& limits) { return Layout(limits).end; }

bool DecodeStep::takes(const BatchView& batch) const {
  return decode_bucket(batch.rows) <= limits_.rows && batch.sequence_first_row.size() == static_cast<size_t>(batch.rows) + 1 &&
         std::ranges::adjacent_find(batch.sequence_first_row, std::equal_to{}) == batch.sequence_first_row.end() &&
         static_cast<int64_t>(batch.page_tables.size()) <= limits_.page_entries;
}

void DecodeStep::fill_up(const BatchView& batch, int32_t page_tokens) {
  const auto rows = static_cast<size_t>(decode_bucket(batch.rows));
  tokens_.assign(batch.tokens.begin(), batch.tokens.end());
  tokens_.resize(rows, 0);
  positions_.assign(batch.positions.begin(), batch.positions.end());
  positions_.resize(rows, -1);
  first_rows_.resize(rows + 1);
  std::iota(first_rows_.begin(), first_rows_.end(), 0);
  table_begin_.assign(batch.page_table_begin.begin(), batch.page_table_begin.end());
  table_begin_.resize(rows + 1, batch.page_table_begin.back());
  row_pages_.assign(rows, -1);
  for (size_t row = 0; row < static_cast<size_t>(batch.rows); ++row) {
    row_pages_[row] = batch.page_tables[static_cast<size_t>(table_begin_[row] + positions_[row] / page_tokens)];
    CHECK_GE(row_pages_[row], 0) << "a row's own page must be there";
  }
  view_ = {.rows = static_cast<int32_t>(rows),
           .tokens = tokens_,
           .positions = positions_,
           .sequence_first_row = first_rows_,
           .page_tables = batch.page_tables,
           .page_table_begin = table_begin_};
}

void DecodeStep::put(const BatchView& batch, const WorkListOptions& options, int32_t page_tokens, cudaStream_t stream) {
  CHECK(takes(batch));
  fill_up(batch, page_tokens);
  make_work_list(view_, options, work_);
  const auto unit_count = static_cast<int32_t>(work_.units.size());
  CHECK_LE(unit_count, limits_.units);
  CHECK_EQ(std::ranges::count(work_.units_of, 0), kRowWarpKinds - 1) << "rows of one token are all of one kind";
  Host& host = hosts_[turn_ ^= 1];
  host.read.wait();
  const auto write = [&host](size_t offset, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(host.memory.data() + offset, from, bytes);
  };
  write(layout_.tokens, tokens_.data(), tokens_.size() * sizeof(int32_t));
  write(layout_.positions, positions_.data(), positions_.size() * sizeof(int32_t));
  write(layout_.row_pages, row_pages_.data(), row_pages_.size() * sizeof(int32_t));
  write(layout_.unit_count, &unit_count, sizeof(unit_count));
  write(layout_.tiles, work_.tiles.data(), work_.tiles.size() * sizeof(AttentionTile));
  write(layout_.units, work_.units.data(), work_.units.size() * sizeof(AttentionUnit));
  write(layout_.page_tables, view_.page_tables.data(), view_.page_tables.size_bytes());
  // Two copies: what comes before the page tables, as far as it is used, and they.
  const size_t head_bytes = layout_.units + work_.units.size() * sizeof(AttentionUnit);
  check_cuda(cudaMemcpyAsync(device_.data(), host.memory.data(), head_bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync of a step");
  check_cuda(cudaMemcpyAsync(device_.data() + layout_.page_tables, host.memory.data() + layout_.page_tables,
                             view_.page_tables.size_bytes(), cudaMemcpyHostToDevice, stream),
             "cudaMemcpyAsync of page tables");
  host.read.record(stream);
}

}  // namespace headroom::cuda
