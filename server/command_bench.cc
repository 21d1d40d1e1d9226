#include "server/command_bench.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "kernels/device.h"
#include "server/bench_model.h"
#include "server/bench_peer.h"
#include "server/command_line.h"

namespace headroom {
namespace {

// Another program beside a row: in each repetition it ran right after ours.
struct PeerColumn {
  std::string command;  // as it was run
  std::vector<double> tokens_per_second;

  Spread ratio(const BenchRow& row) const {  // of our speed to theirs, pair by pair
    std::vector<double> ratios;
    for (size_t i = 0; i < tokens_per_second.size(); ++i) ratios.push_back(row.tokens_per_step / row.step_seconds[i] / tokens_per_second[i]);
    return spread_of(std::move(ratios));
  }
};

struct Measurement {
  BenchRow row;
  std::vector<PeerColumn> peers;
};

void note(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

// In turn with the peers: ours, each of theirs, ours again. Each turn of ours begins with a repetition that warms up.
Measurement measure(BenchModel& bench, BenchRow row, const BenchOptions& options, const std::vector<std::string>& commands) {
  row.test.threads = options.threads > 0 ? options.threads : usable_physical_cores();
  Measurement done{.row = std::move(row), .peers = {}};
  for (const std::string& command : commands) done.peers.push_back({.command = peer_command(command, done.row.test), .tokens_per_second = {}});
  const auto limits_now = [&] { return MachineLimits::measured(bench.backend(), done.row.test.threads); };
  for (int32_t i = 0; i < options.repetitions; ++i) {
    const bool first_of_turn = i == 0 || !commands.empty();
    if (first_of_turn) bench.repetition(done.row);
    done.row.limits.push_back(first_of_turn ? limits_now() : done.row.limits.back());
    done.row.step_seconds.push_back(bench.repetition(done.row));
    done.row.limits.push_back(limits_now());
    for (PeerColumn& peer : done.peers) {
      note("  turn " + std::to_string(i + 1) + " of " + std::to_string(options.repetitions) + ": " + peer.command);
      peer.tokens_per_second.push_back(run_peer(peer.command, done.row.test));
    }
  }
  return done;
}

std::string share_text(double share, double limit) {
  if (limit == 0) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f%% of %.0f", 100 * share, limit / 1e9);
  return text;
}

// "1.52 (1.40-1.61)"
std::string ratio_text(const Spread& ratio) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.2f (%.2f-%.2f)", ratio.median, ratio.low, ratio.high);
  return text;
}

void print_peers(const std::vector<Measurement>& measurements) {
  if (measurements.empty() || measurements.front().peers.empty()) return;
  std::printf("\ncompared in turn; ratio: our speed over theirs in the same turn, median (min-max)\n");
  std::printf("%-8s %6s %6s %10s %10s %18s  %s\n", "test", "batch", "depth", "tokens/s", "theirs", "ratio", "command");
  for (const Measurement& measurement : measurements) {
    for (const PeerColumn& peer : measurement.peers) {
      std::printf("%-8s %6d %6d %10.1f %10.1f %18s  %s\n", measurement.row.name(), measurement.row.test.batch, measurement.row.test.depth,
                  measurement.row.tokens_per_second(), spread_of(peer.tokens_per_second).median,
                  ratio_text(peer.ratio(measurement.row)).c_str(), peer.command.c_str());
    }
  }
}

nlohmann::ordered_json peers_json(const Measurement& measurement) {
  auto out = nlohmann::ordered_json::array();
  for (const PeerColumn& peer : measurement.peers) {
    const Spread ratio = peer.ratio(measurement.row);
    out.push_back({{"command", peer.command},
                   {"tokens_per_second", peer.tokens_per_second},
                   {"ratio_median", ratio.median},
                   {"ratio_min", ratio.low},
                   {"ratio_max", ratio.high}});
  }
  return out;
}

void print_table(const BenchModel& bench, const std::vector<Measurement>& measurements) {
  std::printf("%s, %lld parameters, %.1f MB of weights, KV %s %lld bytes per token; %s\n", bench.config().architecture.c_str(),
              static_cast<long long>(bench.config().parameters()), static_cast<double>(bench.runner().transformer().weight_bytes()) / 1e6,
              std::string(dtype_name(bench.shape().dtype)).c_str(), static_cast<long long>(bench.shape().token_bytes()),
              bench.runner().backend().description().c_str());
  const bool on_device = !bench.runner().backend().host_readable();
  std::printf("limits: %s, each measured before and after every repetition; shares: the median of what each had around it\n\n",
              on_device ? "bytes read and written by a copy within the device" : "read bandwidth and fp32 FMA peak");
  std::printf("%-8s %6s %6s %10s %23s %6s %12s %8s %13s\n", "test", "batch", "depth", "tokens/s", "ms per step (min-max)", "GB/s",
              "of limit", "GFLOP/s", "of limit");
  for (const Measurement& measurement : measurements) {
    const BenchRow& row = measurement.row;
    const MachineLimits limits = MachineLimits::mean(row.limits);
    const auto [seconds, low, high] = spread_of(row.step_seconds);
    char range[48];
    std::snprintf(range, sizeof(range), "%.2f (%.2f-%.2f)", seconds * 1e3, low * 1e3, high * 1e3);
    std::printf("%-8s %6d %6d %10.1f %23s %6.1f %12s %8.1f %13s\n", row.name(), row.test.batch, row.test.depth, row.tokens_per_second(), range,
                row.bytes() / seconds / 1e9, share_text(row.bandwidth_share(), limits.bytes_per_second).c_str(), row.flops / seconds / 1e9,
                share_text(row.peak_share(), limits.flops_per_second).c_str());
  }
  print_peers(measurements);
}

void print_json(const BenchModel& bench, const std::vector<Measurement>& measurements) {
  const auto known = [](double share) { return share > 0 ? nlohmann::ordered_json(share) : nlohmann::ordered_json(); };
  nlohmann::ordered_json out = {{"architecture", bench.config().architecture},
                                {"parameters", bench.config().parameters()},
                                {"weight_bytes", bench.runner().transformer().weight_bytes()},
                                {"kv_dtype", dtype_name(bench.shape().dtype)},
                                {"kv_token_bytes", bench.shape().token_bytes()},
                                {"backend", bench.runner().backend().description()},
                                {"async_scheduling", bench.launches_ahead()},
                                {"results", nlohmann::ordered_json::array()}};
  if (const auto start = bench.memory_at_start()) {
    out["device_memory"] = {{"total_bytes", start->total_bytes}, {"free_bytes_before", start->free_bytes},
                            {"free_bytes_after", bench.runner().backend().device_memory()->free_bytes},
                            {"pool_bytes", bench.runner().cache().pool_bytes()}};
  }
  for (const Measurement& measurement : measurements) {
    const BenchRow& row = measurement.row;
    const MachineLimits limits = MachineLimits::mean(row.limits);
    out["results"].push_back({{"test", row.name()},
                              {"batch", row.test.batch},
                              {"depth_tokens", row.test.depth},
                              {"tokens_per_second", row.tokens_per_second()},
                              {"step_seconds", row.step_seconds},
                              {"step_weight_bytes", row.weight_bytes},
                              {"step_kv_bytes", row.kv_bytes},
                              {"step_flops", row.flops},
                              {"step_attention_flops", row.attention_flops},
                              {"limit_bytes_per_second", limits.bytes_per_second},
                              {"limit_flops_per_second", limits.flops_per_second},
                              {"bandwidth_share", known(row.bandwidth_share())},
                              {"peak_share", known(row.peak_share())}});
    if (!measurement.peers.empty()) out["results"].back()["peers"] = peers_json(measurement);
  }
  std::printf("%s\n", out.dump(2).c_str());
}

void measure_all(BenchModel& bench, const BenchOptions& options, const std::vector<std::string>& peers, std::vector<Measurement>& measurements) {
  if (options.prompt_tokens > 0) {
    note("prefill of " + std::to_string(options.prompt_tokens) + " tokens");
    measurements.push_back(measure(bench, bench.prepare_prefill(), options, peers));
  }
  for (int32_t depth : options.depths) {
    for (int32_t batch : bench.batches()) {
      note("decode of " + std::to_string(batch) + " sequences at depth " + std::to_string(depth));
      measurements.push_back(measure(bench, bench.prepare_decode(batch, depth), options, peers));
    }
  }
}

}  // namespace

int run_bench(const std::vector<std::string>& arguments) {
  BenchOptions options;
  std::vector<std::string> peers;
  bool json = false;
  CLI::App app("Measures prefill and decode against this machine's read bandwidth and FMA peak", "headroom bench");
  auto* model = app.add_option("--model", options.model, "model directory or GGUF file; its own weights are used");
  app.add_option("--shape", options.shape, "config.json of a shape, or the name of a published one; random weights are used [smollm2-135m]")->excludes(model);
  app.add_option("--weights", options.weight_type, "what matrices are kept as: fp32, bf16, fp16, int8, int4 [as stored; bf16 where they are random]");
  app.add_option("--kv", options.kv_type, "element type of the KV cache")->capture_default_str();
  app.add_option("--device", options.device, "what computes")->check(CLI::IsMember(device_names()))->capture_default_str();
  app.add_option("--activations", options.activations, "what a CPU rounds the inputs of matrix products to")->check(CLI::IsMember(activation_names()))->capture_default_str();
  app.add_option("--cuda-graphs", options.cuda_graphs, "decode steps on a device are recorded once and replayed")->capture_default_str();
  app.add_option("--async-scheduling", options.async_scheduling, "a device's next step is launched while it is at work on the last")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 1024))->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads, "of a shape: another number of KV heads; 0: its own")
      ->excludes(model)
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--batch", options.batches, "sequences decoded at once; 0: as many as fit into the device's memory")
      ->delimiter(',')
      ->check(CLI::Range(0, kBenchBatchMax))
      ->capture_default_str();
  app.add_option("--depth", options.depths, "tokens in the cache before decoding")->delimiter(',')->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--prompt", options.prompt_tokens, "tokens of the prefill; 0: none")->check(CLI::Range(0, 1 << 20))->capture_default_str();
  app.add_option("--chunk", options.chunk_tokens, "tokens of one step of the prefill")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--steps", options.steps, "decode steps of one repetition")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--repetitions", options.repetitions, "after one that warms up")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--compare", peers, "a shell command of another program's benchmark, run in turn with each repetition; several: each. "
                 "{prompt}, {batch}, {depth}, {steps}, {threads} are filled in (of a decode the prompt is 0, of a prefill depth and steps). "
                 "It prints llama-bench's JSON, a table or JSONL of llama-batched-bench, or a number of tokens per second")
      ->allow_extra_args(false);
  app.add_flag("--json", json, "print JSON");
  if (!parse_command_line(app, arguments)) return 0;
  if (options.model.empty() && options.shape.empty()) options.shape = "smollm2-135m";

  note("loading " + (options.model.empty() ? options.shape + " with random weights" : options.model));
  BenchModel bench(options);
  std::vector<Measurement> measurements;
  try {
    measure_all(bench, options, peers, measurements);
  } catch (...) {
    if (!measurements.empty()) (json ? print_json : print_table)(bench, measurements);  // what took minutes is not lost with the rest
    throw;
  }
  (json ? print_json : print_table)(bench, measurements);
  return 0;
}

}  // namespace headroom
