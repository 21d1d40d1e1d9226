#include "engine/analysis/scaling.h"

#include <algorithm>

#include "engine/analysis/flops.h"
#include "engine/analysis/measured_step.h"
#include "kernels/check.h"

namespace headroom {
namespace {

constexpr int kSteps = 21;
constexpr double kSecondsMax = 1.5;  // for one context; at least three steps

}  // namespace

std::vector<DecodePoint> measure_decode(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                                        std::span<const int32_t> contexts) {
  CHECK(!contexts.empty());
  CHECK_LE(contexts.back(), model.config.context_tokens);
  const auto backend = make_backend();
  MeteredBackend meter(*backend);
  MeasuredStep step(model, meter, kv_dtype, contexts.back(), 1);
  const KvShape shape = kv_shape(model.config, kv_dtype, 16);
  std::vector<DecodePoint> points;
  for (const int32_t context : contexts) {
    std::vector<std::pair<double, double>> times;  // of the step, of its attention
    double total = step.run(context - 1, 1);       // warms up
    while (times.size() < 3 || (times.size() < kSteps && total < kSecondsMax)) {
      meter.reset();
      const double seconds = step.run(context - 1, 1);
      times.emplace_back(seconds, meter.attention().seconds);
      total += seconds;
    }
    std::sort(times.begin(), times.end());
    points.push_back({.kv_heads = model.config.kv_heads,
                      .context_tokens = context,
                      .kv_bytes = context * shape.token_bytes(),
                      .step_seconds = times[times.size() / 2].first,
                      .attention_seconds = times[times.size() / 2].second});
  }
  return points;
}

}  // namespace headroom
