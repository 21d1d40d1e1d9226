// The arrays of a decode step (one new token of each sequence) at addresses of the device that stay, so that the launches of a step can
// be recorded once and replayed for every later one: what changes from step to step is in these arrays alone.
//
// A batch is filled up with rows of padding (BatchView) to one of a few sizes, the buckets, for each of which a recording is made.
// Plain bookkeeping beside the two copies: tests/cuda_on_cpu/decode_step_test.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/work_list.h"

namespace headroom::cuda {

constexpr int32_t kDecodeRowsMax = 512;  // of a bucket; larger steps are long beside their launches

// The rows that a step of `rows` is filled up to. gemm takes rows by eights, so little is lost.
constexpr int32_t decode_bucket(int32_t rows) {
  if (rows <= 2) return rows;
  if (rows <= 4) return 4;
  return rows <= 64 ? (rows + 7) / 8 * 8 : (rows + 31) / 32 * 32;
}

struct DecodeStepLimits {
  int32_t rows = 0;           // of the largest bucket
  int64_t page_entries = 0;   // in the page tables of all sequences
  int64_t units = 0;          // of attention
};

class DecodeStep {
 public:
  explicit DecodeStep(const DecodeStepLimits& limits);
  static size_t device_bytes(const DecodeStepLimits& limits);

  // One row of each sequence, and no more than the limits.
  bool takes(const BatchView& batch) const;
  // Fills up, cuts attention into units, and brings both to the device, behind what is at work there: it waits for the step before the
  // last one alone. REQUIRES: takes(batch).
  void put(const BatchView& batch, const WorkListOptions& options, int32_t page_tokens, cudaStream_t stream);

  // Of what was put: the batch with its padding, on the host, and where its arrays are on the device.
  const BatchView& batch() const { return view_; }
  const WorkList& work() const { return work_; }
  const int32_t* tokens() const { return at<int32_t>(layout_.tokens); }
  const int32_t* positions() const { return at<int32_t>(layout_.positions); }
  const int32_t* row_pages() const { return at<int32_t>(layout_.row_pages); }
  const int32_t* page_tables() const { return at<int32_t>(layout_.page_tables); }
  const int32_t* unit_count() const { return at<int32_t>(layout_.unit_count); }
  const AttentionTile* tiles() const { return at<AttentionTile>(layout_.tiles); }
  const AttentionUnit* units() const { return at<AttentionUnit>(layout_.units); }

 private:
  struct Layout {  // bytes from the beginning
    size_t tokens, positions, row_pages, unit_count, tiles, units, page_tables, end;
    explicit Layout(const DecodeStepLimits& limits);
  };
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(device_.data() + offset);
  }
  void fill_up(const BatchView& batch, int32_t page_tokens);

  const DecodeStepLimits limits_;
  const Layout layout_;
  DeviceMemory device_;
  struct Host {  // what is on its way to the device
    explicit Host(size_t bytes) : memory(bytes) {}
    PinnedMemory memory;
    Event read;
  };
  Host hosts_[2];  // in turn
  size_t turn_ = 0;
  std::vector<int32_t> tokens_, positions_, first_rows_, table_begin_, row_pages_;
  BatchView view_;
  WorkList work_;
};

}  // namespace headroom::cuda
