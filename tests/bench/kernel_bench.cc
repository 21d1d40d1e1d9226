// Each kernel's distance from the machine's limit. Beside the time, every line prints GB/s and its share of the read
// bandwidth, or GFLOP/s and its share of the fp32 FMA peak, both measured at the start of the same run. Pairs of bf16 have twice that peak.
//
//   build/kernel_bench --benchmark_filter=decode
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/machine_probe.h"
#include "kernels/cpu/thread_pool.h"

namespace headroom {
namespace {

struct Machine {
  int threads = usable_physical_cores();
  double bytes_per_second = measured_read_bytes_per_second(threads);
  double flops_per_second = measured_fma_flops_per_second(threads);
};
const Machine& machine() {
  static const Machine measured;
  return measured;
}

Backend& backend() {
  static const std::unique_ptr<Backend> cpu = make_cpu_backend({.bf16_activations = cpu_multiplies_bf16()});  // as `--activations auto` serves
  return *cpu;
}

void report_bytes(benchmark::State& state, double bytes_per_iteration) {
  const double bytes = bytes_per_iteration * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["%bandwidth"] =
      benchmark::Counter(bytes * 100.0 / machine().bytes_per_second, benchmark::Counter::kIsRate);
}

void report_flops(benchmark::State& state, double flops_per_iteration) {
  const double flops = flops_per_iteration * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsRate);
  state.counters["%peak"] = benchmark::Counter(flops * 100.0 / machine().flops_per_second, benchmark::Counter::kIsRate);
}

std::vector<float> random_floats(size_t count) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, DType type) {
  const std::vector<float> values = random_floats(static_cast<size_t>(cols));
  std::vector<std::byte> row(static_cast<size_t>(cols) * dtype_bytes(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
    if (type == DType::kF32) {
      std::memcpy(&row[i * 4], &values[i], 4);
    } else {
      std::memcpy(&row[i * 2], &half, 2);
    }
  }
  std::vector<HostWeight> parts(static_cast<size_t>(rows), HostWeight{row.data(), type, 1, cols});
  return backend().load_weight(parts);
}

// ---- One op over and over: its weights stay in the cache where they fit.

void gemm(benchmark::State& state, DType type) {
  const int64_t rows = state.range(0), outputs = state.range(1), inputs = state.range(2);
  const std::unique_ptr<Weight> weight = random_weight(outputs, inputs, type);
  std::vector<float> x = random_floats(static_cast<size_t>(rows * inputs));
  std::vector<float> out(static_cast<size_t>(rows * outputs));
  for (auto _ : state) {
    backend().gemm(Matrix(out.data(), rows, outputs), Matrix(x.data(), rows, inputs), *weight, {});
    benchmark::ClobberMemory();
  }
  report_bytes(state, static_cast<double>(weight->bytes()));
  report_flops(state, 2.0 * static_cast<double>(rows * outputs * inputs));
}

void gemm_rows(benchmark::internal::Benchmark* bench) {
  for (const int rows : {1, 2, 4, 8, 16, 32, 64, 128, 512}) bench->Args({rows, 8192, 4096});
  for (const int rows : {1, 8, 32, 512}) bench->Args({rows, 3072, 576});
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(gemm, bf16, DType::kBF16)->Apply(gemm_rows);
BENCHMARK_CAPTURE(gemm, fp16, DType::kF16)
    ->Args({1, 8192, 4096})
    ->Args({32, 8192, 4096})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(gemm, fp32, DType::kF32)
    ->Args({1, 8192, 4096})
    ->Args({32, 8192, 4096})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// A layer's pages in memory, filled, and a batch whose sequences each have `context` tokens, the last `rows` of them in
// this step.
struct AttentionBatch {
  int32_t group, kv_heads, head_dim, page_tokens = 16;
  std::unique_ptr<Buffer> pool;
  KvLayer layer;
  std::vector<int32_t> positions, first_row{0}, tables, table_begin{0}, tokens;
  std::vector<float> qkv, out;
  BatchView view;

  AttentionBatch(int32_t group, int32_t kv_heads, int32_t head_dim, int32_t context, int32_t rows, int32_t sequences)
      : group(group), kv_heads(kv_heads), head_dim(head_dim) {
    const int32_t pages_per_sequence = (context + page_tokens - 1) / page_tokens;
    const size_t page_bytes = size_t{4} * kv_heads * page_tokens * head_dim;
    const int32_t pages = pages_per_sequence * sequences;
    pool = backend().allocate(page_bytes * pages);
    uint16_t* elements = reinterpret_cast<uint16_t*>(pool->data());
    for (size_t i = 0; i < page_bytes / 2 * pages; ++i)
      elements[i] = f32_to_bf16(static_cast<float>(i * 2654435761u % 2001) * 1e-3f - 1.0f);
    layer = {pool->data(), page_bytes, DType::kBF16, kv_heads, page_tokens, head_dim};
    tables.resize(pages);
    std::iota(tables.begin(), tables.end(), 0);
    std::shuffle(tables.begin(), tables.end(), std::mt19937(3));
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t position = context - rows; position < context; ++position) positions.push_back(position);
      first_row.push_back(static_cast<int32_t>(positions.size()));
      table_begin.push_back(pages_per_sequence * (s + 1));
    }
    const size_t total_rows = positions.size();
    tokens.resize(total_rows);
    qkv = random_floats(total_rows * (group + 2) * kv_heads * head_dim);
    out.resize(total_rows * group * kv_heads * head_dim);
    view = {static_cast<int32_t>(total_rows), tokens, positions, first_row, tables, table_begin};
  }
  void attend() {
    const int64_t rows = view.rows;
    const AttentionParams params{group * kv_heads, kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)),
                                 0};
    backend().paged_attention(Matrix(out.data(), rows, int64_t{group} * kv_heads * head_dim),
                              Matrix(qkv.data(), rows, int64_t{group + 2} * kv_heads * head_dim), layer, view, params);
  }
};

// Decode: every KV byte of the batch is read once, whatever the group. More of them than caches hold, but for the group of 16, which arithmetic
// bounds.
void decode_attention(benchmark::State& state) {
  const int32_t context = static_cast<int32_t>(state.range(3)), sequences = static_cast<int32_t>(state.range(4));
  AttentionBatch batch(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
                       static_cast<int32_t>(state.range(2)), context, 1, sequences);
  for (auto _ : state) batch.attend();
  const double elements = 2.0 * context * sequences * batch.kv_heads * batch.head_dim;
  report_bytes(state, 2.0 * elements);
  report_flops(state, 2.0 * elements * batch.group);
}
BENCHMARK(decode_attention)
    ->ArgNames({"group", "kv_heads", "head_dim", "context", "sequences"})
    ->Args({1, 16, 64, 131072, 1})  // MHA
    ->Args({4, 4, 64, 262144, 1})
    ->Args({16, 1, 64, 262144, 1})  // MQA
    ->Args({3, 3, 64, 8192, 32})    // SmolLM2-135M
    ->Args({4, 8, 128, 8192, 8})    // Llama 3 8B
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void prefill_attention(benchmark::State& state) {
  const int32_t context = static_cast<int32_t>(state.range(3)), rows = 512;
  AttentionBatch batch(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
                       static_cast<int32_t>(state.range(2)), context, rows, 1);
  for (auto _ : state) batch.attend();
  const double pairs = rows * (context - rows) + rows * (rows + 1) / 2.0;
  report_flops(state, 4.0 * pairs * batch.group * batch.kv_heads * batch.head_dim);
}
BENCHMARK(prefill_attention)
    ->ArgNames({"group", "kv_heads", "head_dim", "context"})
    ->Args({3, 3, 64, 512})
    ->Args({3, 3, 64, 4096})
    ->Args({4, 8, 128, 4096})
    ->Args({1, 16, 64, 4096})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// ---- All the ops of one step of SmolLM2-135M in bf16, weights of every layer their own: what the engine can reach at
// best.

struct Smol {
  static constexpr int64_t kLayers = 30, kDim = 576, kFfn = 1536, kVocab = 49152;
  static constexpr int32_t kQueryHeads = 9, kKvHeads = 3, kHeadDim = 64;
  static constexpr int64_t kQkv = (kQueryHeads + 2 * kKvHeads) * kHeadDim;
  struct Layer {
    std::unique_ptr<Weight> qkv = random_weight(kQkv, kDim, DType::kBF16);
    std::unique_ptr<Weight> output = random_weight(kDim, kDim, DType::kBF16);
    std::unique_ptr<Weight> gate_up = random_weight(2 * kFfn, kDim, DType::kBF16);
    std::unique_ptr<Weight> down = random_weight(kDim, kFfn, DType::kBF16);
    double bytes() const {
      return static_cast<double>(qkv->bytes() + output->bytes() + gate_up->bytes() + down->bytes());
    }
  };
  std::vector<Layer> layers = std::vector<Layer>(kLayers);
  std::unique_ptr<Weight> embedding = random_weight(kVocab, kDim, DType::kBF16);
};

void smollm2_step(benchmark::State& state) {
  static const Smol model;
  const int32_t sequences = static_cast<int32_t>(state.range(0)), rows_each = static_cast<int32_t>(state.range(1));
  const int32_t context = static_cast<int32_t>(state.range(2));
  AttentionBatch batch(Smol::kQueryHeads / Smol::kKvHeads, Smol::kKvHeads, Smol::kHeadDim, context, rows_each,
                       sequences);
  const int64_t rows = batch.view.rows;
  const std::vector<float> norm(Smol::kDim, 1.0f), inv_freq(Smol::kHeadDim / 2, 0.01f);
  std::vector<float> residual_data = random_floats(rows * Smol::kDim), hidden_data = residual_data,
                     branch_data = residual_data;
  std::vector<float> qkv_data(rows * Smol::kQkv), gate_up_data(rows * 2 * Smol::kFfn), ffn_data(rows * Smol::kFfn),
      rope_data(rows * Smol::kHeadDim);
  std::vector<float> logits_data(sequences * Smol::kVocab);
  const Matrix residual(residual_data.data(), rows, Smol::kDim), hidden(hidden_data.data(), rows, Smol::kDim),
      branch(branch_data.data(), rows, Smol::kDim);
  const Matrix qkv(qkv_data.data(), rows, Smol::kQkv), gate_up(gate_up_data.data(), rows, 2 * Smol::kFfn),
      ffn(ffn_data.data(), rows, Smol::kFfn);
  RopeKvParams rope{
      Smol::kQueryHeads, Smol::kKvHeads, Smol::kHeadDim, Matrix(rope_data.data(), rows, Smol::kHeadDim), {}, {}, 1e-5f};
  const AttentionParams attention{Smol::kQueryHeads, Smol::kKvHeads, Smol::kHeadDim, 0.125f, 0};
  std::vector<int32_t> last_rows;
  for (int32_t s = 0; s < sequences; ++s) last_rows.push_back(batch.first_row[s + 1] - 1);
  double bytes = static_cast<double>(model.embedding->bytes());
  for (const Smol::Layer& layer : model.layers) bytes += layer.bytes();

  Backend& cpu = backend();
  for (auto _ : state) {
    cpu.embedding(residual, *model.embedding, batch.tokens);
    cpu.rope_table(rope.rope_table, batch.positions, inv_freq, 1.0f);
    cpu.rmsnorm(hidden, residual, norm, 1e-5f);
    for (const Smol::Layer& layer : model.layers) {
      cpu.gemm(qkv, hidden, *layer.qkv, {});
      cpu.rope_kv_write(qkv, batch.layer, batch.view,
                        rope);  // all layers share these pages: the KV bytes of a step stay small
      cpu.paged_attention(branch, qkv, batch.layer, batch.view, attention);
      cpu.gemm(hidden, branch, *layer.output, {});
      cpu.add_rmsnorm(branch, residual, hidden, norm, 1e-5f);
      cpu.gemm(gate_up, branch, *layer.gate_up, {});
      cpu.silu_mul(ffn, gate_up);
      cpu.gemm(branch, ffn, *layer.down, {});
      cpu.add_rmsnorm(hidden, residual, branch, norm, 1e-5f);
    }
    const Matrix last(branch_data.data(), sequences, Smol::kDim);
    cpu.gather_rows(last, hidden, last_rows);
    cpu.gemm(Matrix(logits_data.data(), sequences, Smol::kVocab), last, *model.embedding, {});
  }
  report_bytes(state, bytes);
  const double layer_weights = (bytes - static_cast<double>(model.embedding->bytes())) / 2.0;
  report_flops(state, 2.0 * (layer_weights * static_cast<double>(rows) +
                             static_cast<double>(model.embedding->bytes()) / 2.0 * sequences));
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(rows) * static_cast<double>(state.iterations()),
                                                  benchmark::Counter::kIsRate);
}
BENCHMARK(smollm2_step)
    ->ArgNames({"sequences", "rows", "context"})
    ->Args({1, 1, 128})
    ->Args({8, 1, 128})
    ->Args({32, 1, 128})
    ->Args({1, 512, 512})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// ---- The smallest task: what a hand-over to all workers and back costs.

void hand_over(benchmark::State& state) {
  ThreadPool pool(machine().threads);
  for (auto _ : state) pool.run([](int) {});
}
BENCHMARK(hand_over)->UseRealTime();

}  // namespace
}  // namespace headroom

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const headroom::Machine& machine = headroom::machine();
  std::printf("%s; reads %.1f GB/s, %.0f GFLOP/s of fp32 FMA\n", headroom::backend().description().c_str(),
              machine.bytes_per_second * 1e-9, machine.flops_per_second * 1e-9);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
