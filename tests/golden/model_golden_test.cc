// Every supported family against the reference implementation: models/ holds tiny random checkpoints with the
// reference's logits (made by make_model_goldens.py). The forward pass runs from paged fp32 KV with a hand-made page
// table; free pages hold NaN.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "engine/model/capacity.h"
#include "engine/model/safetensors.h"
#include "engine/model/transformer.h"

namespace headroom {
namespace {

// Ten times the largest difference seen between the reference in fp32 and itself in fp64 (1.4e-5), rounded down.
constexpr float kLogitTolerance = 1e-4f;

constexpr const char* kModels[] = {
    "llama2_mha",     "llama3_gqa",          "llama31_rope",          "tinyllama_mqa_head_dim",
    "smollm2_group3", "llama_linear_biases", "llama_yarn_mscale",     "llama_bf16",
    "llama_sharded",  "smollm3_nope",        "mistral_window",        "mistral_nemo_head_dim",
    "qwen2_group7",   "qwen2_yarn",          "qwen2_window",          "qwen3_head_dim",
    "qwen3_fp16",     "phi3_window",         "phi3_longrope_partial", "phi3_longrope_short",
};

std::filesystem::path model_dir(const std::string& name) {
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
};

// One model with a pool of its own.
class Runner {
 public:
  Runner(const std::string& name, const Golden& golden, const RunOptions& options)
      : Runner(name, golden, golden.config, options) {}

  // `run_config`: what the forward pass believes, which a negative control makes wrong.
  Runner(const std::string& name, const Golden& golden, const ModelConfig& run_config, const RunOptions& options)
      : options_(options), window_tokens_(run_config.window_tokens), vocab_size_(run_config.vocab_size) {
    backend_ = make_cpu_backend({.threads = options.threads});
    const TransformerOptions sizes{.step_tokens_max = 2 * kSequenceTokensMax,
                                   .logits_rows_max = 2 * kSequenceTokensMax,
                                   .served_context_tokens = golden.served_context_tokens};
    transformer_ = std::make_unique<Transformer>(run_config, load_weights(model_dir(name), golden.config, *backend_),
                                                 *backend_, sizes);
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
    const KvShape shape = kv_shape(config, DType::kF32, options_.page_tokens);
    const auto sequence_pages = static_cast<int32_t>(pages_for_tokens(kSequenceTokensMax, options_.page_tokens));
    const int32_t pages = 3 * sequence_pages;
    const auto layer_bytes = static_cast<size_t>(shape.layer_page_bytes() * pages);
    const size_t pool_bytes = static_cast<size_t>(shape.page_bytes() * pages);
    pool_ = backend_->allocate(pool_bytes);
    const std::vector<float> nan(pool_bytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
    backend_->copy_in(pool_->data(), nan.data(), pool_bytes);
    for (int32_t i = 0; i < config.layers; ++i) {
      layers_.push_back({.data = pool_->data() + static_cast<size_t>(i) * layer_bytes,
                         .page_stride_bytes = static_cast<size_t>(shape.layer_page_bytes()),
                         .dtype = DType::kF32,
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
std::vector<float> run_text(Runner& runner, const Golden& golden, std::span<const int32_t> cuts) {
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

std::vector<float> run_whole(Runner& runner, const Golden& golden) {
  const int32_t end = golden.text_tokens();
  return run_text(runner, golden, {&end, 1});
}

std::vector<int32_t> random_cuts(int32_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> cuts;
  for (int32_t at = 0; at < tokens;) {
    at = std::min(tokens, at + 1 + static_cast<int32_t>(random() % 33));
    cuts.push_back(at);
  }
  return cuts;
}

// NaN counts as infinitely far.
float max_difference(std::span<const float> a, std::span<const float> b) {
  float difference = a.size() == b.size() ? 0.0f : std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float here = std::fabs(a[i] - b[i]);
    difference = here <= difference ? difference : std::isnan(here) ? std::numeric_limits<float>::infinity() : here;
  }
  return difference;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

class ModelGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(ModelGolden, LogitsEqualTheReferenceAtEveryPosition) {
  const Golden golden(GetParam());
  ASSERT_EQ(golden.text_tokens(), 96);
  ASSERT_EQ(golden.logits.size(), golden.tokens.size() * static_cast<size_t>(golden.config.vocab_size));
  Runner runner(GetParam(), golden, {});
  const float difference = max_difference(run_whole(runner, golden), golden.logits);
  std::printf("%-24s max |logit - reference| = %.2e\n", GetParam(), static_cast<double>(difference));
  EXPECT_LE(difference, kLogitTolerance);
}

TEST_P(ModelGolden, ThirtyTwoGreedyTokensEqualTheReference) {
  const Golden golden(GetParam());
  ASSERT_EQ(golden.greedy.size(), 32u);
  Runner runner(GetParam(), golden, {.page_seed = 2});
  const auto vocab = static_cast<std::ptrdiff_t>(golden.config.vocab_size);
  std::vector<float> logits = run_whole(runner, golden);
  std::vector<int32_t> tokens;
  while (tokens.size() < golden.greedy.size()) {
    tokens.push_back(
        static_cast<int32_t>(std::max_element(logits.end() - vocab, logits.end()) - (logits.end() - vocab)));
    logits = runner.step({&tokens.back(), 1});
  }
  EXPECT_EQ(tokens, golden.greedy);
}

TEST_P(ModelGolden, ChunksPagesThreadsAndBatchMatesDoNotChangeOneBit) {
  const Golden golden(GetParam());
  Runner plain(GetParam(), golden, {});
  const std::vector<float> expected = run_whole(plain, golden);

  std::vector<int32_t> token_by_token(golden.tokens.size());
  std::iota(token_by_token.begin(), token_by_token.end(), 1);
  const RunOptions variants[] = {{.page_tokens = 16, .page_seed = 3},
                                 {.page_tokens = 32, .page_seed = 4},
                                 {.page_tokens = 64, .page_seed = 5},
                                 {.page_tokens = 16, .threads = 2, .page_seed = 6},
                                 {.page_tokens = 32, .page_seed = 7, .batch_mate = true}};
  for (const RunOptions& options : variants) {
    SCOPED_TRACE(testing::Message() << "page_tokens " << options.page_tokens << " threads " << options.threads
                                    << " batch_mate " << options.batch_mate << " seed " << options.page_seed);
    Runner whole(GetParam(), golden, options);
    EXPECT_TRUE(same_bits(run_whole(whole, golden), expected)) << "whole prefill";
    Runner decode(GetParam(), golden, options);
    EXPECT_TRUE(same_bits(run_text(decode, golden, token_by_token), expected)) << "token by token";
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Runner chunked(GetParam(), golden, options);
      EXPECT_TRUE(same_bits(run_text(chunked, golden, random_cuts(golden.text_tokens(), seed)), expected))
          << "chunks of seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelGolden, ::testing::ValuesIn(kModels),
                         [](const auto& test) { return std::string(test.param); });

// What a plausible mistake in each switch would do must be far outside the tolerance, or the goldens would not test
// that switch.
struct Mistake {
  const char* name;
  const char* model;
  std::function<void(ModelConfig&)> make;
};

void PrintTo(const Mistake& mistake, std::ostream* out) { *out << mistake.name << " in " << mistake.model; }

const Mistake kMistakes[] = {
    {"llama3_rope_factor", "llama31_rope", [](ModelConfig& c) { c.rope.factor = 7.0; }},
    {"llama3_rope_low_bound", "llama31_rope", [](ModelConfig& c) { c.rope.low_freq_factor = 1.5; }},
    {"llama3_rope_high_bound", "llama31_rope", [](ModelConfig& c) { c.rope.high_freq_factor = 5.0; }},
    {"llama3_rope_original_context", "llama31_rope", [](ModelConfig& c) { c.rope.original_context_tokens = 40; }},
    {"linear_rope_factor", "llama_linear_biases", [](ModelConfig& c) { c.rope.factor = 4.5; }},
    {"yarn_factor", "qwen2_yarn", [](ModelConfig& c) { c.rope.factor = 3.5; }},
    {"yarn_attention_factor", "qwen2_yarn", [](ModelConfig& c) { c.rope.attention_factor = 1.0; }},
    {"yarn_ramp_truncated", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.truncate = true; }},
    {"yarn_mscale", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.mscale.reset(); }},
    {"yarn_beta_fast", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.beta_fast = 8.0; }},
    {"longrope_short_for_long", "phi3_longrope_partial",
     [](ModelConfig& c) { c.rope.long_factor = c.rope.short_factor; }},
    {"longrope_long_for_short", "phi3_longrope_short",
     [](ModelConfig& c) { c.rope.short_factor = c.rope.long_factor; }},
    {"longrope_attention_factor", "phi3_longrope_short", [](ModelConfig& c) { c.rope.attention_factor = 1.0; }},
    {"partial_rotary_ignored", "phi3_longrope_partial",
     [](ModelConfig& c) {
       c.rope.rotary_dim = c.head_dim;
       c.rope.long_factor.resize(static_cast<size_t>(c.head_dim / 2), 8.0);
     }},
    {"theta", "llama2_mha", [](ModelConfig& c) { c.rope.theta = 11000.0; }},
    {"window_one_wider", "mistral_window", [](ModelConfig& c) { ++c.window_tokens; }},
    {"window_one_narrower", "mistral_window", [](ModelConfig& c) { --c.window_tokens; }},
    {"window_ignored", "phi3_window", [](ModelConfig& c) { c.window_tokens = 0; }},
    {"window_not_ignored", "qwen2_group7", [](ModelConfig& c) { c.window_tokens = 8; }},
    {"window_of_qwen2", "qwen2_window", [](ModelConfig& c) { ++c.window_tokens; }},
    {"rope_on_every_layer", "smollm3_nope", [](ModelConfig& c) { c.layer_has_rope[1] = true; }},
    {"rope_on_the_wrong_layers", "smollm3_nope", [](ModelConfig& c) { c.layer_has_rope.flip(); }},
    {"norm_eps", "llama3_gqa", [](ModelConfig& c) { c.norm_eps = 1e-3f; }},
};

class ModelGoldenControl : public ::testing::TestWithParam<Mistake> {};

TEST_P(ModelGoldenControl, MistakeIsFarOutsideTheTolerance) {
  const Golden golden(GetParam().model);
  ModelConfig wrong = golden.config;
  GetParam().make(wrong);
  Runner runner(GetParam().model, golden, wrong, {});
  const float difference = max_difference(run_whole(runner, golden), golden.logits);
  EXPECT_GE(difference, 10 * kLogitTolerance);
  EXPECT_LT(difference, std::numeric_limits<float>::infinity());
}

INSTANTIATE_TEST_SUITE_P(Mistakes, ModelGoldenControl, ::testing::ValuesIn(kMistakes),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace headroom
