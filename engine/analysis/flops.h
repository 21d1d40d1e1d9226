// Analysis 4: the floating-point operations of a forward pass, by a closed form, and as counted and timed at the
// backend's door. A multiply-add is two operations. Norms, RoPE, softmax and SiLU are not counted: they grow with
// neither of the two products.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "engine/analysis/forwarding_backend.h"
#include "engine/analysis/stopwatch.h"
#include "engine/analysis/variants.h"

namespace headroom {

struct FlopCount {
  int64_t projections = 0;  // q, k, v and o
  int64_t attention = 0;    // q·k and p·v: what each row sees, itself included
  int64_t ffn = 0;
  int64_t output = 0;  // logits
  int64_t total() const { return projections + attention + ffn + output; }
  bool operator==(const FlopCount&) const = default;
};

// Of `rows` rows at positions from `first_position` on, and the logits of one of them:
//   projections  2 · rows · D · (Q + 2G)K + 2 · rows · QK · D   per layer
//   attention    4 · Q · K · Σ min(position + 1, window)        per layer; G is not in it
//   ffn          2 · rows · 3 · D · F                           per layer
//   output       2 · D · V
FlopCount closed_form_flops(const ModelConfig& config, int32_t first_position, int32_t rows);

// Counts and times what passes through, by weight, and attention apart. Waits for the device around each op. Engine
// thread, or whoever runs the model: the one that made it.
class MeteredBackend : public ForwardingBackend {
 public:
  struct Reading {
    int64_t flops = 0;
    double seconds = 0;
    void add(const Reading& other);
  };
  using ForwardingBackend::ForwardingBackend;

  void gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) override;
  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                       const AttentionParams& params) override;

  void reset();
  const Reading& attention() const { return attention_; }
  Reading gemm_of(const Weight& weight) const;

 private:
  double timed(const std::function<void()>& op);
  Stopwatch stopwatch_;
  std::map<const Weight*, Reading> gemms_;
  Reading attention_;
};

struct FlopMeasurement {
  int32_t kv_heads = 0;
  int32_t tokens = 0;
  FlopCount closed_form, counted;
  double projection_seconds = 0, attention_seconds = 0, ffn_seconds = 0, output_seconds = 0;
  double step_seconds = 0;  // the whole pass, with all that is not counted
};

// One prompt of `tokens` tokens in one step, `repetitions` times after one that warms up; the fastest of them.
FlopMeasurement measure_flops(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                              int32_t tokens, int32_t repetitions);

}  // namespace headroom
