// The six analyses against the table of the design ("GQA, shown"), formulas written out here, and finite differences.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "engine/analysis/flops.h"
#include "engine/analysis/gradients.h"
#include "engine/analysis/memory.h"
#include "engine/analysis/parameters.h"
#include "engine/analysis/scaling.h"
#include "engine/analysis/stopwatch.h"

namespace headroom {
namespace {

const BackendMaker kOneThread = [] { return make_cpu_backend({.threads = 1}); };

ModelConfig demo(const std::string& name) {
  return ModelConfig::load(HEADROOM_SOURCE_DIR "/configs/models/demo-" + name);
}

TEST(Parameters, OfTheDesignsTable) {
  // d 64, 8 heads of 8: four projections of 64 × 64 as MHA.
  const AttentionParameters mha = attention_parameters(64, 8, 8, 8), gqa = attention_parameters(64, 8, 2, 8),
                            mqa = attention_parameters(64, 8, 1, 8);
  EXPECT_EQ(mha.all(), 16384);
  EXPECT_EQ(gqa.all(), 10240);
  EXPECT_EQ(gqa.kv(), 2048);
  const ParameterSaving two = parameter_saving(mha, gqa), one = parameter_saving(mha, mqa);
  EXPECT_DOUBLE_EQ(two.of_all_projections, 0.375);
  EXPECT_DOUBLE_EQ(two.of_kv_projections, 0.75);
  EXPECT_DOUBLE_EQ(two.cache_factor, 4);
  EXPECT_DOUBLE_EQ(one.of_kv_projections, 7.0 / 8);
  EXPECT_DOUBLE_EQ(one.of_all_projections, 0.4375);
  EXPECT_DOUBLE_EQ(one.cache_factor, 8);
}

TEST(Parameters, AreCountedInTheLoadedWeights) {
  // configs/models/demo/README.md has the numbers of parameters, by the training script.
  const std::pair<const char*, int64_t> models[] = {{"mha", 819712}, {"gqa", 672256}, {"mqa", 647680}};
  for (const auto& [name, parameters] : models) {
    const ModelConfig config = demo(name);
    const auto backend = kOneThread();
    const auto weights =
        load_weights(HEADROOM_SOURCE_DIR "/configs/models/demo-" + std::string(name), config, *backend);
    const LoadedParameters loaded = loaded_parameters(config, *weights);
    EXPECT_EQ(loaded.count, parameters);
    EXPECT_EQ(loaded.attention_kv, 3 * 2 * 128 * config.kv_heads * 32);
    EXPECT_EQ(loaded.attention - loaded.attention_kv, 3 * 2 * 128 * 256);
    EXPECT_GE(loaded.bytes, 2 * parameters);
    EXPECT_LT(loaded.bytes, 2 * parameters * 1.01);
  }
}

// 2 · layers · G · K · bytes, found three times over in a running engine.
TEST(Memory, IsWhatWasPredictedToTheByte) {
  struct Case {
    int32_t kv_heads;
    int64_t token_bytes;
  };
  for (const auto& [kv_heads, token_bytes] :
       {Case{8, 2 * 3 * 8 * 32 * 2}, Case{2, 2 * 3 * 2 * 32 * 2}, Case{1, 2 * 3 * 1 * 32 * 2}}) {
    const VariantModel model = random_variant(demo("gqa"), kv_heads, kOneThread);
    for (const int32_t tokens : {2, 100, 160}) {
      const CacheMeasurement cache = measure_cache(model, kOneThread, DType::kBF16, 16, tokens);
      EXPECT_EQ(cache.token_bytes, token_bytes);
      EXPECT_EQ(cache.mha_token_bytes, 3072);
      EXPECT_EQ(cache.written_bytes, tokens * token_bytes);
      EXPECT_EQ(cache.request_pages_held, (tokens + 15) / 16);
      EXPECT_EQ(cache.page_bytes, 16 * token_bytes);
      EXPECT_EQ(cache.pool_bytes_allocated, (cache.request_pages_held + 3) * 16 * token_bytes);
      EXPECT_TRUE(cache.is_as_predicted());
    }
  }
  const VariantModel model = random_variant(demo("gqa"), 2, kOneThread);
  EXPECT_EQ(measure_cache(model, kOneThread, DType::kF32, 32, 65).written_bytes, 65 * 2 * 3 * 2 * 32 * 4);
  const CacheMeasurement int8 = measure_cache(model, kOneThread, DType::kI8, 16, 50);
  EXPECT_EQ(int8.written_bytes, 50 * 2 * 3 * 2 * (32 + 4));  // an element is a byte, the scale of 32 of them four
  EXPECT_TRUE(int8.is_as_predicted());
}

TEST(Flops, ClosedFormIsTheOneWrittenHere) {
  ModelConfig config = demo("gqa");  // 3 layers, D 128, Q 8, G 2, K 32, F 256, V 1021
  const FlopCount flops = closed_form_flops(config, 0, 100);
  EXPECT_EQ(flops.projections, 3ll * 100 * (2 * 128 * 256 + 2 * 128 * 64 + 2 * 128 * 64 + 2 * 256 * 128));
  EXPECT_EQ(flops.attention, 3ll * (100 * 101 / 2) * 8 * (2 * 32 + 2 * 32));
  EXPECT_EQ(flops.ffn, 3ll * 100 * 3 * 2 * 128 * 256);
  EXPECT_EQ(flops.output, 2ll * 128 * 1021);
  // A step of decoding: one row that sees 1000 tokens.
  EXPECT_EQ(closed_form_flops(config, 999, 1).attention, 3ll * 1000 * 8 * 128);
  // A window of 10 keeps all rows but the first nine to ten keys.
  config.window_tokens = 10;
  EXPECT_EQ(closed_form_flops(config, 0, 100).attention, 3ll * (45 + 91 * 10) * 8 * 128);
}

TEST(Flops, CountedEqualTheClosedForm) {
  FlopCount mha;
  for (const int32_t kv_heads : {8, 2, 1}) {
    const VariantModel model = random_variant(demo("gqa"), kv_heads, kOneThread);
    const FlopMeasurement measured = measure_flops(model, kOneThread, DType::kBF16, 130, 1);
    EXPECT_EQ(measured.counted, measured.closed_form);
    EXPECT_GT(measured.counted.total(), 0);
    EXPECT_GT(measured.projection_seconds, 0);
    EXPECT_GT(measured.attention_seconds, 0);
    EXPECT_GT(measured.step_seconds, 0);
    if (kv_heads == 8) {
      mha = measured.counted;
      continue;
    }
    EXPECT_EQ(measured.counted.attention, mha.attention);  // the core is the same for all
    EXPECT_EQ(measured.counted.ffn, mha.ffn);
    EXPECT_EQ(mha.projections - measured.counted.projections, 3ll * 130 * 2 * 2 * 128 * (8 - kv_heads) * 32);
  }
  VariantModel windowed = random_variant(demo("gqa"), 2, kOneThread);
  windowed.config.window_tokens = 7;
  const FlopMeasurement measured = measure_flops(windowed, kOneThread, DType::kBF16, 64, 1);
  EXPECT_EQ(measured.counted, measured.closed_form);
}

TEST(Gradients, EqualNumericalDifferences) {
  for (const int32_t kv_heads : {8, 4, 2, 1}) {
    const GradientCheck check = check_gradients(random_attention_problem(10, 8, kv_heads, 8, 3));
    EXPECT_LT(check.q, 1e-6);
    EXPECT_LT(check.k, 1e-6);
    EXPECT_LT(check.v, 1e-6);
    EXPECT_EQ(check.elements, 10 * 8 * (8 + 2 * kv_heads));
  }
}

// The loss of a case small enough to write down: two tokens, one head of one element.
TEST(Gradients, LossIsThatOfAttention) {
  AttentionProblem problem{.tokens = 2,
                           .query_heads = 1,
                           .kv_heads = 1,
                           .head_dim = 1,
                           .q = {1, 2},
                           .k = {0.5, -1},
                           .v = {3, 5},
                           .d_out = {7, 11}};
  const double p = 1 / (1 + std::exp(-2 - 1));  // of token 0 for row 1: q·k is 1 and −2
  EXPECT_NEAR(attention_loss(problem), 7 * 3 + 11 * (p * 3 + (1 - p) * 5), 1e-12);
  const AttentionGradients d = attention_backward(problem);
  EXPECT_NEAR(d.v[0], 7 + 11 * p, 1e-12);
  EXPECT_NEAR(d.v[1], 11 * (1 - p), 1e-12);
  EXPECT_NEAR(d.q[0], 0, 1e-12);  // one key: nothing to choose
  EXPECT_NEAR(d.q[1], 11 * p * (1 - p) * (3 - 5) * (0.5 + 1), 1e-12);
  EXPECT_NEAR(d.k[0], 11 * p * (1 - p) * (3 - 5) * 2, 1e-12);
  EXPECT_NEAR(d.k[1], -d.k[0], 1e-12);
}

TEST(Gradients, OfAKvHeadGrowWithTheRootOfItsGroup) {
  const GradientNorms one = kv_gradient_norms(1, 8);
  double previous = 0;
  for (int32_t group = 1; group <= 8; ++group) {
    const GradientNorms norms = kv_gradient_norms(group, 8);
    EXPECT_EQ(norms.group, group);
    EXPECT_NEAR(norms.k / one.k / std::sqrt(group), 1, 0.1);
    EXPECT_NEAR(norms.v / one.v / std::sqrt(group), 1, 0.1);
    EXPECT_GT(norms.k, previous);
    previous = norms.k;
  }
}

// Heads that are copies of each other point the same way: their gradients add up to group times one, not √group.
TEST(Gradients, OfCopiedHeadsAddUp) {
  AttentionProblem problem = random_attention_problem(12, 3, 1, 8, 5);
  for (std::vector<double>* tensor : {&problem.q, &problem.d_out}) {
    for (size_t t = 0; t < 12; ++t) {
      for (size_t d = 0; d < 8; ++d)
        (*tensor)[(t * 3 + 1) * 8 + d] = (*tensor)[(t * 3 + 2) * 8 + d] = (*tensor)[t * 3 * 8 + d];
    }
  }
  const std::vector<GradientNorms> norms = kv_gradient_norms_of_group(problem, 0);
  ASSERT_EQ(norms.size(), 3u);
  EXPECT_NEAR(norms[1].k / norms[0].k, 2, 1e-9);
  EXPECT_NEAR(norms[2].k / norms[0].k, 3, 1e-9);
  EXPECT_NEAR(norms[2].v / norms[0].v, 3, 1e-9);
}

TEST(Scaling, ReadsTheBytesOfTheContext) {
  const VariantModel model = random_variant(demo("gqa"), 2, kOneThread);
  const int32_t contexts[] = {64, 4096};
  const std::vector<DecodePoint> points = measure_decode(model, kOneThread, DType::kBF16, contexts);
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0].kv_bytes, 64 * 768);
  EXPECT_EQ(points[1].kv_bytes, 4096 * 768);
  EXPECT_GT(points[1].attention_seconds, points[0].attention_seconds);
  EXPECT_GT(points[1].step_seconds, points[0].step_seconds);
}

// Never more than the clock on the wall, never less than the processor's.
TEST(Stopwatch, LeavesOutTheTimeWithoutAProcessor) {
  using Clock = std::chrono::steady_clock;
  const auto processor_seconds = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  for (int i = 0; i < 50; ++i) {
    const auto wall_start = Clock::now();
    Stopwatch stopwatch;
    const double processor_start = processor_seconds();
    while (processor_seconds() - processor_start < 1e-3) {
    }
    const double worked = processor_seconds() - processor_start, seconds = stopwatch.seconds();
    EXPECT_GE(seconds, worked * 0.99);
    EXPECT_LE(seconds, std::chrono::duration<double>(Clock::now() - wall_start).count());
  }
}

}  // namespace
}  // namespace headroom
