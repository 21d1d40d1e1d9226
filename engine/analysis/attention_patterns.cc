#include "engine/analysis/attention_patterns.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/analysis/forwarding_backend.h"
#include "engine/analysis/kv_rows.h"
#include "engine/kv/kv_cache.h"
#include "kernels/check.h"

namespace headroom {
namespace {

// Lets the forward pass through and looks at one call of paged_attention, of one sequence that begins at position 0.
class AttentionRecorder : public ForwardingBackend {
 public:
  AttentionRecorder(Backend& inner, bool with_kv_head_share, const std::function<bool()>& abandoned,
                    AttentionPatterns& patterns)
      : ForwardingBackend(inner), with_kv_head_share_(with_kv_head_share), abandoned_(abandoned), patterns_(patterns) {}

  void paged_attention(Matrix out, Matrix qkv, const KvLayer& layer, const BatchView& batch,
                       const AttentionParams& params) override {
    if (abandoned_ && abandoned_()) throw AttentionProbe::Abandoned();
    if (calls_++ == patterns_.layer) record({out, qkv, layer, batch, params});
    ForwardingBackend::paged_attention(out, qkv, layer, batch, params);
  }

 private:
  struct Call {
    Matrix out, qkv;
    const KvLayer& layer;
    const BatchView& batch;
    const AttentionParams& params;
  };
  // The value of a token's element d in KV head g.
  using ValueFunction = std::function<float(int32_t token, int32_t g, int32_t d)>;

  void record(const Call& call) {
    CHECK_EQ(call.batch.sequence_first_row.size(), 2u);
    CHECK_EQ(call.batch.positions.front(), 0);
    read_inputs(call);
    copy_pages(call);
    read_probabilities(call);
    if (with_kv_head_share_) read_kv_head_share(call);
  }

  // Page p of the sequence from the layer's pool to the host.
  std::vector<std::byte> page(const Call& call, size_t p) {
    std::vector<std::byte> bytes(call.layer.page_stride_bytes);
    const auto id = static_cast<size_t>(call.batch.page_tables[p]);
    inner_.copy_out(bytes.data(), call.layer.data + id * bytes.size(), bytes.size());
    return bytes;
  }

  void read_inputs(const Call& call) {
    const int32_t T = patterns_.tokens, G = patterns_.kv_heads, K = patterns_.head_dim,
                  page_tokens = call.layer.page_tokens;
    const auto q_bytes = static_cast<size_t>(patterns_.query_heads) * static_cast<size_t>(K) * sizeof(float);
    patterns_.queries.resize(static_cast<size_t>(T) * q_bytes / sizeof(float));
    patterns_.keys.resize(static_cast<size_t>(T) * static_cast<size_t>(G) * static_cast<size_t>(K));
    patterns_.values.resize(patterns_.keys.size());
    std::vector<std::byte> bytes;
    for (int32_t t = 0; t < T; ++t) {
      inner_.copy_out(reinterpret_cast<std::byte*>(patterns_.queries.data()) + static_cast<size_t>(t) * q_bytes,
                      reinterpret_cast<const std::byte*>(call.qkv.row(t)), q_bytes);
      if (t % page_tokens == 0) bytes = page(call, static_cast<size_t>(t / page_tokens));
      for (int32_t i = 0; i < G * K; ++i) {
        const int64_t row = i / K * page_tokens + t % page_tokens;
        const auto at = static_cast<size_t>(t * G * K + i);
        const int64_t value_row = call.layer.rows() + row;
        patterns_.keys[at] = kv_element(call.layer, bytes.data(), row, inner_.key_element(call.layer, row, i % K));
        patterns_.values[at] = kv_element(call.layer, bytes.data(), value_row, value_row * K + i % K);
      }
    }
  }

  void copy_pages(const Call& call) {
    const auto pages =
        static_cast<size_t>(*std::max_element(call.batch.page_tables.begin(), call.batch.page_tables.end()) + 1);
    scratch_pages_ = inner_.allocate(pages * call.layer.page_stride_bytes);
    inner_.copy(scratch_pages_->data(), call.layer.data, scratch_pages_->bytes());
    scratch_out_ = inner_.allocate(static_cast<size_t>(patterns_.tokens) * static_cast<size_t>(patterns_.query_heads) *
                                   static_cast<size_t>(patterns_.head_dim) * sizeof(float));
  }

  // What the kernel writes [T, Q, K] over the same queries and keys where the values are `value`.
  std::vector<float> attend_with(const Call& call, const ValueFunction& value) {
    KvLayer layer = call.layer;
    layer.data = scratch_pages_->data();
    const int32_t pages = static_cast<int32_t>(pages_for_tokens(patterns_.tokens, layer.page_tokens));
    std::vector<float> row(static_cast<size_t>(layer.head_dim));
    for (int32_t p = 0; p < pages; ++p) {
      std::vector<std::byte> bytes = page(call, static_cast<size_t>(p));
      for (int32_t r = 0; r < layer.rows(); ++r) {
        const int32_t token = p * layer.page_tokens + r % layer.page_tokens;
        for (int32_t i = 0; i < layer.head_dim; ++i)
          row[static_cast<size_t>(i)] = value(token, r / layer.page_tokens, i);
        write_kv_row(layer, bytes.data(), layer.rows() + r, row);
      }
      const auto id = static_cast<size_t>(call.batch.page_tables[static_cast<size_t>(p)]);
      inner_.copy_in(layer.data + id * layer.page_stride_bytes, bytes.data(), bytes.size());
    }
    const Matrix out(reinterpret_cast<float*>(scratch_out_->data()), patterns_.tokens, call.out.cols);
    inner_.paged_attention(out, call.qkv, layer, call.batch, call.params);
    std::vector<float> result(scratch_out_->bytes() / sizeof(float));
    inner_.copy_out(result.data(), scratch_out_->data(), scratch_out_->bytes());
    return result;
  }

  // head_dim tokens at a time: token b + d has the unit vector e_d.
  void read_probabilities(const Call& call) {
    const int32_t T = patterns_.tokens, Q = patterns_.query_heads, K = patterns_.head_dim;
    patterns_.probabilities.assign(static_cast<size_t>(Q) * static_cast<size_t>(T) * static_cast<size_t>(T), 0.0f);
    for (int32_t b = 0; b < T; b += K) {
      const std::vector<float> out =
          attend_with(call, [b](int32_t token, int32_t, int32_t d) { return token == b + d ? 1.0f : 0.0f; });
      for (int32_t i = b; i < T; ++i) {
        for (int32_t h = 0; h < Q; ++h) {
          const float* from = out.data() + (static_cast<ptrdiff_t>(i) * Q + h) * K;
          std::copy_n(from, std::min(K, T - b),
                      patterns_.probabilities.data() + (static_cast<ptrdiff_t>(h) * T + i) * T + b);
        }
      }
    }
    for (int32_t h = 0; h < Q; ++h) {
      for (int32_t i = 0; i < T; ++i) {
        double sum = 0;
        for (const float p : patterns_.row(h, i)) sum += static_cast<double>(p);
        patterns_.row_sum_error = std::max(patterns_.row_sum_error, std::abs(sum - 1));
      }
    }
  }

  void read_kv_head_share(const Call& call) {
    const int32_t T = patterns_.tokens, Q = patterns_.query_heads, K = patterns_.head_dim;
    patterns_.kv_head_share.assign(static_cast<size_t>(patterns_.kv_heads) * static_cast<size_t>(Q), 0.0);
    for (int32_t wanted = 0; wanted < patterns_.kv_heads; ++wanted) {
      const std::vector<float> out =
          attend_with(call, [wanted](int32_t, int32_t g, int32_t) { return g == wanted ? 1.0f : 0.0f; });
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t head = i / static_cast<size_t>(K) % static_cast<size_t>(Q);
        patterns_.kv_head_share[static_cast<size_t>(wanted * Q) + head] += static_cast<double>(out[i]) / (T * K);
      }
    }
  }

  const bool with_kv_head_share_;
  const std::function<bool()>& abandoned_;
  AttentionPatterns& patterns_;
  int32_t calls_ = 0;
  std::unique_ptr<Buffer> scratch_pages_, scratch_out_;
};

}  // namespace

double AttentionPatterns::head_difference(int32_t a, int32_t b) const {
  double largest = 0;
  for (int32_t i = 0; i < tokens; ++i) {
    for (int32_t j = 0; j <= i; ++j) {
      const auto at = static_cast<size_t>(j);
      largest = std::max(largest, std::abs(static_cast<double>(row(a, i)[at]) - static_cast<double>(row(b, i)[at])));
    }
  }
  return largest;
}

AttentionProbe::AttentionProbe(ModelConfig config, std::shared_ptr<const ModelWeights> weights, Options options)
    : config_(std::move(config)), weights_(std::move(weights)), options_(std::move(options)) {}

AttentionPatterns AttentionProbe::read(std::span<const int32_t> tokens, int32_t layer, bool with_kv_head_share,
                                       const std::function<bool()>& abandoned) const {
  const auto T = static_cast<int32_t>(tokens.size());
  CHECK(T > 0 && T <= options_.served_context_tokens) << T;
  CHECK(layer >= 0 && layer < config_.layers) << layer;
  AttentionPatterns patterns{.layer = layer,
                             .layers = config_.layers,
                             .query_heads = config_.query_heads,
                             .kv_heads = config_.kv_heads,
                             .head_dim = config_.head_dim,
                             .tokens = T};
  const std::unique_ptr<Backend> backend = options_.make_backend();
  const KvShape shape = kv_shape(config_, options_.kv_dtype, options_.page_tokens);
  const int64_t pages = pages_for_tokens(T, options_.page_tokens);
  const KvCache cache(shape, pages, *backend);
  AttentionRecorder recorder(*backend, with_kv_head_share, abandoned, patterns);
  Transformer transformer(
      config_, weights_, recorder,
      {.step_tokens_max = T, .logits_rows_max = 1, .served_context_tokens = options_.served_context_tokens});

  std::vector<int32_t> positions, page_table;
  for (int32_t t = 0; t < T; ++t) positions.push_back(t);
  for (auto p = static_cast<int32_t>(pages); p > 0; --p)
    page_table.push_back(p - 1);  // any order will do, so not the easy one
  const int32_t first_rows[] = {0, T}, table_begin[] = {0, static_cast<int32_t>(pages)};
  transformer.forward({.rows = T,
                       .tokens = tokens,
                       .positions = positions,
                       .sequence_first_row = first_rows,
                       .page_tables = page_table,
                       .page_table_begin = table_begin},
                      cache.layers());
  return patterns;
}

}  // namespace headroom
