// Decode steps that are recorded and replayed: how a batch is filled up, and that a replayed step gives the bits of one that is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "engine/kv/kv_cache.h"
#include "engine/model/transformer.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/workspace_sizes.h"

namespace headroom {
namespace {

using cuda::decode_bucket;
using cuda::DecodeStep;

TEST(DecodeBuckets, AreFewAndHoldTheirRows) {
  std::set<int32_t> buckets;
  for (int32_t rows = 1; rows <= cuda::kDecodeRowsMax; ++rows) {
    const int32_t bucket = decode_bucket(rows);
    ASSERT_GE(bucket, rows);
    ASSERT_LT(bucket, rows + (rows <= 64 ? 8 : 32));
    ASSERT_EQ(decode_bucket(bucket), bucket);
    buckets.insert(bucket);
  }
  EXPECT_LE(buckets.size(), 25u);
}

// A decode batch: one row of each sequence, at positions[s], with pages of its own.
struct DecodeBatch {
  std::vector<int32_t> tokens, positions, first_rows, pages, begin;

  DecodeBatch(std::vector<int32_t> at, int32_t page_tokens) : positions(std::move(at)) {
    const auto sequences = static_cast<int32_t>(positions.size());
    first_rows.resize(positions.size() + 1);
    std::iota(first_rows.begin(), first_rows.end(), 0);
    begin.push_back(0);
    for (int32_t s = 0; s < sequences; ++s) {
      tokens.push_back(3 + 5 * s % 50);
      for (int32_t p = 0; p <= positions[static_cast<size_t>(s)] / page_tokens; ++p) pages.push_back(p * sequences + s);
      begin.push_back(static_cast<int32_t>(pages.size()));
    }
  }
  BatchView view() const { return {static_cast<int32_t>(tokens.size()), tokens, positions, first_rows, pages, begin}; }
};

constexpr cuda::WorkListOptions kCut{.group = 4, .kv_heads = 2, .head_dim = 64, .grid_blocks = 8, .partial_floats_max = 1 << 20};

// The device of the test layer is the host, so what lies there can be read.
TEST(DecodeSteps, BringTheBatchAndItsPaddingToTheirPlaces) {
  DecodeStep step({.rows = 16, .page_entries = 300, .units = 64});
  const int32_t* tokens = step.tokens();
  for (const auto& positions : {std::vector<int32_t>{7, 600, 31}, {0}, {5, 1030, 16, 15, 100, 1, 2, 3, 4}}) {
    const DecodeBatch batch(positions, 16);
    ASSERT_TRUE(step.takes(batch.view()));
    step.put(batch.view(), kCut, 16, nullptr);
    const size_t rows = positions.size();
    const auto bucket = static_cast<size_t>(decode_bucket(static_cast<int32_t>(rows)));
    ASSERT_EQ(step.tokens(), tokens) << "addresses stay";
    ASSERT_EQ(step.batch().rows, static_cast<int32_t>(bucket));
    int32_t units = 0;
    for (size_t row = 0; row < bucket; ++row) {
      const bool padding = row >= rows;
      ASSERT_EQ(step.tokens()[row], padding ? 0 : batch.tokens[row]);
      ASSERT_EQ(step.positions()[row], padding ? -1 : positions[row]);
      ASSERT_EQ(step.row_pages()[row], padding ? -1 : positions[row] / 16 * static_cast<int32_t>(rows) + static_cast<int32_t>(row));
      ASSERT_EQ(step.tiles()[row].first_row, static_cast<int32_t>(row));
      ASSERT_EQ(step.tiles()[row].last_split, padding ? 0 : positions[row] / 512 + 1);
      units += padding ? 1 : positions[row] / 512 + 1;
    }
    ASSERT_EQ(*step.unit_count(), units);
    ASSERT_EQ(std::memcmp(step.page_tables(), batch.pages.data(), batch.pages.size() * sizeof(int32_t)), 0);
  }
}

TEST(DecodeSteps, TakeOneRowOfEachSequenceWithinTheirLimits) {
  const DecodeStep step({.rows = 8, .page_entries = 20, .units = 64});
  EXPECT_TRUE(step.takes(DecodeBatch({1, 2, 3, 4, 5, 6, 7, 8}, 16).view()));
  EXPECT_FALSE(step.takes(DecodeBatch({1, 2, 3, 4, 5, 6, 7, 8, 9}, 16).view())) << "rows";
  EXPECT_TRUE(step.takes(DecodeBatch({319}, 16).view()));
  EXPECT_FALSE(step.takes(DecodeBatch({320}, 16).view())) << "pages";
  const DecodeBatch one({16}, 16);
  const std::vector<int32_t> two_rows = {0, 2}, positions = {15, 16}, tokens = {1, 2};
  EXPECT_FALSE(step.takes({2, tokens, positions, two_rows, one.pages, one.begin})) << "a prompt";
}

// ---- A model on the backend, replayed and not.

ModelConfig small_config(int32_t window_tokens) {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.layers = 2;
  config.model_dim = 64;
  config.query_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.ffn_dim = 96;
  config.vocab_size = 60;
  config.context_tokens = 1024;
  config.norm_eps = 1e-5f;
  config.tied_embeddings = true;
  config.window_tokens = window_tokens;
  config.window_layers = window_tokens > 0 ? 2 : 0;
  config.layer_has_rope = {true, true};
  config.rope.rotary_dim = 16;
  return config;
}

// Sequences of a model that are first filled to some length, and then decoded together.
class ModelRun {
 public:
  static constexpr int32_t kSequences = 9, kPageTokens = 16, kStepTokens = 64;

  ModelRun(bool graphs, DType kv, int32_t window_tokens)
      : config_(small_config(window_tokens)), backend_(make_cuda_backend({.graphs = graphs, .multiprocessors = 4})) {
    const TransformerOptions sizes{.step_tokens_max = kStepTokens, .logits_rows_max = kSequences, .served_context_tokens = 1024};
    weights_ = random_weights(config_, DType::kBF16, 3, *backend_);
    transformer_ = std::make_unique<Transformer>(config_, weights_, *backend_, sizes);
    limits_ = step_limits(config_, sizes, kSequences, 1024 / kPageTokens);
    const int64_t before = free_bytes();
    backend_->reserve(limits_);
    reserved_ = before - free_bytes();
    cache_ = std::make_unique<KvCache>(kv_shape(config_, kv, kPageTokens), kSequences * 1024 / kPageTokens, *backend_);
  }

  // Rows [first, first + tokens) of one sequence.
  void prefill(int32_t sequence, int32_t first, int32_t tokens) {
    std::vector<int32_t> ids, positions;
    for (int32_t t = first; t < first + tokens; ++t) {
      ids.push_back((7 * t + 11 * sequence) % 60);
      positions.push_back(t);
    }
    const std::vector<int32_t> first_rows = {0, tokens}, pages = pages_of(sequence, first + tokens), begin = {0, static_cast<int32_t>(pages.size())};
    transformer_->forward({tokens, ids, positions, first_rows, pages, begin}, cache_->layers());
  }
  // Logits of one more token of each of `sequences`, at positions[i].
  std::vector<float> decode(const std::vector<int32_t>& sequences, const std::vector<int32_t>& positions) {
    DecodeBatch batch(positions, kPageTokens);
    batch.pages.clear();
    batch.begin.assign(1, 0);
    std::vector<int32_t> rows;
    for (size_t i = 0; i < sequences.size(); ++i) {
      batch.tokens[i] = (positions[i] + sequences[i]) % 60;
      std::ranges::copy(pages_of(sequences[i], positions[i] + 1), std::back_inserter(batch.pages));
      batch.begin.push_back(static_cast<int32_t>(batch.pages.size()));
      rows.push_back(static_cast<int32_t>(i));
    }
    transformer_->forward(batch.view(), cache_->layers());
    const Matrix logits = transformer_->logits(rows);
    std::vector<float> host(static_cast<size_t>(logits.rows * logits.cols));
    backend_->copy_out(host.data(), reinterpret_cast<const std::byte*>(logits.data), host.size() * sizeof(float));
    return host;
  }

  int64_t free_bytes() const { return backend_->device_memory()->free_bytes; }
  int64_t reserved() const { return reserved_; }
  int64_t predicted() const { return static_cast<int64_t>(backend_->workspace_bytes(limits_)); }

 private:
  // The pages of a sequence are spread over the pool.
  static std::vector<int32_t> pages_of(int32_t sequence, int32_t tokens) {
    std::vector<int32_t> pages;
    for (int32_t p = 0; p * kPageTokens < tokens; ++p) pages.push_back((p * 37 % 64) * kSequences + sequence);
    return pages;
  }

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
  std::unique_ptr<Transformer> transformer_;
  StepLimits limits_;
  std::unique_ptr<KvCache> cache_;
  int64_t reserved_ = 0;
};

struct Scenario {
  DType kv;
  int32_t window_tokens;
  int32_t longest_tokens;  // 510: passes a split
};

class Replays : public testing::TestWithParam<Scenario> {};

// Lengths pass a page and a split, sequences come and go, and a prompt comes between, in either run.
TEST_P(Replays, GiveTheBitsOfStepsThatAreNotRecorded) {
  const int32_t longest = GetParam().longest_tokens;
  const int launches_before = cuda_on_cpu::graph_launches();
  std::vector<std::vector<float>> logits[2];
  for (const bool graphs : {false, true}) {
    ModelRun run(graphs, GetParam().kv, GetParam().window_tokens);
    for (int32_t first = 0; first < longest; first += 51) run.prefill(0, first, std::min(51, longest - first));
    run.prefill(1, 0, 14);
    for (int32_t sequence = 2; sequence < ModelRun::kSequences; ++sequence) run.prefill(sequence, 0, sequence);
    std::vector<int32_t> at = {longest, 14, 2, 3, 4, 5, 6, 7, 8};
    int64_t free_bytes = 0;
    const auto step = [&](const std::vector<int32_t>& sequences) {
      std::vector<int32_t> positions;
      for (const int32_t sequence : sequences) positions.push_back(at[static_cast<size_t>(sequence)]++);
      logits[graphs].push_back(run.decode(sequences, positions));
      if (free_bytes == 0) free_bytes = run.free_bytes();
    };
    for (int i = 0; i < 4; ++i) step({0, 1, 2});
    for (int i = 0; i < 3; ++i) step({0});
    step({2, 1});
    step({3, 4, 5, 0});
    run.prefill(1, at[1], 20);
    at[1] += 20;
    for (int i = 0; i < 3; ++i) step({8, 7, 6, 5, 4, 3, 2, 1, 0});
    step({1, 0, 4});
    EXPECT_EQ(run.free_bytes(), free_bytes) << "steps take no memory";
    if (!graphs) {
      EXPECT_EQ(cuda_on_cpu::graph_launches(), launches_before);
    }
  }
  // All but the first step of each of the buckets 4, 1, 2 and 16.
  EXPECT_EQ(cuda_on_cpu::graph_launches() - launches_before, 13 - 4);
  ASSERT_EQ(logits[0].size(), 13u);
  for (size_t i = 0; i < logits[0].size(); ++i) {
    ASSERT_EQ(logits[0][i].size(), logits[1][i].size());
    EXPECT_EQ(std::memcmp(logits[0][i].data(), logits[1][i].data(), logits[0][i].size() * sizeof(float)), 0) << "step " << i;
    EXPECT_FALSE(std::isnan(logits[0][i].front()));
  }
}
INSTANTIATE_TEST_SUITE_P(Models, Replays, testing::Values(Scenario{DType::kBF16, 0, 510}, Scenario{DType::kF16, 40, 60}, Scenario{DType::kI8, 0, 30}));

TEST(Workspaces, AreWhatWasPredicted) {
  const ModelRun run(true, DType::kBF16, 0);
  EXPECT_NEAR(static_cast<double>(run.reserved()), static_cast<double>(run.predicted()), 2048) << "but for alignment";
  EXPECT_GT(run.reserved(), 100 * 1024);
}

// Whichever call fails, it is an error with the call's name, and the same step comes right afterwards.
TEST(Recordings, ThatFailAreThrown) {
  ModelRun other(false, DType::kBF16, 0);
  other.prefill(0, 0, 3);
  other.decode({0}, {3});
  const std::vector<float> expected = other.decode({0}, {4});
  const char* calls[] = {"cudaStreamSynchronize", "cudaMemcpyAsync",      "cudaMemcpyAsync", "cudaStreamBeginCapture",
                         "cudaGraphInstantiate",  "cudaGraphLaunch", "cudaMemcpyAsync"};
  for (int k = 0; k < std::ssize(calls); ++k) {
    ModelRun run(true, DType::kBF16, 0);
    run.prefill(0, 0, 3);
    run.decode({0}, {3});  // the bucket's first; the next one is recorded
    cuda_on_cpu::fail_after(k, cudaErrorMemoryAllocation);
    std::string what;
    try {
      run.decode({0}, {4});
    } catch (const BackendError& error) {
      what = error.what();
    }
    EXPECT_THAT(what, testing::HasSubstr(calls[k])) << k;
    EXPECT_EQ(run.decode({0}, {4}), expected) << k;
  }
}

}  // namespace
}  // namespace headroom
