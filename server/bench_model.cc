#include "server/bench_model.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>
#include <stdexcept>

#include "kernels/cpu/machine_probe.h"
#include "kernels/device.h"
#include "kernels/op_checks.h"
#include "server/model_shapes.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int32_t kPageTokens = 16;  // as served by default
constexpr double kMemoryShare = 0.95;  // of a device, for all that a full batch takes

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

std::vector<SampleRow> samples_of(size_t rows, int64_t position) {
  std::vector<SampleRow> samples(rows);
  for (size_t i = 0; i < rows; ++i) {
    samples[i] = {.logits_row = static_cast<int32_t>(i), .position = position, .seed = i, .inverse_temperature = 1.0f};
  }
  return samples;
}

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

}  // namespace

MachineLimits MachineLimits::measured(Backend& backend, int threads) {
  if (!backend.host_readable()) return {measured_copy_bytes_per_second(backend), 0};
  return {measured_read_bytes_per_second(threads), measured_fma_flops_per_second(threads)};
}

MachineLimits MachineLimits::mean(std::span<const MachineLimits> all) {
  MachineLimits sum;
  for (const MachineLimits& limits : all) {
    sum.bytes_per_second += limits.bytes_per_second / static_cast<double>(all.size());
    sum.flops_per_second += limits.flops_per_second / static_cast<double>(all.size());
  }
  return sum;
}

namespace {
// The median over the repetitions of what was done in a second, as a share of what the machine could do around it.
double median_share(const BenchRow& row, double done, double MachineLimits::*limit) {
  std::vector<double> shares;
  for (size_t i = 0; i < row.step_seconds.size(); ++i) {
    const double possible = MachineLimits::mean(std::span(row.limits).subspan(2 * i, 2)).*limit;
    if (possible == 0) return 0;
    shares.push_back(done / row.step_seconds[i] / possible);
  }
  return spread_of(std::move(shares)).median;
}
}  // namespace

double BenchRow::bandwidth_share() const { return median_share(*this, bytes(), &MachineLimits::bytes_per_second); }
double BenchRow::peak_share() const { return median_share(*this, flops, &MachineLimits::flops_per_second); }

BenchSequences::BenchSequences(int32_t context_tokens, int32_t page_tokens)
    : pages_each_(static_cast<int32_t>(pages_for_tokens(context_tokens, page_tokens))) {}

const BatchView& BenchSequences::view(int32_t sequences, int32_t first_position, int32_t tokens, std::mt19937& random, int32_t vocab) {
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

const BatchView& BenchSequences::next_view(int32_t position) {
  for (size_t s = 0; s < tokens_.size(); ++s) tokens_[s] = -1 - static_cast<int32_t>(s);
  positions_.assign(positions_.size(), position);
  return view_;
}

std::vector<int32_t> BenchSequences::last_rows() const {
  std::vector<int32_t> rows;
  for (size_t s = 1; s < first_rows_.size(); ++s) rows.push_back(first_rows_[s] - 1);
  return rows;
}

BenchModel::BenchModel(BenchOptions options)
    : options_(std::move(options)),
      opened_(options_.model.empty() ? OpenModel{.config = load_runnable_shape(options_.shape)} : open_model(options_.model)),
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

BenchRow BenchModel::prepare_prefill() const {
  const int32_t n = options_.prompt_tokens;
  BenchRow row{.test = {.prompt_tokens = n}, .tokens_per_step = static_cast<double>(n)};
  row.weight_bytes = weight_bytes();
  row.attention_flops = attention_flops(static_cast<double>(n) * (n + 1) / 2);
  row.flops = 2.0 * linear_parameters() * n + 2.0 * head_parameters() + row.attention_flops;
  return row;
}

BenchRow BenchModel::prepare_decode(int32_t batch, int32_t depth) {
  BenchSequences sequences(context_tokens_, kPageTokens);
  run_prompt(sequences, std::min(depth, options_.chunk_tokens));
  repeat_pages(std::max(1, std::min(depth, options_.chunk_tokens) / kPageTokens), batch * int64_t{sequences.pages_each()});
  const double context = depth + options_.steps / 2.0;
  BenchRow row{.test = {.batch = batch, .depth = depth, .steps = options_.steps}, .tokens_per_step = static_cast<double>(batch)};
  row.weight_bytes = weight_bytes();
  row.kv_bytes = batch * context * static_cast<double>(shape_.token_bytes());
  row.attention_flops = attention_flops(context * batch);
  row.flops = 2.0 * (linear_parameters() + head_parameters()) * batch + row.attention_flops;
  return row;
}

double BenchModel::repetition(const BenchRow& row) {
  BenchSequences sequences(context_tokens_, kPageTokens);
  const auto start = Clock::now();
  if (row.test.prompt_tokens > 0) {
    run_prompt(sequences, row.test.prompt_tokens);
    return seconds_since(start);
  }
  if (launches_ahead()) {
    decode_ahead(row);
    return seconds_since(start) / row.test.steps;
  }
  for (int32_t t = 0; t < row.test.steps; ++t) {
    runner_->run(sequences.view(row.test.batch, row.test.depth + t, 1, random_, config_.vocab_size));
    draw(sequences.last_rows(), row.test.depth + t);
  }
  return seconds_since(start) / row.test.steps;
}

void BenchModel::set_kv_heads(int32_t heads) {
  if (heads == 0) return;
  if (config_.query_heads % heads != 0) {
    throw std::runtime_error("--kv-heads " + std::to_string(heads) + " does not divide the " + std::to_string(config_.query_heads) +
                             " query heads");
  }
  if (config_.query_heads / heads > kQueryGroupMax) {
    throw std::runtime_error("--kv-heads " + std::to_string(heads) + " leaves " + std::to_string(config_.query_heads / heads) +
                             " query heads to each; at most " + std::to_string(kQueryGroupMax) + " can share one");
  }
  config_.kv_heads = heads;
}

TransformerOptions BenchModel::sizes_for(int32_t widest) const {
  return {.step_tokens_max = std::max(options_.chunk_tokens, widest),
          .logits_rows_max = widest,
          .served_context_tokens = context_tokens_};
}

// The largest batch whose sequences, activations and workspaces fit beside the weights.
int32_t BenchModel::fitting_batch(Backend& backend, size_t weight_bytes, int64_t pages_each) const {
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
  int32_t low = 0, high = kBenchBatchMax + 1;  // low fits, high is not looked at
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (needs(middle) <= room ? low : high) = middle;
  }
  if (low == 0) throw std::runtime_error("not even one sequence of " + std::to_string(context_tokens_) + " tokens fits: lower --depth");
  return low;
}

// Copies pages [0, done) of every layer until [0, pages) are full: what a decode step takes does not depend on what it reads.
void BenchModel::repeat_pages(int64_t done, int64_t pages) {
  for (; done < pages; done *= 2) {
    for (const KvLayer& layer : runner_->cache().layers()) {
      backend().copy(layer.data + static_cast<size_t>(done) * layer.page_stride_bytes, layer.data,
                     static_cast<size_t>(std::min(done, pages - done)) * layer.page_stride_bytes);
    }
  }
}

std::unique_ptr<Backend> BenchModel::choose(std::optional<DType> weight_type) const {
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

void BenchModel::run_prompt(BenchSequences& sequences, int32_t tokens) {
  for (int32_t begin = 0; begin < tokens; begin += options_.chunk_tokens) {
    runner_->run(sequences.view(1, begin, std::min(options_.chunk_tokens, tokens - begin), random_, config_.vocab_size));
  }
  runner_->logits(sequences.last_rows());
}

// As the engine ends a step: the backend draws a token for each row, or hands the logits to the host.
void BenchModel::draw(const std::vector<int32_t>& rows, int64_t position) {
  if (!runner_->samples()) {
    runner_->logits(rows);
    return;
  }
  std::vector<SampleResult> results(rows.size());
  runner_->sample(rows, samples_of(rows.size(), position), results);
}

// As the engine does where the backend draws: a step takes the tokens of the one before on the device, and is launched before the host
// waits for them.
void BenchModel::decode_ahead(const BenchRow& row) {
  BenchSequences sequences(context_tokens_, kPageTokens);
  for (int32_t t = 0; t < row.test.steps; ++t) {
    const int32_t position = row.test.depth + t;
    runner_->run(t == 0 ? sequences.view(row.test.batch, position, 1, random_, config_.vocab_size) : sequences.next_view(position));
    const std::vector<int32_t> rows = sequences.last_rows();
    runner_->launch_samples(t % 2, rows, samples_of(rows.size(), position));
    if (t > 0) runner_->wait_samples((t - 1) % 2);
  }
  runner_->wait_samples((row.test.steps - 1) % 2);
}

double BenchModel::head_parameters() const { return static_cast<double>(config_.vocab_size) * config_.model_dim; }
// All that is multiplied with every token: everything but the embedding and the output.
double BenchModel::linear_parameters() const {
  return static_cast<double>(config_.parameters()) - head_parameters() * (config_.tied_embeddings ? 1 : 2);
}
double BenchModel::attention_flops(double keys) const { return 4.0 * config_.layers * config_.query_heads * config_.head_dim * keys; }
// Read once by a step; an untied embedding is only looked up.
double BenchModel::weight_bytes() const {
  const auto all = static_cast<double>(runner_->transformer().weight_bytes());
  if (config_.tied_embeddings) return all;
  return all * (linear_parameters() + head_parameters()) / (linear_parameters() + 2 * head_parameters());
}

}  // namespace headroom
