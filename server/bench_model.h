// A model whose speed is measured: prefill and decode, by the runner that serves, without requests and scheduler.
//
// Threads: all of it belongs to the thread that made it; the backend's threads work while a repetition runs and sleep after it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model/open_model.h"
#include "engine/transformer_runner.h"
#include "server/bench_peer.h"

namespace headroom {

constexpr int32_t kBenchBatchMax = 4096;

struct BenchOptions {
  std::string model;                    // directory with weights
  std::string shape;                    // config.json alone: random weights
  std::string weight_type;              // empty: as stored; bf16 where they are random
  std::string kv_type = "bf16";
  std::string device = "auto";
  std::string activations = "auto";
  bool cuda_graphs = true;
  bool async_scheduling = true;         // a device's next step is launched before the results of the last are waited for
  int threads = 0;
  int32_t kv_heads = 0;                 // of a shape; 0: its own
  std::vector<int32_t> batches = {1, 8, 32};  // 0: as many as fit
  std::vector<int32_t> depths = {128};  // tokens in the cache before decoding
  int32_t prompt_tokens = 512;
  int32_t chunk_tokens = 512;           // rows of one step of the prefill
  int32_t steps = 24;                   // decode steps of one repetition
  int32_t repetitions = 5;
};

// Of a machine that others may share, so they are measured beside each row.
struct MachineLimits {
  double bytes_per_second = 0, flops_per_second = 0;  // 0: not known

  static MachineLimits measured(Backend& backend, int threads);
  static MachineLimits mean(std::span<const MachineLimits> all);
};

// What one measurement came to. A prefill has one step, of all its tokens. A step moves weight_bytes and kv_bytes at least and
// computes `flops`, the attention's among them.
struct BenchRow {
  PeerTest test;
  double tokens_per_step = 0, weight_bytes = 0, kv_bytes = 0, flops = 0, attention_flops = 0;
  std::vector<double> step_seconds;
  std::vector<MachineLimits> limits;  // two for each repetition: as they were just before and just after

  // The median over the repetitions: neighbours take more of a machine or less from one second to the next. 0 where the limit is not known.
  double bandwidth_share() const;
  double peak_share() const;
  double tokens_per_second() const { return tokens_per_step / spread_of(step_seconds).median; }
  double bytes() const { return weight_bytes + kv_bytes; }
  const char* name() const { return test.prompt_tokens > 0 ? "prefill" : "decode"; }
};

// The sequences of a benchmark, each with its own pages, all with the same number of tokens.
class BenchSequences {
 public:
  BenchSequences(int32_t context_tokens, int32_t page_tokens);

  int32_t pages_each() const { return pages_each_; }
  // Rows [first_position, first_position + tokens) of sequences [0, sequences), with random tokens.
  const BatchView& view(int32_t sequences, int32_t first_position, int32_t tokens, std::mt19937& random, int32_t vocab);
  // The row at `position` of each of the sequences of the last view, with what is drawn for it, as the device knows.
  const BatchView& next_view(int32_t position);
  std::vector<int32_t> last_rows() const;

 private:
  int32_t pages_each_;
  std::vector<int32_t> tokens_, positions_, first_rows_, page_tables_, page_begin_;
  BatchView view_;
};

class BenchModel {
 public:
  // Throws std::runtime_error, one line, where the options do not fit the model, each other or the memory.
  explicit BenchModel(BenchOptions options);

  // Fills the cache as a decode needs it, until the next one is prepared.
  BenchRow prepare_prefill() const;
  BenchRow prepare_decode(int32_t batch, int32_t depth);
  // The seconds of a step, in one repetition of the row that was prepared last.
  double repetition(const BenchRow& row);

  const ModelConfig& config() const { return config_; }
  const KvShape& shape() const { return shape_; }
  bool launches_ahead() const { return options_.async_scheduling && runner_->samples_ahead(); }
  const TransformerRunner& runner() const { return *runner_; }
  Backend& backend() { return runner_->backend(); }
  const std::vector<int32_t>& batches() const { return options_.batches; }  // those that were asked for as 0 with what fits
  std::optional<DeviceMemoryState> memory_at_start() const { return memory_at_start_; }

 private:
  void set_kv_heads(int32_t heads);
  TransformerOptions sizes_for(int32_t widest) const;
  int32_t fitting_batch(Backend& backend, size_t weight_bytes, int64_t pages_each) const;
  std::unique_ptr<Backend> choose(std::optional<DType> weight_type) const;
  void repeat_pages(int64_t done, int64_t pages);
  void run_prompt(BenchSequences& sequences, int32_t tokens);
  void draw(const std::vector<int32_t>& rows, int64_t position);
  void decode_ahead(const BenchRow& row);
  double head_parameters() const;
  double linear_parameters() const;
  double attention_flops(double keys) const;
  double weight_bytes() const;

  BenchOptions options_;
  OpenModel opened_;
  ModelConfig config_;
  std::mt19937 random_;
  int32_t context_tokens_ = 0;
  std::optional<DeviceMemoryState> memory_at_start_;  // before anything was allocated
  KvShape shape_;
  std::unique_ptr<TransformerRunner> runner_;
};

}  // namespace headroom
