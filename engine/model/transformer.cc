#include "engine/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"

namespace headroom {

// Everything that a step writes, in one buffer that is allocated once. Rows are laid out for the largest step; a step
// uses the first T. Attention and feed-forward never live at the same time, so they share `scratch`.
struct Transformer::Activations {
  std::unique_ptr<Buffer> buffer;
  float* residual = nullptr;  // [T, D] the stream x
  float* normed = nullptr;    // [T, D] what a block reads; after the last layer, the final norm
  float* branch = nullptr;    // [T, D] what a block adds
  float* rope = nullptr;      // [T, rotary_dim] cosines, then sines
  float* scratch = nullptr;   // [T, (Q+2G)·K] and [T, Q·K], or [T, 2F] and [T, F]
  float* sampled = nullptr;   // [S, D]
  float* logits = nullptr;    // [S, V]
  RopeTable angles;           // host
  int64_t rows = 0;           // T of the latest forward()
};

namespace {

constexpr size_t kAlignBytes = 64;

// The pieces of a buffer, counted first and pointed at afterwards.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  // Room for [rows, cols] fp32, 64-byte aligned.
  float* take(int64_t rows, int64_t cols) {
    auto* piece = base_ == nullptr ? nullptr : reinterpret_cast<float*>(base_ + bytes_);
    const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(cols) * sizeof(float);
    bytes_ += (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

int64_t qkv_dim(const ModelConfig& config) {
  return int64_t{config.query_heads + 2 * config.kv_heads} * config.head_dim;
}
int64_t attention_dim(const ModelConfig& config) { return int64_t{config.query_heads} * config.head_dim; }

// Points `a` at its pieces of `base`, and returns the bytes of all; null: counts alone.
template <typename Activations>
size_t carve(const ModelConfig& config, const TransformerOptions& options, std::byte* base, Activations& a) {
  const int64_t t = options.step_tokens_max, s = options.logits_rows_max, d = config.model_dim;
  const int64_t attention = qkv_dim(config) + attention_dim(config), ffn = 3 * int64_t{config.ffn_dim};
  Carver carver(base);
  a.residual = carver.take(t, d);
  a.normed = carver.take(t, d);
  a.branch = carver.take(t, d);
  a.rope = carver.take(t, config.rope.rotary_dim);
  a.scratch = carver.take(t, std::max(attention, ffn));
  a.sampled = carver.take(s, d);
  a.logits = carver.take(s, config.vocab_size);
  return carver.bytes();
}

}  // namespace

StepLimits step_limits(const ModelConfig& config, const TransformerOptions& options, int32_t sequences_max, int32_t sequence_pages) {
  const int64_t D = config.model_dim, F = config.ffn_dim;
  return {.rows = options.step_tokens_max,
          .logits_rows = options.logits_rows_max,
          .sequences = sequences_max,
          .sequence_pages = sequence_pages,
          .weights = {{qkv_dim(config), D}, {D, attention_dim(config)}, {2 * F, D}, {D, F}},
          .output_weight = {config.vocab_size, D},
          .query_heads = config.query_heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim};
}

Transformer::Transformer(ModelConfig config, std::shared_ptr<const ModelWeights> weights, Backend& backend,
                         const TransformerOptions& options)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      backend_(backend),
      options_(options),
      activations_(std::make_unique<Activations>()) {
  CHECK_GT(options.step_tokens_max, 0);
  CHECK_GT(options.logits_rows_max, 0);
  CHECK_GT(options.served_context_tokens, 0);
  CHECK_LE(options.served_context_tokens, config_.context_tokens);
  CHECK_EQ(weights_->layers.size(), static_cast<size_t>(config_.layers));
  Activations& a = *activations_;
  a.angles = make_rope_table(config_.rope, options.served_context_tokens);
  a.buffer = backend.allocate(predicted_activation_bytes(config_, options));
  carve(config_, options, a.buffer->data(), a);
}

Transformer::~Transformer() = default;

size_t Transformer::predicted_activation_bytes(const ModelConfig& config, const TransformerOptions& options) {
  Activations nowhere;
  return carve(config, options, nullptr, nowhere);
}

const ModelConfig& Transformer::config() const { return config_; }
size_t Transformer::weight_bytes() const { return weights_->bytes; }
size_t Transformer::activation_bytes() const { return activations_->buffer->bytes(); }

void Transformer::forward(const BatchView& batch, std::span<const KvLayer> kv_layers) {
  static std::atomic<uint64_t> programs{0};
  CHECK_GT(batch.rows, 0);
  CHECK_LE(batch.rows, options_.step_tokens_max);
  CHECK_EQ(kv_layers.size(), weights_->layers.size());
  if (!is_recorded_pool(kv_layers)) {
    recorded_kv_ = {kv_layers.front(), kv_layers.back()};
    program_ = ++programs;
  }
  const uint64_t layers_before = layers_run();
  backend_.run_step(batch, program_, [&](const BatchView& given) { run_layers(given, kv_layers); });
  layers_run_.store(layers_before + weights_->layers.size(), std::memory_order_relaxed);  // also where they were replayed
  activations_->rows = batch.rows;
}

// A pool may take the place of another one in memory, with pages of another size or number.
bool Transformer::is_recorded_pool(std::span<const KvLayer> kv_layers) const {
  const KvLayer &first = kv_layers.front(), &known = recorded_kv_.first;
  return first.data == known.data && kv_layers.back().data == recorded_kv_.second.data && first.dtype == known.dtype &&
         first.page_stride_bytes == known.page_stride_bytes && first.page_tokens == known.page_tokens;
}

void Transformer::run_layers(const BatchView& batch, std::span<const KvLayer> kv_layers) {
  const int64_t T = batch.rows, D = config_.model_dim, F = config_.ffn_dim, QK = attention_dim(config_);
  CHECK_LE(T, options_.step_tokens_max);
  Activations& a = *activations_;
  const Matrix x(a.residual, T, D), h(a.normed, T, D), branch(a.branch, T, D);
  const Matrix qkv(a.scratch, T, qkv_dim(config_)), attended(a.scratch + T * qkv_dim(config_), T, QK);
  const Matrix gate_up(a.scratch, T, 2 * F), activated(a.scratch + T * 2 * F, T, F);
  const Matrix rope(a.rope, T, config_.rope.rotary_dim), no_rope(a.rope, T, 0, config_.rope.rotary_dim);
  const float eps = config_.norm_eps;
  const AttentionParams attention{.query_heads = config_.query_heads,
                                  .kv_heads = config_.kv_heads,
                                  .head_dim = config_.head_dim,
                                  .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                                  .window_tokens = config_.window_tokens};

  backend_.embedding(x, *weights_->embedding, batch.tokens);                                 // [T, D]
  backend_.rope_table(rope, batch.positions, a.angles.inv_freq, a.angles.attention_factor);  // [T, rotary_dim]
  backend_.rmsnorm(h, x, weights_->layers[0].attention_norm.view(), eps);                    // [T, D]
  for (size_t i = 0; i < weights_->layers.size(); ++i) {
    const LayerWeights& w = weights_->layers[i];
    const bool is_last = i + 1 == weights_->layers.size();
    const ParameterVector& next_norm = is_last ? weights_->final_norm : weights_->layers[i + 1].attention_norm;
    const RopeKvParams rope_kv{.query_heads = config_.query_heads,
                               .kv_heads = config_.kv_heads,
                               .head_dim = config_.head_dim,
                               .rope_table = config_.layer_has_rope[i] ? rope : no_rope,
                               .q_norm = w.q_norm.view(),
                               .k_norm = w.k_norm.view(),
                               .norm_eps = eps};

    backend_.gemm(qkv, h, *w.qkv, w.qkv_bias.view());           // [T, (Q+2G)·K] = [T, D] · [(Q+2G)·K, D]ᵀ
    backend_.rope_kv_write(qkv, kv_layers[i], batch, rope_kv);  // q, k in place; k, v → [G, page_tokens, K]
    backend_.paged_attention(attended, qkv, kv_layers[i], batch, attention);  // [T, Q·K]
    backend_.gemm(branch, attended, *w.o, w.o_bias.view());                   // [T, D] = [T, Q·K] · [D, Q·K]ᵀ
    backend_.add_rmsnorm(h, x, branch, w.ffn_norm.view(), eps);               // [T, D]
    backend_.gemm_silu_mul(activated, gate_up, h, *w.gate_up, w.gate_up_bias.view());  // [T, F] of [T, 2F] = [T, D] · [2F, D]ᵀ
    backend_.gemm(branch, activated, *w.down, w.down_bias.view());            // [T, D] = [T, F] · [D, F]ᵀ
    backend_.add_rmsnorm(h, x, branch, next_norm.view(), eps);                // [T, D]
    layers_run_.fetch_add(1, std::memory_order_relaxed);
  }
}

Matrix Transformer::logits(std::span<const int32_t> rows) {
  const Activations& a = *activations_;
  const auto S = static_cast<int64_t>(rows.size());
  CHECK_GT(S, 0);
  CHECK_LE(S, options_.logits_rows_max);
  CHECK_GT(a.rows, 0);
  const Matrix h(a.normed, a.rows, config_.model_dim), sampled(a.sampled, S, config_.model_dim);
  const Matrix logits(a.logits, S, config_.vocab_size);
  backend_.gather_rows(sampled, h, rows);                  // [S, D]
  backend_.gemm(logits, sampled, weights_->output(), {});  // [S, V] = [S, D] · [V, D]ᵀ
  return logits;
}

}  // namespace headroom
