#include "engine/analysis/scaling.h"

#include <algorithm>

#include "engine/analysis/flops.h"
#include "engine/analysis/measured_step.h"
#include "kernels/check.h"

namespace headroom {
namespace {

constexpr double kSecondsMax = 0.4;  // for one context, after three steps

}  // namespace

std::vector<DecodePoint> measure_decode(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                                        std::span<const int32_t> contexts) {
  CHECK(!contexts.empty());
  CHECK_LE(contexts.back(), model.config.context_tokens);
  const auto backend = make_backend();
  MeteredBackend meter(*backend);
  // Two of each: a meter costs as much as a small step.
  MeasuredStep step(model, *backend, kv_dtype, contexts.back(), 1),
      metered_step(model, meter, kv_dtype, contexts.back(), 1);
  const KvShape shape = kv_shape(model.config, kv_dtype, 16);
  std::vector<DecodePoint> points;
  for (const int32_t context : contexts) {
    std::vector<double> steps, attentions;
    double total = step.run(context - 1, 1) + metered_step.run(context - 1, 1);  // warms up
    while (steps.size() < 3 || (steps.size() < kDecodeSteps && total < kSecondsMax)) {
      steps.push_back(step.run(context - 1, 1));
      meter.reset();
      total += steps.back() + metered_step.run(context - 1, 1);
      attentions.push_back(meter.attention().seconds);
    }
    points.push_back({.kv_heads = model.config.kv_heads,
                      .context_tokens = context,
                      .kv_bytes = context * shape.token_bytes(),
                      .step_seconds = std::ranges::min(steps),
                      .attention_seconds = std::ranges::min(attentions)});
  }
  return points;
}

}  // namespace headroom
