// A tiny checkpoint of tests/golden/models with the reference's logits, and a forward pass over it from paged KV with a hand-made
// page table; free pages hold NaN. On the CPU in fp32, unless told otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model/safetensors.h"
#include "engine/model/transformer.h"

namespace headroom {

// Every case of tests/golden/models.
inline constexpr const char* kModels[] = {
    "llama2_mha",     "llama3_gqa",          "llama31_rope",          "tinyllama_mqa_head_dim",
    "smollm2_group3", "llama_linear_biases", "llama_yarn_mscale",     "llama_bf16",
    "llama_sharded",  "smollm3_nope",        "mistral_window",        "mistral_nemo_head_dim",
    "qwen2_group7",   "qwen2_yarn",          "qwen2_window",          "qwen3_head_dim",
    "qwen3_fp16",     "phi3_window",         "phi3_longrope_partial", "phi3_longrope_short",
};

// Ten times the largest difference seen between the reference in fp32 and itself in fp64 (1.4e-5), rounded down.
inline constexpr float kLogitTolerance = 1e-4f;

inline std::filesystem::path model_dir(const std::string& name) {
  return std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/models" / name;
}

template <typename T>
std::vector<T> read_tensor(const SafetensorsFile& file, const char* name) {
  const TensorInfo* tensor = file.find(name);
  if (tensor == nullptr) throw std::runtime_error(std::string("golden without ") + name);
  std::vector<T> values(tensor->bytes() / sizeof(T));
  file.read(*tensor, reinterpret_cast<std::byte*>(values.data()));
  return values;
}

struct Golden {
  ModelConfig config;
  std::vector<int32_t> tokens;  // [T]
  std::vector<float> logits;    // [T, V]
  std::vector<int32_t> greedy;  // what follows
  int32_t served_context_tokens = 0;

  explicit Golden(const std::string& name) : config(ModelConfig::load(model_dir(name))) {
    const SafetensorsFile file(model_dir(name) / "golden.safetensors");
    tokens = read_tensor<int32_t>(file, "tokens");
    logits = read_tensor<float>(file, "logits");
    greedy = read_tensor<int32_t>(file, "greedy");
    served_context_tokens = read_tensor<int32_t>(file, "served_context_tokens").at(0);
  }
  int32_t text_tokens() const { return static_cast<int32_t>(tokens.size()); }
};

struct RunOptions {
  int32_t page_tokens = 16;
  int threads = 1;
  uint64_t page_seed = 1;   // the order of the pages
  bool batch_mate = false;  // another sequence runs in every step, before this one
  DType kv = DType::kF32;
  std::optional<DType> weights;                             // none: as stored
  std::function<std::unique_ptr<Backend>()> make_backend;   // none: the CPU's
};

// One model with a pool of its own.
class Runner {
 public:
  Runner(const std::string& name, const Golden& golden, const RunOptions& options)
      : Runner(name, golden, golden.config, options) {}

  // `run_config`: what the forward pass believes, which a negative control makes wrong.
  Runner(const std::string& name, const Golden& golden, const ModelConfig& run_config, const RunOptions& options)
      : Runner(model_dir(name), golden.config, run_config, golden.served_context_tokens, options) {}

  Runner(const std::filesystem::path& dir, const ModelConfig& config, const ModelConfig& run_config,
         int32_t served_context_tokens, const RunOptions& options)
      : options_(options), window_tokens_(run_config.window_tokens), vocab_size_(run_config.vocab_size) {
    backend_ = options.make_backend ? options.make_backend() : make_cpu_backend({.threads = options.threads});
    const TransformerOptions sizes{.step_tokens_max = 2 * kSequenceTokensMax,
                                   .logits_rows_max = 2 * kSequenceTokensMax,
                                   .served_context_tokens = served_context_tokens};
    transformer_ = std::make_unique<Transformer>(run_config, load_weights(dir, config, *backend_, {}, WeightTypes::of(options.weights)), *backend_, sizes);
    make_pool(run_config);
  }

  // Runs `tokens` as the next ones of the sequence; returns their logits [n, V].
  std::vector<float> step(std::span<const int32_t> tokens) {
    std::vector<int32_t> batch_tokens, positions, first_row, tables, table_begin, rows;
    const auto add = [&](std::span<const int32_t> text, std::vector<int32_t>& pages) {
      first_row.push_back(static_cast<int32_t>(batch_tokens.size()));
      table_begin.push_back(static_cast<int32_t>(tables.size()));
      for (size_t i = 0; i < text.size(); ++i) {
        batch_tokens.push_back(text[i]);
        positions.push_back(position_ + static_cast<int32_t>(i));
      }
      give_back_pages(pages);
      tables.insert(tables.end(), pages.begin(), pages.end());
    };
    const std::vector<int32_t> mate(tokens.rbegin(), tokens.rend());
    if (options_.batch_mate) add(mate, mate_pages_);
    const auto own_row = static_cast<int32_t>(batch_tokens.size());
    add(tokens, pages_);
    first_row.push_back(static_cast<int32_t>(batch_tokens.size()));
    table_begin.push_back(static_cast<int32_t>(tables.size()));
    rows.resize(tokens.size());
    std::iota(rows.begin(), rows.end(), own_row);

    const BatchView batch{.rows = static_cast<int32_t>(batch_tokens.size()),
                          .tokens = batch_tokens,
                          .positions = positions,
                          .sequence_first_row = first_row,
                          .page_tables = tables,
                          .page_table_begin = table_begin};
    transformer_->forward(batch, layers_);
    const Matrix logits = transformer_->logits(rows);
    backend_->synchronize();
    std::vector<float> out(tokens.size() * static_cast<size_t>(vocab_size_));
    backend_->copy_out(out.data(), reinterpret_cast<const std::byte*>(logits.data), out.size() * sizeof(float));
    position_ += static_cast<int32_t>(tokens.size());
    return out;
  }

 private:
  static constexpr int32_t kSequenceTokensMax = 128;

  void make_pool(const ModelConfig& config) {
    const KvShape shape = kv_shape(config, options_.kv, options_.page_tokens);
    const auto sequence_pages = static_cast<int32_t>(pages_for_tokens(kSequenceTokensMax, options_.page_tokens));
    const int32_t pages = 3 * sequence_pages;
    const auto layer_bytes = static_cast<size_t>(shape.layer_page_bytes() * pages);
    const size_t pool_bytes = static_cast<size_t>(shape.page_bytes() * pages);
    pool_ = backend_->allocate(pool_bytes);
    const std::vector<std::byte> nan(pool_bytes, std::byte{0xFF});  // in every type
    backend_->copy_in(pool_->data(), nan.data(), pool_bytes);
    for (int32_t i = 0; i < config.layers; ++i) {
      layers_.push_back({.data = pool_->data() + static_cast<size_t>(i) * layer_bytes,
                         .page_stride_bytes = static_cast<size_t>(shape.layer_page_bytes()),
                         .dtype = options_.kv,
                         .kv_heads = config.kv_heads,
                         .page_tokens = options_.page_tokens,
                         .head_dim = config.head_dim});
    }
    std::vector<int32_t> order(static_cast<size_t>(pages));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 random(options_.page_seed);
    std::ranges::shuffle(order, random);
    pages_.assign(order.begin(), order.begin() + sequence_pages);
    mate_pages_.assign(order.begin() + sequence_pages, order.begin() + 2 * sequence_pages);
  }

  // A page whose last token no row from position_ on can see is gone, and its place is −1.
  void give_back_pages(std::vector<int32_t>& pages) const {
    if (window_tokens_ == 0) return;
    for (size_t i = 0; i < pages.size(); ++i) {
      const int32_t last_token = (static_cast<int32_t>(i) + 1) * options_.page_tokens - 1;
      if (position_ - last_token >= window_tokens_) pages[i] = -1;
    }
  }

  RunOptions options_;
  int32_t window_tokens_;
  int32_t vocab_size_;
  int32_t position_ = 0;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Buffer> pool_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<KvLayer> layers_;
  std::vector<int32_t> pages_, mate_pages_;
};

// The logits of the whole text, computed in steps that end at `cuts`.
inline std::vector<float> run_text(Runner& runner, const Golden& golden, std::span<const int32_t> cuts) {
  std::vector<float> all;
  int32_t begin = 0;
  for (const int32_t end : cuts) {
    const auto logits =
        runner.step(std::span(golden.tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    all.insert(all.end(), logits.begin(), logits.end());
    begin = end;
  }
  return all;
}

inline std::vector<float> run_whole(Runner& runner, const Golden& golden) {
  const int32_t end = golden.text_tokens();
  return run_text(runner, golden, {&end, 1});
}

// NaN counts as infinitely far.
inline float max_difference(std::span<const float> a, std::span<const float> b) {
  float difference = a.size() == b.size() ? 0.0f : std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float here = std::fabs(a[i] - b[i]);
    difference = here <= difference ? difference : std::isnan(here) ? std::numeric_limits<float>::infinity() : here;
  }
  return difference;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace headroom
