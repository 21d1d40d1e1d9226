// One step of a model over a batch: the seam between the engine and the hardware. TransformerRunner is the real one; tests put a
// model of known behaviour, or of known faults, in its place.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/ids.h"
#include "kernels/backend.h"

namespace headroom {

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual int32_t vocab_size() const = 0;
  // Copies all layers' K and V of page `from` to page `to`.
  virtual void copy_page(PageId from, PageId to) = 0;
  // Runs the batch through the model, writing its K and V.
  virtual void run(const BatchView& batch) = 0;
  // Host-readable logits [S, V] of rows of the latest batch, S ≤ logits_rows_max(); valid until the next call of run() or logits().
  virtual Matrix logits(std::span<const int32_t> rows) = 0;
  virtual int32_t logits_rows_max() const = 0;
  // Where the backend draws: results[i] = what is drawn for samples[i] from the logits of rows[samples[i].logits_row] of the latest
  // batch, S ≤ logits_rows_max() rows.
  virtual void sample(std::span<const int32_t> /*rows*/, std::span<const SampleRow> /*samples*/, std::span<SampleResult> /*results*/) {
    CHECK(false) << "this runner leaves it to the host";
  }
  virtual bool samples() const { return false; }
  // Grows while run() gets on, from any thread: a step may take long without being stuck.
  virtual uint64_t progress() const { return 0; }
};

}  // namespace headroom
