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
  // Drawing that is not waited for: run() and launch_samples() return while a device is at work, and the engine plans the next step.
  // The results of all `samples`, of any number of rows, will be at `place`, 0 or 1, until that is launched again; token −1 − i of a later
  // batch is that of result i of the latest launch.
  virtual bool samples_ahead() const { return false; }
  virtual void launch_samples(int /*place*/, std::span<const int32_t> /*rows*/, std::span<const SampleRow> /*samples*/) {
    CHECK(false) << "this runner does not draw ahead";
  }
  // Waits for what was launched last for `place`, which comes with the end of its step. Throws what the step failed at.
  virtual std::span<const SampleResult> wait_samples(int /*place*/) {
    CHECK(false) << "this runner does not draw ahead";
    return {};
  }
  // Grows while run() gets on, from any thread: a step may take long without being stuck.
  virtual uint64_t progress() const { return 0; }
};

}  // namespace headroom
