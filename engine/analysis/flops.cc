#include "engine/analysis/flops.h"

#include <algorithm>
#include <vector>

#include "engine/analysis/measured_step.h"

namespace headroom {

FlopCount closed_form_flops(const ModelConfig& config, int32_t first_position, int32_t rows) {
  const int64_t D = config.model_dim, F = config.ffn_dim, V = config.vocab_size, layers = config.layers;
  const int64_t QK = int64_t{config.query_heads} * config.head_dim, GK = int64_t{config.kv_heads} * config.head_dim;
  int64_t keys = 0;
  for (int64_t position = first_position; position < int64_t{first_position} + rows; ++position) {
    keys += config.window_tokens > 0 ? std::min<int64_t>(position + 1, config.window_tokens) : position + 1;
  }
  return {.projections = layers * 2 * rows * D * (2 * QK + 2 * GK),
          .attention = layers * 4 * QK * keys,
          .ffn = layers * 2 * rows * 3 * D * F,
          .output = 2 * D * V};
}

void MeteredBackend::Reading::add(const Reading& other) {
  flops += other.flops;
  seconds += other.seconds;
}

double MeteredBackend::timed(const std::function<void()>& op) {
  inner_.synchronize();
  stopwatch_.start();
  op();
  inner_.synchronize();
  return stopwatch_.seconds();
}

void MeteredBackend::gemm(Matrix out, Matrix x, const Weight& weight, Vector bias) {
  const double seconds = timed([&] { inner_.gemm(out, x, weight, bias); });
  gemms_[&weight].add({2 * x.rows * weight.rows() * weight.cols(), seconds});
}

void MeteredBackend::paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                                     const AttentionParams& params) {
  const double seconds = timed([&] { inner_.paged_attention(out, qkv, layer, batch, params); });
  for (const int32_t position : batch.positions) {
    int64_t keys = 0;  // that this row sees
    for (int32_t j = 0; j <= position; ++j)
      keys += params.window_tokens == 0 || position - j < params.window_tokens ? 1 : 0;
    attention_.flops += 2 * (2 * keys * params.query_heads * params.head_dim);
  }
  attention_.seconds += seconds;
}

void MeteredBackend::reset() {
  gemms_.clear();
  attention_ = {};
}

MeteredBackend::Reading MeteredBackend::gemm_of(const Weight& weight) const {
  const auto found = gemms_.find(&weight);
  return found == gemms_.end() ? Reading{} : found->second;
}

FlopMeasurement measure_flops(const VariantModel& model, const BackendMaker& make_backend, DType kv_dtype,
                              int32_t tokens, int32_t repetitions) {
  const auto backend = make_backend();
  MeteredBackend meter(*backend);
  MeasuredStep step(model, meter, kv_dtype, tokens, tokens);
  std::vector<FlopMeasurement> runs;
  for (int32_t i = 0; i <= repetitions; ++i) {
    meter.reset();
    FlopMeasurement run{.kv_heads = model.config.kv_heads,
                        .tokens = tokens,
                        .closed_form = closed_form_flops(model.config, 0, tokens),
                        .step_seconds = step.run(0, tokens)};
    MeteredBackend::Reading projections, ffn;
    for (const LayerWeights& layer : model.weights->layers) {
      for (const Weight* weight : {layer.qkv.get(), layer.o.get()}) projections.add(meter.gemm_of(*weight));
      for (const Weight* weight : {layer.gate_up.get(), layer.down.get()}) ffn.add(meter.gemm_of(*weight));
    }
    const MeteredBackend::Reading output = meter.gemm_of(model.weights->output());
    run.counted = {projections.flops, meter.attention().flops, ffn.flops, output.flops};
    run.projection_seconds = projections.seconds;
    run.attention_seconds = meter.attention().seconds;
    run.ffn_seconds = ffn.seconds;
    run.output_seconds = output.seconds;
    if (i > 0) runs.push_back(run);  // the first one warms up
  }
  return *std::ranges::min_element(runs, {}, &FlopMeasurement::step_seconds);
}

}  // namespace headroom
