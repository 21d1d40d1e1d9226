// What `headroom report` measures: the six analyses of grouped-query attention of one model, on this engine and this
// machine, in one run. Plain values; how they look is report_html's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/analysis/attention_patterns.h"
#include "engine/analysis/flops.h"
#include "engine/analysis/gradients.h"
#include "engine/analysis/memory.h"
#include "engine/analysis/parameters.h"
#include "engine/analysis/scaling.h"
#include "engine/model/capacity.h"

namespace headroom {

constexpr int32_t kPrefillRuns = 9;
constexpr int32_t kNormProblems = 32;

struct ReportOptions {
  std::string model;               // directory in Hugging Face layout
  std::optional<DType> kv;         // absent: as config.json's
  std::string device = "auto";     // as --device of serve
  int32_t threads = 1;             // 0: one per physical core
  int32_t context_tokens = 32768;  // the longest at which decoding is measured, as far as model and memory go
  std::string prompt;              // whose attention is shown
};

// One number of KV heads, on random weights of the model's shape.
struct VariantReport {
  int32_t kv_heads = 0;
  ModelConfig config;
  LoadedParameters parameters;
  CacheMeasurement cache;
  FlopMeasurement flops;
  std::vector<DecodePoint> decode;
};

// A published shape and a request of some length.
struct ConfigurationReport {
  std::string name;
  KvShape shape;
  int64_t context_tokens = 0;
  int64_t request_bytes = 0, mha_bytes = 0, mqa_bytes = 0;
  std::optional<int64_t> allocated_bytes;  // by a KvCache of that shape and length; none: the machine refused, or a
                                           // window gives pages back
};

struct GradientReport {
  std::vector<std::pair<int32_t, GradientCheck>> checks;  // by group
  std::vector<GradientNorms> independent;                 // groups of 1 to 8
  std::vector<GradientNorms> of_model;  // the first group of the last layer of the model, its first 1, 2, … heads
};

struct Report {
  std::string model;
  std::string backend;
  double seconds = 0;  // that it took
  ModelConfig config;
  DType kv_dtype = DType::kBF16;
  LoadedParameters loaded;
  std::vector<VariantReport> variants;              // compared_kv_heads()
  std::vector<ConfigurationReport> configurations;  // of the design's table first
  KvShape example;                                  // 32 layers, 32 query heads, 8 KV heads, head_dim 128, fp16
  int64_t example_pool_bytes = 0;                   // 80 GiB
  std::vector<std::string> tokens;                  // of the prompt
  std::vector<AttentionPatterns> patterns;          // first, middle and last layer
  GradientReport gradients;
};

// Throws std::runtime_error, one line. `progress` is told what comes next, and which of how many.
using ReportProgress = std::function<void(int step, int steps, const std::string& what)>;
Report make_report(const ReportOptions& options, const ReportProgress& progress);

}  // namespace headroom
