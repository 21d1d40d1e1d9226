#include "server/command_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model/open_model.h"
#include "engine/transformer_runner.h"
#include "kernels/cpu/machine_probe.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/device.h"
#include "server/command_line.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int32_t kBatchMax = 4096;

struct BenchOptions {
  std::string model;                    // directory with weights
  std::string shape;                    // config.json alone: random weights
  std::string weight_type;              // empty: as stored; bf16 where they are random
  std::string kv_type = "bf16";
  std::string device = "auto";
  std::string activations = "auto";
  bool cuda_graphs = true;
  int threads = 0;
  int32_t kv_heads = 0;                 // of a shape; 0: its own
  std::vector<int32_t> batches = {1, 8, 32};  // 0: as many as fit
  std::vector<int32_t> depths = {128};  // tokens in the cache before decoding
  int32_t prompt_tokens = 512;
  int32_t chunk_tokens = 512;           // rows of one step of the prefill
  int32_t steps = 24;                   // decode steps of one repetition
  int32_t repetitions = 5;
  bool json = false;
};

DType parse_dtype(const std::string& name, std::initializer_list<DType> choices) {
  std::string known;
  for (const DType type : choices) {
    if (name == dtype_name(type)) return type;
    known += (known.empty() ? "" : ", ") + std::string(dtype_name(type));
  }
  throw std::runtime_error("unknown element type '" + name + "'; use one of " + known);
}
DType parse_kv_dtype(const std::string& name) { return parse_dtype(name, {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}); }
DType parse_weight_dtype(const std::string& name) { return parse_dtype(name, {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kI4}); }

// Read and written, as a device copies within its memory: the ceiling of what only moves bytes.
double measured_copy_bytes_per_second(Backend& backend) {
  constexpr int kCopies = 20;
  const int64_t room = backend.device_memory().value_or(DeviceMemoryState{}).free_bytes / 4;
  const auto bytes = static_cast<size_t>(std::clamp<int64_t>(room, 1 << 20, 1 << 30));
  const auto from = backend.allocate(bytes), to = backend.allocate(bytes);
  double best = 0;
  for (int repetition = 0; repetition < 4; ++repetition) {  // the first one warms up
    backend.synchronize();
    const auto start = Clock::now();
    for (int i = 0; i < kCopies; ++i) backend.copy(to->data(), from->data(), bytes);
    backend.synchronize();
    if (repetition > 0) best = std::max(best, 2.0 * kCopies * static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

// Of a machine that others may share, so they are measured beside each row.
struct MachineLimits {
  double bytes_per_second = 0, flops_per_second = 0;  // 0: not known

  static MachineLimits measured(Backend& backend, int threads) {
    if (!backend.host_readable()) return {measured_copy_bytes_per_second(backend), 0};
    return {measured_read_bytes_per_second(threads), measured_fma_flops_per_second(threads)};
  }
  static MachineLimits mean(const MachineLimits& a, const MachineLimits& b) {
    return {(a.bytes_per_second + b.bytes_per_second) / 2, (a.flops_per_second + b.flops_per_second) / 2};
  }
};

// What one measurement came to. A step moves weight_bytes and kv_bytes at least and computes `flops`, the attention's among them.
struct Row {
  std::string name;
  int32_t batch = 1, depth = 0;
  double tokens_per_step = 0, weight_bytes = 0, kv_bytes = 0, flops = 0, attention_flops = 0;
  std::vector<double> step_seconds;
  MachineLimits limits;  // as they were just before and just after

  double median_seconds() const {
    std::vector<double> sorted = step_seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double tokens_per_second() const { return tokens_per_step / median_seconds(); }
  double bytes() const { return weight_bytes + kv_bytes; }
};

// The sequences of a benchmark: `batch` of them, each with its own pages, all with the same `depth` tokens.
class BenchSequences {
 public:
  BenchSequences(int32_t batch, int32_t context_tokens, int32_t page_tokens)
      : batch_(batch), pages_each_(static_cast<int32_t>(pages_for_tokens(context_tokens, page_tokens))) {}

  int32_t pages_each() const { return pages_each_; }

  // Rows [first_position, first_position + tokens) of sequences [0, sequences).
  const BatchView& view(int32_t sequences, int32_t first_position, int32_t tokens, std::mt19937& random, int32_t vocab) {
    tokens_.clear();
    positions_.clear();
    page_tables_.clear();
    first_rows_.assign(1, 0);
    page_begin_.assign(1, 0);
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t t = 0; t < tokens; ++t) {
        tokens_.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
        positions_.push_back(first_position + t);
      }
      for (int32_t p = 0; p < pages_each_; ++p) page_tables_.push_back(s * pages_each_ + p);
      first_rows_.push_back(static_cast<int32_t>(tokens_.size()));
      page_begin_.push_back(static_cast<int32_t>(page_tables_.size()));
    }
    view_ = {.rows = static_cast<int32_t>(tokens_.size()), .tokens = tokens_, .positions = positions_,
             .sequence_first_row = first_rows_, .page_tables = page_tables_, .page_table_begin = page_begin_};
    return view_;
  }

  std::vector<int32_t> last_rows() const {
    std::vector<int32_t> rows;
    for (size_t s = 1; s < first_rows_.size(); ++s) rows.push_back(first_rows_[s] - 1);
    return rows;
  }

 private:
  int32_t batch_, pages_each_;
  std::vector<int32_t> tokens_, positions_, first_rows_, page_tables_, page_begin_;
  BatchView view_;
};

class Bench {
 public:
  explicit Bench(BenchOptions options)
      : options_(std::move(options)),
        opened_(options_.model.empty() ? OpenModel{.config = ModelConfig::load(options_.shape)} : open_model(options_.model)),
        config_(opened_.config),
        random_(1) {
    const int32_t deepest = *std::max_element(options_.depths.begin(), options_.depths.end());
    context_tokens_ = std::max(options_.prompt_tokens, deepest + options_.steps + 1);
    if (options_.model.empty()) {
      config_.context_tokens = std::max(config_.context_tokens, context_tokens_);  // random weights know no limit
      set_kv_heads(options_.kv_heads);
    }
    if (context_tokens_ > config_.context_tokens) {
      throw std::runtime_error("the benchmark needs a context of " + std::to_string(context_tokens_) + " tokens; the model has " +
                               std::to_string(config_.context_tokens) + ": lower --depth or --prompt");
    }
    shape_ = kv_shape(config_, parse_kv_dtype(options_.kv_type), kPageTokens);
    std::optional<DType> weight_type;
    if (!options_.weight_type.empty()) weight_type = parse_weight_dtype(options_.weight_type);
    if (options_.model.empty() && !weight_type) weight_type = DType::kBF16;
    auto backend = choose(weight_type);
    memory_at_start_ = backend->device_memory();
    auto weights = options_.model.empty()
                       ? random_weights(config_, *weight_type, 1, *backend)
                       : load_weights(*opened_.tensors, config_, *backend, {}, WeightTypes::of(weight_type));
    const int64_t pages_each = pages_for_tokens(context_tokens_, kPageTokens);
    for (int32_t& batch : options_.batches) {
      if (batch == 0) batch = fitting_batch(*backend, weights->bytes, pages_each);
    }
    const int32_t widest = *std::max_element(options_.batches.begin(), options_.batches.end());
    const TransformerOptions sizes = sizes_for(widest);
    auto transformer = std::make_unique<Transformer>(config_, std::move(weights), *backend, sizes);
    backend->reserve(step_limits(config_, sizes, widest, static_cast<int32_t>(pages_each)));
    auto cache = std::make_unique<KvCache>(shape_, widest * pages_each, *backend);
    runner_ = std::make_unique<TransformerRunner>(std::move(backend), std::move(cache), std::move(transformer), widest);
  }

  Row prefill() {
    const int32_t n = options_.prompt_tokens;
    Row row{.name = "prefill", .batch = 1, .depth = 0, .tokens_per_step = static_cast<double>(n)};
    row.weight_bytes = weight_bytes();
    row.attention_flops = attention_flops(static_cast<double>(n) * (n + 1) / 2);
    row.flops = 2.0 * linear_parameters() * n + 2.0 * head_parameters() + row.attention_flops;
    for (int32_t i = 0; i <= options_.repetitions; ++i) {
      BenchSequences sequences(1, context_tokens_, kPageTokens);
      const auto start = Clock::now();
      run_prompt(sequences, n);
      if (i > 0) row.step_seconds.push_back(seconds_since(start));  // the first one warms up
    }
    return row;
  }

  Row decode(int32_t batch, int32_t depth) {
    BenchSequences sequences(batch, context_tokens_, kPageTokens);
    run_prompt(sequences, std::min(depth, options_.chunk_tokens));
    repeat_pages(std::max(1, std::min(depth, options_.chunk_tokens) / kPageTokens), batch * int64_t{sequences.pages_each()});
    const double context = depth + options_.steps / 2.0;
    Row row{.name = "decode", .batch = batch, .depth = depth, .tokens_per_step = static_cast<double>(batch)};
    row.weight_bytes = weight_bytes();
    row.kv_bytes = batch * context * static_cast<double>(shape_.token_bytes());
    row.attention_flops = attention_flops(context * batch);
    row.flops = 2.0 * (linear_parameters() + head_parameters()) * batch + row.attention_flops;
    for (int32_t i = 0; i <= options_.repetitions; ++i) {
      const auto start = Clock::now();
      for (int32_t t = 0; t < options_.steps; ++t) {
        runner_->run(sequences.view(batch, depth + t, 1, random_, config_.vocab_size));
        draw(sequences.last_rows(), depth + t);
      }
      if (i > 0) row.step_seconds.push_back(seconds_since(start) / options_.steps);
    }
    return row;
  }

  const ModelConfig& config() const { return config_; }
  const KvShape& shape() const { return shape_; }
  const TransformerRunner& runner() const { return *runner_; }
  Backend& backend() { return runner_->backend(); }
  const std::vector<int32_t>& batches() const { return options_.batches; }
  std::optional<DeviceMemoryState> memory_at_start() const { return memory_at_start_; }

 private:
  static constexpr int32_t kPageTokens = 32;
  static constexpr double kMemoryShare = 0.95;  // of a device, for all that a full batch takes

  void set_kv_heads(int32_t heads) {
    if (heads == 0) return;
    if (config_.query_heads % heads != 0) {
      throw std::runtime_error("--kv-heads " + std::to_string(heads) + " does not divide the " + std::to_string(config_.query_heads) +
                               " query heads");
    }
    config_.kv_heads = heads;
  }

  TransformerOptions sizes_for(int32_t widest) const {
    return {.step_tokens_max = std::max(options_.chunk_tokens, widest),
            .logits_rows_max = widest,
            .served_context_tokens = context_tokens_};
  }

  // The largest batch whose sequences, activations and workspaces fit beside the weights.
  int32_t fitting_batch(Backend& backend, size_t weight_bytes, int64_t pages_each) const {
    if (!memory_at_start_) throw std::runtime_error("--batch 0 asks a device for its memory; the CPU has none of its own: name a batch");
    const auto [free_bytes, total_bytes] = *memory_at_start_;
    const double room = kMemoryShare * static_cast<double>(total_bytes) - static_cast<double>(total_bytes - free_bytes) -
                        static_cast<double>(weight_bytes);
    const auto needs = [&](int32_t batch) {
      const TransformerOptions sizes = sizes_for(batch);
      return static_cast<double>(batch * pages_each * shape_.page_bytes()) +
             static_cast<double>(Transformer::predicted_activation_bytes(config_, sizes)) +
             static_cast<double>(backend.workspace_bytes(step_limits(config_, sizes, batch, static_cast<int32_t>(pages_each))));
    };
    int32_t low = 0, high = kBatchMax + 1;  // low fits, high is not looked at
    while (high - low > 1) {
      const int32_t middle = low + (high - low) / 2;
      (needs(middle) <= room ? low : high) = middle;
    }
    if (low == 0) throw std::runtime_error("not even one sequence of " + std::to_string(context_tokens_) + " tokens fits: lower --depth");
    return low;
  }

  // Copies pages [0, done) of every layer until [0, pages) are full: what a decode step takes does not depend on what it reads.
  void repeat_pages(int64_t done, int64_t pages) {
    for (; done < pages; done *= 2) {
      for (const KvLayer& layer : runner_->cache().layers()) {
        backend().copy(layer.data + static_cast<size_t>(done) * layer.page_stride_bytes, layer.data,
                       static_cast<size_t>(std::min(done, pages - done)) * layer.page_stride_bytes);
      }
    }
  }

  std::unique_ptr<Backend> choose(std::optional<DType> weight_type) const {
    std::set<DType> types;
    if (options_.model.empty()) {
      types.insert(*weight_type);
    } else {
      types = loaded_weight_types(*opened_.tensors, config_, WeightTypes::of(weight_type));
    }
    ChosenBackend chosen = choose_backend(
        {.device = options_.device, .threads = options_.threads, .activations = options_.activations, .cuda_graphs = options_.cuda_graphs,
         .weights = types, .kv = shape_.dtype, .head_dim = config_.head_dim});
    if (!chosen.reason.empty()) std::fprintf(stderr, "not CUDA: %s\n", chosen.reason.c_str());
    return std::move(chosen.backend);
  }

  void run_prompt(BenchSequences& sequences, int32_t tokens) {
    for (int32_t begin = 0; begin < tokens; begin += options_.chunk_tokens) {
      runner_->run(sequences.view(1, begin, std::min(options_.chunk_tokens, tokens - begin), random_, config_.vocab_size));
    }
    runner_->logits(sequences.last_rows());
  }

  // As the engine ends a step: the backend draws a token for each row, or hands the logits to the host.
  void draw(const std::vector<int32_t>& rows, int64_t position) {
    if (!runner_->samples()) {
      runner_->logits(rows);
      return;
    }
    std::vector<SampleRow> samples(rows.size());
    std::vector<SampleResult> results(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      samples[i] = {.logits_row = static_cast<int32_t>(i), .position = position, .seed = i, .inverse_temperature = 1.0f};
    }
    runner_->sample(rows, samples, results);
  }

  double head_parameters() const { return static_cast<double>(config_.vocab_size) * config_.model_dim; }
  // All that is multiplied with every token: everything but the embedding and the output.
  double linear_parameters() const {
    return static_cast<double>(config_.parameters()) - head_parameters() * (config_.tied_embeddings ? 1 : 2);
  }
  double attention_flops(double keys) const { return 4.0 * config_.layers * config_.query_heads * config_.head_dim * keys; }
  // Read once by a step; an untied embedding is only looked up.
  double weight_bytes() const {
    const auto all = static_cast<double>(runner_->transformer().weight_bytes());
    if (config_.tied_embeddings) return all;
    return all * (linear_parameters() + head_parameters()) / (linear_parameters() + 2 * head_parameters());
  }

  BenchOptions options_;
  OpenModel opened_;
  ModelConfig config_;
  std::mt19937 random_;
  int32_t context_tokens_ = 0;
  std::optional<DeviceMemoryState> memory_at_start_;  // before anything was allocated
  KvShape shape_;
  std::unique_ptr<TransformerRunner> runner_;
};

std::string share_text(double rate, double limit) {
  if (limit == 0) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f%% of %.0f", 100 * rate / limit, limit / 1e9);
  return text;
}

void print_table(const Bench& bench, const std::vector<Row>& rows) {
  std::printf("%s, %lld parameters, %.1f MB of weights, KV %s %lld bytes per token; %s\n", bench.config().architecture.c_str(),
              static_cast<long long>(bench.config().parameters()), static_cast<double>(bench.runner().transformer().weight_bytes()) / 1e6,
              std::string(dtype_name(bench.shape().dtype)).c_str(), static_cast<long long>(bench.shape().token_bytes()),
              bench.runner().backend().description().c_str());
  const bool on_device = !bench.runner().backend().host_readable();
  std::printf("limits: %s, each measured before and after a row\n\n",
              on_device ? "bytes read and written by a copy within the device" : "read bandwidth and fp32 FMA peak");
  std::printf("%-8s %6s %6s %10s %23s %6s %12s %8s %13s\n", "test", "batch", "depth", "tokens/s", "ms per step (min-max)", "GB/s",
              "of limit", "GFLOP/s", "of limit");
  for (const Row& row : rows) {
    const double seconds = row.median_seconds();
    const auto [low, high] = std::minmax_element(row.step_seconds.begin(), row.step_seconds.end());
    char range[48];
    std::snprintf(range, sizeof(range), "%.2f (%.2f-%.2f)", seconds * 1e3, *low * 1e3, *high * 1e3);
    std::printf("%-8s %6d %6d %10.1f %23s %6.1f %12s %8.1f %13s\n", row.name.c_str(), row.batch, row.depth, row.tokens_per_second(), range,
                row.bytes() / seconds / 1e9, share_text(row.bytes() / seconds, row.limits.bytes_per_second).c_str(), row.flops / seconds / 1e9,
                share_text(row.flops / seconds, row.limits.flops_per_second).c_str());
  }
}

void print_json(const Bench& bench, const std::vector<Row>& rows) {
  const auto share = [](double rate, double limit) { return limit > 0 ? nlohmann::ordered_json(rate / limit) : nlohmann::ordered_json(); };
  nlohmann::ordered_json out = {{"architecture", bench.config().architecture},
                                {"parameters", bench.config().parameters()},
                                {"weight_bytes", bench.runner().transformer().weight_bytes()},
                                {"kv_dtype", dtype_name(bench.shape().dtype)},
                                {"kv_token_bytes", bench.shape().token_bytes()},
                                {"backend", bench.runner().backend().description()},
                                {"results", nlohmann::ordered_json::array()}};
  if (const auto start = bench.memory_at_start()) {
    out["device_memory"] = {{"total_bytes", start->total_bytes}, {"free_bytes_before", start->free_bytes},
                            {"free_bytes_after", bench.runner().backend().device_memory()->free_bytes},
                            {"pool_bytes", bench.runner().cache().pool_bytes()}};
  }
  for (const Row& row : rows) {
    out["results"].push_back({{"test", row.name},
                              {"batch", row.batch},
                              {"depth_tokens", row.depth},
                              {"tokens_per_second", row.tokens_per_second()},
                              {"step_seconds", row.step_seconds},
                              {"step_weight_bytes", row.weight_bytes},
                              {"step_kv_bytes", row.kv_bytes},
                              {"step_flops", row.flops},
                              {"step_attention_flops", row.attention_flops},
                              {"limit_bytes_per_second", row.limits.bytes_per_second},
                              {"limit_flops_per_second", row.limits.flops_per_second},
                              {"bandwidth_share", share(row.bytes() / row.median_seconds(), row.limits.bytes_per_second)},
                              {"peak_share", share(row.flops / row.median_seconds(), row.limits.flops_per_second)}});
  }
  std::printf("%s\n", out.dump(2).c_str());
}

}  // namespace

int run_bench(const std::vector<std::string>& arguments) {
  BenchOptions options;
  CLI::App app("Measures prefill and decode against this machine's read bandwidth and FMA peak", "headroom bench");
  auto* model = app.add_option("--model", options.model, "model directory or GGUF file; its own weights are used");
  app.add_option("--shape", options.shape, "config.json of a shape; random weights are used")->excludes(model);
  app.add_option("--weights", options.weight_type, "what matrices are kept as: fp32, bf16, fp16, int8, int4 [as stored; bf16 where they are random]");
  app.add_option("--kv", options.kv_type, "element type of the KV cache")->capture_default_str();
  app.add_option("--device", options.device, "what computes")->check(CLI::IsMember(device_names()))->capture_default_str();
  app.add_option("--activations", options.activations, "what a CPU rounds the inputs of matrix products to")->check(CLI::IsMember(activation_names()))->capture_default_str();
  app.add_option("--cuda-graphs", options.cuda_graphs, "decode steps on a device are recorded once and replayed")->capture_default_str();
  app.add_option("--threads", options.threads, "0: one per core")->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads, "of a shape: another number of KV heads; 0: its own")
      ->excludes(model)
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--batch", options.batches, "sequences decoded at once; 0: as many as fit into the device's memory")
      ->delimiter(',')
      ->check(CLI::Range(0, kBatchMax))
      ->capture_default_str();
  app.add_option("--depth", options.depths, "tokens in the cache before decoding")->delimiter(',')->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--prompt", options.prompt_tokens, "tokens of the prefill; 0: none")->check(CLI::Range(0, 1 << 20))->capture_default_str();
  app.add_option("--chunk", options.chunk_tokens, "tokens of one step of the prefill")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--steps", options.steps, "decode steps of one repetition")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--repetitions", options.repetitions, "after one that warms up")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("--json", options.json, "print JSON");
  if (!parse_command_line(app, arguments)) return 0;
  if (options.model.empty() && options.shape.empty()) options.shape = "configs/models/smollm2-135m.json";

  const auto note = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  note("loading " + (options.model.empty() ? options.shape + " with random weights" : options.model));
  Bench bench(options);
  const int threads = options.threads > 0 ? options.threads : usable_physical_cores();
  std::vector<Row> rows;
  MachineLimits before = MachineLimits::measured(bench.backend(), threads);
  const auto add = [&](Row row) {
    const MachineLimits after = MachineLimits::measured(bench.backend(), threads);
    row.limits = MachineLimits::mean(before, after);
    before = after;
    rows.push_back(std::move(row));
  };
  if (options.prompt_tokens > 0) {
    note("prefill of " + std::to_string(options.prompt_tokens) + " tokens");
    add(bench.prefill());
  }
  for (int32_t depth : options.depths) {
    for (int32_t batch : bench.batches()) {
      note("decode of " + std::to_string(batch) + " sequences at depth " + std::to_string(depth));
      add(bench.decode(batch, depth));
    }
  }
  (options.json ? print_json : print_table)(bench, rows);
  return 0;
}

}  // namespace headroom
